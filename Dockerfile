# The grand-challenge container: a bundle at /opt/ml/model, a study in /input, the mask in /output.
# Export the bundle with --convert: without a GPU, each new container would else convert its networks.
#   docker build -t hnseg .
#   docker run --rm --network none --gpus all -v BUNDLE:/opt/ml/model:ro -v IN:/input:ro -v OUT:/output hnseg
FROM python:3.12-slim
WORKDIR /opt/hnseg
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY hnseg hnseg
COPY conf conf
COPY sweeps sweeps
RUN pip install --no-cache-dir -c constraints.txt '.[openvino]' \
 && useradd --create-home --uid 1000 user
USER user
# Nothing is written but below /output and /tmp. MONAI wants a name, also of a user that the system has none for.
ENV PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp XDG_CACHE_HOME=/tmp/cache USER=user
ENTRYPOINT ["hnseg", "challenge", "--model", "/opt/ml/model", "--input", "/input", "--output", "/output"]
