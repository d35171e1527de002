# %% [markdown]
# # Train on phantoms
#
# Six synthetic patients, and one coarse network with two learning rates. Two minutes on two cores.

# %%
import subprocess
from pathlib import Path

from hnseg.data.phantom import make_cohort

make_cohort(Path("phantoms"), cases=6, seed=1, workers=1)  # in this process: cells have no main module

# %% [markdown]
# The phantoms lie in the challenge's layout, with head masks that place the coarse ROI. Each training is a
# command; its settings are `KEY=VALUE`.

# %%
for rate in ("0.001", "0.003"):
    subprocess.run(
        [
            *("hnseg", "train", "scale=demo", "stage=coarse", "model=plainconv", "fold=0"),
            *("data.root=phantoms", "name=rates", f"optimizer.step.lr={rate}", f"arm=lr_{rate}"),
        ],
        check=True,
    )

# %% [markdown]
# Each run has drawn its curves: `runs/rates/lr_0.001/fold_0/curves.png`. Go on with `compare_runs.py`.
