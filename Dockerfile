# The grand-challenge container: a bundle at /opt/ml/model, a study in /input, the mask in /output.
#   docker build -t hnseg .
#   docker run --rm --network none --gpus all -v BUNDLE:/opt/ml/model:ro -v IN:/input:ro -v OUT:/output hnseg
FROM python:3.12-slim
WORKDIR /opt/hnseg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY hnseg hnseg
RUN pip install --no-cache-dir -c constraints.txt . \
 && useradd --create-home --uid 1000 user
USER user
# Nothing is written but below /output and /tmp.
ENV PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["hnseg", "challenge", "--model", "/opt/ml/model", "--input", "/input", "--output", "/output"]
