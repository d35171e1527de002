# %% [markdown]
# # Compare runs
#
# What differs between the two runs of `train_on_phantoms.py`, and how their losses fell.

# %%
import csv
from pathlib import Path

from matplotlib.figure import Figure

from hnseg.training.runs import compare_runs, find_runs

runs = find_runs(Path("runs/rates"))
for run in runs:
    print(run.path, run.state, run.best)

# %%
settings, scores, folds = compare_runs(runs[0].path, runs[1].path)
print(settings)
print(scores)

# %% [markdown]
# `metrics.csv` has a row an epoch; a cell is empty where nothing was measured.

# %%
figure = Figure()
axes = figure.subplots()
for run in runs:
    with (run.path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    axes.plot(
        [int(r["epoch"]) for r in rows], [float(r["train/loss"]) for r in rows], "o-", label=str(run.path)
    )
axes.set(xlabel="epoch", ylabel="train/loss")
axes.legend()
figure.savefig("rates.png")
