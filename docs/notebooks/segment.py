# %% [markdown]
# # Segment a patient
#
# A bundle of the run from `train_on_phantoms.py`, and one patient in Python. With a bundle of all stages,
# leave `last_stage` and `head_masks` out.

# %%
from pathlib import Path

from hnseg.devices import pick_device
from hnseg.imaging.case import read_cases
from hnseg.imaging.images import to_array, write_image
from hnseg.imaging.suv import read_scan
from hnseg.inference.backends import make_networks
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle, export_bundle

export_bundle([Path("runs/rates/lr_0.001")], Path("bundle"))
bundle = Bundle.load(Path("bundle"))
networks = make_networks(pick_device())
cascade = Cascade(bundle, networks, last_stage="coarse", head_masks=Path("phantoms/heads"))

# %%
case = read_cases(Path("phantoms"))[0]
ct, pet = read_scan(case)
result = cascade(ct, pet, case.case_id)
write_image(result.mask, Path("mask.nii.gz"))
print(case.case_id, {label: int((to_array(result.mask) == label).sum()) for label in (1, 2)}, "voxels")

# %% [markdown]
# What a reader should know of the case, and its lesions.

# %%
print(result.notes)
for lesion in result.lesions[:5]:
    print(lesion)
