"""Members of one stage: their mean, their inputs, their memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from fabricate import ct_image, pet_image
from members import Ensemble, card, make_bundle
from torch import Tensor

from hnseg.card import Decision
from hnseg.errors import HnsegError
from hnseg.imaging.grid import Grid
from hnseg.inference.backends import Networks
from hnseg.inference.ensemble import Fusion
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member

CPU = torch.device("cpu")
GRID = Grid.centred((39, 40, 43), (24, 24, 24), (3.0, 3.0, 3.0))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Two channels, four channels, padded, and normalised as the paper has it."""
    return make_bundle(
        tmp_path,
        card("fine", "resenc", input={"cte": True}),
        card("fine", "segresnet"),
        card("fine", "plainconv", input={"pad_to": [32, 32, 32]}),
        card(
            "fine",
            "plainconv",
            name="paper",
            input={"pet": "minmax", "normalise": [{"scheme": "zscore"}] * 2},
        ),
    )


def predict(members: list[Member] | tuple[Member, ...], **settings: Any) -> np.ndarray:
    return Ensemble(members, **settings)(ct_image(), pet_image(), GRID)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_mean_is_that_of_the_members_run_alone(bundle: Bundle, mirror: bool) -> None:
    alone = [predict([member], mirror=mirror) for member in bundle.members]
    assert len({one.tobytes() for one in alone}) == 4
    together = predict(bundle.members, mirror=mirror)
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_the_authors_fusion_means_nnunets_logits_and_the_others_softmax(bundle: Bundle) -> None:
    """The softmax of mean logits is the geometric mean of softmax maps, divided by its sum."""
    alone = {member.card.name: predict([member]) for member in bundle.members}
    segresnet = alone.pop("fine_segresnet_fold_0")
    geometric = np.exp(np.mean([np.log(one) for one in alone.values()], axis=0))
    expected = (geometric / geometric.sum(axis=0) + segresnet) / 2
    fused = predict(bundle.members, decision=Decision(fusion="authors"))
    np.testing.assert_allclose(fused, expected, atol=1e-6)
    assert np.abs(fused - predict(bundle.members)).max() > 1e-4


def test_a_member_without_weight_is_not_run(bundle: Bundle) -> None:
    rules = Decision(weights={"plainconv": 3, "segresnet": 0})
    alone = {member.card.name: predict([member]) for member in bundle.members}
    plain = alone["fine_plainconv_fold_0"] + alone["paper"]
    expected = (3 * plain + alone["fine_resenc_fold_0"]) / 7
    np.testing.assert_allclose(predict(bundle.members, decision=rules), expected, atol=1e-6)
    ensemble = Ensemble(bundle.members, decision=rules)
    assert "segresnet" not in {member.card.model for member in ensemble.members}


def test_weights_that_leave_no_member_are_told(bundle: Bundle) -> None:
    with pytest.raises(HnsegError, match=r"weights=.*leave no fine member"):
        Ensemble([m for m in bundle.members if m.card.model == "resenc"], Decision(weights={"resenc": 0}))


def test_the_input_is_what_was_cut_from_the_images(tmp_path: Path) -> None:
    """A network that passes its PET channel on shows the PET, SUV / 20, where SimpleITK samples it."""
    shown = card("fine", "pointwise", {"weights": [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], "biases": [0.0] * 3})
    probabilities = predict(make_bundle(tmp_path, shown).members)
    seen = np.log(probabilities[1] / probabilities[0]) * 20
    reference = GRID.image(np.zeros(GRID.shape, np.float32))
    sampled = sitk.GetArrayFromImage(
        sitk.Resample(pet_image(), reference, sitk.Transform(), sitk.sitkBSpline)
    )
    np.testing.assert_allclose(seen, np.clip(sampled, 0, 20), atol=1e-2)


