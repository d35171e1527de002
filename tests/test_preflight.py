"""What train.py refuses before anything heavy is imported; and what it takes for an answer."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from entry import compose_job
from members import TINY
from omegaconf import OmegaConf

from hnseg.construct import construct
from hnseg.data.normalise import SCHEMES
from hnseg.errors import HnsegError
from hnseg.models.nets import build
from hnseg.preflight import (
    check_augment,
    check_length,
    check_patch,
    check_recipe,
    check_stages,
    check_window,
    divisor,
    padding,
)

ANISOTROPIC = {
    "plainconv": {"features": [4, 8, 8], "strides": [1, [1, 2, 2], 2]},
    "resenc": {"features": [4, 8, 8, 8], "strides": [1, 2, [1, 2, 1], [2, 2, 1]], "blocks": [1, 1, 1, 1]},
}
MODELS = [*TINY.items(), *ANISOTROPIC.items()]


def accepts(network: torch.nn.Module, patch: tuple[int, ...]) -> bool:
    """Whether a network trains on a patch and gives logits of its size."""
    try:
        return network.train()(torch.zeros((1, 2, *patch)))[0].shape[2:] == patch
    except (ValueError, RuntimeError):
        return False


@pytest.mark.parametrize(("architecture", "settings"), MODELS)
def test_the_divisor_is_what_the_network_really_needs(architecture, settings):
    network = build(architecture, 2, 3, **settings)
    model = {"name": architecture, "architecture": architecture, "settings": settings}
    for factors in product((1, 1.5, 2), repeat=3):
        patch = tuple(int(d * f) for d, f in zip(divisor(model), factors, strict=True))
        try:
            check_patch(patch, model, "fine")
            refused = False
        except HnsegError:
            refused = True
        assert accepts(network, patch) != refused, patch


def test_the_divisor_of_the_segresnet_is_monai_s():
    for blocks in ([1, 2, 2, 4, 4], [1, 1]):
        settings = {"init_filters": 8, "blocks_down": blocks, "depths": 2}
        expected = tuple(build("segresnet", 2, 3, **settings).network.shape_factor())
        assert divisor({"architecture": "segresnet", "settings": settings}) == expected


SIX = {"name": "resenc", "architecture": "resenc", "settings": {"strides": [1, 2, 2, 2, 2, 2]}}
HEAD = {"name": "plainconv", "architecture": "plainconv", "settings": {"strides": [1, 2, 2, 2, 2, [1, 2, 2]]}}


def test_the_paper_s_patches_fit():
    check_patch([160, 160, 160], SIX, "fine")
    check_patch([128, 128, 128], SIX, "coarse")
    check_patch([96, 160, 160], HEAD, "head")
    segresnet = {
        "name": "segresnet",
        "architecture": "segresnet",
        "settings": {"blocks_down": [1, 2, 2, 4, 4]},
    }
    check_patch([144, 144, 144], segresnet, "fine")


@pytest.mark.parametrize(
    ("patch", "model", "remedy"),
    [
        ([144, 144, 144], SIX, "[160, 160, 160]"),
        ([100, 160, 160], HEAD, "[112, 160, 160]"),
        ([32, 32, 32], SIX, "[64, 64, 64]"),
        ([0, 160, 160], SIX, "[64, 160, 160]"),
        ([160, 160], SIX, "[160, 160, 64]"),
        ([160, 160, 160, 160], SIX, "[160, 160, 160]"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_with_one_that_does(patch, model, remedy):
    with pytest.raises(HnsegError) as caught:
        check_patch(patch, model, "fine")
    message = str(caught.value)
    assert f"training.patch={patch}" in message
    assert f"model={model['name']}" in message
    assert message.endswith(f"use training.patch={remedy}")
    assert "\n" not in message


def test_a_pair_without_settings_is_named():
    with pytest.raises(HnsegError, match=r"no conf/stage_model for stage=head model=resenc"):
        check_patch(None, SIX, "head")


def test_a_roi_is_padded_to_its_patch_and_never_cut():
    assert padding([160] * 3, [144] * 3) == (160, 160, 160)
    assert padding([144] * 3, [144] * 3) is None
    assert padding([96, 160, 160], [128, 256, 256]) is None
    assert padding([96, 160, 160], [80, 200, 150]) == (96, 200, 160)


def test_a_mix_for_the_gpu_is_one_that_runs_there():
    foreign = {"device": "cuda", "transforms": [{"_target_": "torchio.RandomAffine"}]}
    with pytest.raises(HnsegError, match=r"augment\.device=cuda: torchio\.RandomAffine .*augment=nnunet"):
        check_augment(foreign, coordinates=False)
    check_augment(foreign | {"device": "cpu"}, coordinates=True)
    with pytest.raises(HnsegError, match=r"augment\.device=gpu: choose cpu or cuda"):
        check_augment(foreign | {"device": "gpu"}, coordinates=False)
    for mix in ("nnunet", "auto3dseg", "none"):
        augment = compose_job("train", f"augment={mix}", "augment.device=cuda").augment
        check_augment(augment, coordinates=False)
        with pytest.raises(HnsegError, match=r"recipe\.coordinates=true"):
            check_augment(augment, coordinates=True)


@pytest.mark.parametrize("parts", [0, 3, True, 1.5, "two"])
def test_a_batch_falls_into_equal_parts(parts):
    training = {"epochs": 1, "batch_size": 4, "iterations": None, "validate_every": 1}
    with pytest.raises(HnsegError, match=rf"trainer\.accumulate={parts} with training\.batch_size=4"):
        check_length(training, parts)
    for fitting in (1, 2, 4):
        check_length(training, fitting)


def test_looking_ahead_imports_nothing_heavy():
    code = (
        "import sys, hnseg.preflight, hnseg.run_folder, hnseg.training.cohort\n"
        "heavy = {'torch', 'monai', 'torchio', 'lightning', 'wandb', 'matplotlib', 'SimpleITK'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_network_with_uneven_stages_is_named() -> None:
    model = {
        "name": "resenc",
        "architecture": "resenc",
        "settings": {"features": [8, 16], "strides": [1, 2], "blocks": [1]},
    }
    with pytest.raises(HnsegError, match="model=resenc: features 2, strides 2, blocks 1"):
        check_stages(model)


def recipe(**changes: object) -> dict[str, Any]:
    composed: dict[str, Any] = OmegaConf.to_container(compose_job("train").recipe, resolve=True)  # type: ignore[assignment]
    for key, value in changes.items():
        at = composed
        *path, last = key.split("__")
        for part in path:
            at = at[part]
        at[last] = value
    return composed


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pet", "sum", "recipe.pet=sum: choose one of minmax, suv, raw"),
        ("source", "crop", "recipe.source=crop: choose one of study, head_crop"),
        ("roi__train", "corse", "recipe.roi.train=corse: choose one of truth, coarse"),
        ("normalise__ct", "zscor", "recipe.normalise.ct=zscor: choose one of zscore, ct"),
        ("minmax_again", ["fin"], "recipe.minmax_again=fin: name stages"),
        ("enhance__ct", ["cube"], "recipe.enhance.ct=['cube']: choose of square, cube_root"),
        ("cover", "some", "recipe.decision.cover=some is unknown"),
        ("decision__rule", "max", "recipe.decision.rule=max is unknown"),
        ("decision__thresholds", {"GTV": 0.3}, "recipe.decision.thresholds: no class GTV"),
    ],
)
def test_a_recipe_that_would_be_misunderstood_is_refused(key: str, value: object, message: str) -> None:
    check_recipe(recipe())
    with pytest.raises(HnsegError) as caught:
        check_recipe(recipe(**{key: value}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("optimizer.step", {"momentum": -3}),
        ("optimizer.step", {"momentun": 0.9}),
        ("optimizer.schedule", {"powr": 0.9}),
        ("loss", {"loss": {"_target_": "hnseg.models.losses.DiceCELoss", "smooth": 1}}),
        ("augment", {"_target_": "hnseg.data.augment.Mixx"}),
    ],
)
def test_what_cannot_be_built_is_told_with_its_key(key: str, changes: dict[str, Any]) -> None:
    parameters = [torch.zeros(1, requires_grad=True)]
    config = compose_job("train")
    given = {"optimizer.step": parameters, "optimizer.schedule": torch.optim.SGD(parameters)}.get(key)
    node = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    with pytest.raises(HnsegError, match=rf"^{key} cannot be built: .*check its entries$"):
        construct(node | changes, key)(given)  # type: ignore[operator]


def test_settings_that_a_network_does_not_have_are_told() -> None:
    with pytest.raises(HnsegError, match=r"model\.settings cannot be built: .*'foo'"):
        build("plainconv", 2, 3, **TINY["plainconv"], foo=1)


@pytest.mark.parametrize(
    ("changes", "stage", "cte", "message"),
    [
        ({}, "fine", True, "recipe.ct_window=null with cte=true: the powers are of CT in [0, 1]"),
        ({"source": "head_crop"}, "coarse", False, "recipe.ct_window=null: the head crop is windowed"),
        ({}, "fine", False, None),  # HU for a network that wants HU
        ({"source": "head_crop"}, "head", False, None),  # which is cut from the study
        ({"minmax_again": ["fine"]}, "fine", True, None),  # brings HU to [0, 1] too
    ],
)
def test_hu_where_the_chain_needs_fractions_are_refused(
    changes: dict[str, Any], stage: str, cte: bool, message: str | None
) -> None:
    check_window(recipe(**changes), stage, cte)
    hu = recipe(**changes, ct_window=None)
    if message is None:
        check_window(hu, stage, cte)
        return
    with pytest.raises(HnsegError) as caught:
        check_window(hu, stage, cte)
    assert str(caught.value).startswith(message)


def test_powers_of_pet_that_is_not_in_fractions_are_refused() -> None:
    pet: dict[str, Any] = {"enhance__pet": ["square"]}
    check_window(recipe(**pet), "fine", True)
    for unscaled in ({"pet": "raw"}, {"source": "head_crop"}):
        check_window(recipe(**pet, **unscaled), "fine", False)
        check_window(recipe(**pet, **unscaled, minmax_again=["fine"]), "fine", True)
        with pytest.raises(HnsegError, match=r"recipe\.enhance\.pet: PET is not in \[0, 1\] in stage=fine"):
            check_window(recipe(**pet, **unscaled), "fine", True)


def test_preflight_knows_the_schemes_of_normalisation() -> None:
    for scheme in SCHEMES:
        check_recipe(recipe(normalise__pet=scheme))
