"""Masks of an earlier stage are what would place the next stage's ROI, whatever the recipe's rules are."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import ct_image, pet_image
from members import DECISION, card, make_bundle, make_cascade

# Everywhere 0.43 for GTVp: the likeliest class, and below one half.
LIKELY = {"weights": [[0.0, 0.0]] * 3, "biases": [0.3, 0.5, 0.0]}
WHOLE = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
RULES = DECISION | {"rule": "half", "min_component_ml": 1e6, "resample_output": "labels", "mirror": True}


@pytest.mark.parametrize(("until", "label"), [("coarse", 1), ("fine", 0)])
def test_the_likeliest_class_places_and_the_recipe_s_rule_decides(
    tmp_path: Path, until: str, label: int
) -> None:
    coarse = card("coarse", "pointwise", LIKELY, grid=WHOLE, decision=RULES)
    fine = card("fine", "pointwise", LIKELY, grid=WHOLE, decision=RULES)
    cascade = make_cascade(make_bundle(tmp_path, coarse, fine), last_stage=until)
    assert cascade.decision.mirror is (until == "fine")
    mask = sitk.GetArrayFromImage(cascade(ct_image(), pet_image()).mask)
    assert np.unique(mask[5:-5, 10:-10, 10:-10]).tolist() == [label]