@pytest.mark.parametrize("size", [24, 25])
def test_padding_is_taken_off_where_it_was_put(tmp_path: Path, size: int) -> None:
    """A pointwise network cannot tell whether its input was padded, on odd sizes either."""
    settings = {"weights": [[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]], "biases": [0.0] * 3}
    grid = {"size": [size] * 3, "spacing": [3.0] * 3}
    plain = card("fine", "pointwise", settings, grid=grid)
    padded = card("fine", "pointwise", settings, grid=grid, name="padded", input={"pad_to": [32, 32, 32]})
    bundle = make_bundle(tmp_path, plain, padded)
    cube = Grid.centred((39, 40, 43), (size,) * 3, (3.0, 3.0, 3.0))
    one, other = (Ensemble([member])(ct_image(), pet_image(), cube) for member in bundle.members)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_members_of_different_grids_are_refused_by_name(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path,
        card("fine", "resenc", name="three_mm"),
        card("fine", "resenc", name="four_mm", grid={"spacing": [4.0] * 3}),
    )
    with pytest.raises(HnsegError, match=r"three_mm.*four_mm|four_mm.*three_mm"):
        Ensemble(bundle.members)


def rising(weight: float, bias: float = 0.0) -> dict[str, Any]:
    """A pointwise network whose tumour's logit rises with the PET."""
    return {"weights": [[0.0, 0.0], [0.0, weight], [0.0, 0.0]], "biases": [0.0, bias, -500.0]}


def test_what_is_no_number_is_an_error_and_no_empty_mask(tmp_path: Path) -> None:
    sound = card("fine", "pointwise", rising(1.0))
    huge = card("fine", "pointwise", rising(3e38, 3e38), name="huge")  # beyond float32
    with pytest.raises(HnsegError, match=r"^huge: its logits on this case are no numbers"):
        predict(make_bundle(tmp_path, sound, huge).members)


def test_what_is_beyond_float16_is_computed_in_float32(tmp_path: Path) -> None:
    members = make_bundle(tmp_path, card("fine", "pointwise", rising(1e6))).members
    narrow = Ensemble(members, networks=Networks(CPU, "float16"))
    np.testing.assert_array_equal(narrow(ct_image(), pet_image(), GRID), predict(members))
    assert narrow.notes == ["fine_pointwise_fold_0: float16 was too narrow for it, float32 was taken"]


FRAMEWORKS = {"resenc": "nnunet", "plainconv": "nnunet", "segresnet": "auto3dseg"}


def logits(*probabilities: float) -> Tensor:
    """One voxel whose softmax is `probabilities`."""
    return torch.log(torch.tensor(probabilities)).reshape(-1, 1, 1, 1)


def fused(fusion: Fusion, *members: tuple[Tensor, str]) -> list[float]:
    for values, model in members:
        fusion.add(values, model, FRAMEWORKS[model])
    return fusion.probabilities().flatten().tolist()


RESENC = (logits(0.98, 0.01, 0.01), "resenc")
PLAIN = (logits(0.5, 0.25, 0.25), "plainconv")
SEGRESNET = (logits(0.3, 0.6, 0.1), "segresnet")
OTHER_SEGRESNET = (logits(0.5, 0.2, 0.3), "segresnet")


def test_flat_is_the_mean_of_all_softmax() -> None:
    result = fused(Fusion(Decision()), RESENC, PLAIN, SEGRESNET)
    assert result == pytest.approx([1.78 / 3, 0.86 / 3, 0.36 / 3])


def test_weights_go_by_model_and_are_normalised() -> None:
    """3 · (0.98, 0.01, 0.01) + (0.5, 0.25, 0.25), of 4: a model that is not named has the weight 1."""
    result = fused(Fusion(Decision(weights={"resenc": 3})), RESENC, PLAIN)
    assert result == pytest.approx([3.44 / 4, 0.28 / 4, 0.28 / 4])


def test_the_authors_means_are_of_logits_within_nnunet_and_of_softmax_elsewhere() -> None:
    """Mean logits: the geometric mean (√0.49, √0.0025, √0.0025) = (0.7, 0.05, 0.05), divided by 0.8."""
    others = ((0.3 + 0.5) / 2, (0.6 + 0.2) / 2, (0.1 + 0.3) / 2)
    expected = [(a + b) / 2 for a, b in zip((0.875, 0.0625, 0.0625), others, strict=True)]
    order = [SEGRESNET, RESENC, OTHER_SEGRESNET, PLAIN]
    assert fused(Fusion(Decision(fusion="authors")), *order) == pytest.approx(expected)
    assert fused(Fusion(Decision(fusion="authors")), *order[::-1]) == pytest.approx(expected)
    assert fused(Fusion(Decision()), *order) != pytest.approx(expected, abs=0.01)
