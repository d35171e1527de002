"""What train.py refuses before anything heavy is imported; and what it takes for an answer."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from entry import compose_job
from members import TARGETS, TINY
from omegaconf import OmegaConf

from hnseg.app import compose_job as compose_hnseg
from hnseg.construct import construct
from hnseg.data.intensity import SCHEMES
from hnseg.errors import HnsegError
from hnseg.job_keys import read_job
from hnseg.models.nets import build, stride_product
from hnseg.preflight import (
    check_augment,
    check_job,
    check_length,
    check_patch,
    check_stages,
    check_window,
    padding,
)

ANISOTROPIC = {
    "plainconv": {"features": [4, 8, 8], "strides": [1, [1, 2, 2], 2]},
    "resenc": {"features": [4, 8, 8, 8], "strides": [1, 2, [1, 2, 1], [2, 2, 1]], "blocks": [1, 1, 1, 1]},
}
SWITCHES = (
    *("overwrite", "cte", "stage.antialias", "model.gating", "recipe.coordinates", "loss.loss.squared"),
    *("loss.loss.background", "trainer.deterministic", "trainer.checkpointing", "trainer.compile"),
    "model.settings.bias",
)
MODELS = [*TINY.values(), *(TINY[name] | settings for name, settings in ANISOTROPIC.items())]


def accepts(network: torch.nn.Module, patch: tuple[int, ...]) -> bool:
    """Whether a network trains on a patch and gives logits of its size."""
    try:
        return network.train()(torch.zeros((1, 2, *patch)))[0].shape[2:] == patch
    except (ValueError, RuntimeError):
        return False


@pytest.mark.parametrize("settings", MODELS)
def test_the_divisor_is_what_the_network_really_needs(settings):
    network = build(in_channels=2, out_channels=3, **settings)
    model = {"name": "any", "settings": settings}
    for factors in product((1, 1.5, 2), repeat=3):
        patch = tuple(int(d * f) for d, f in zip(stride_product(settings), factors, strict=True))
        try:
            check_patch(patch, model, "fine")
            refused = False
        except HnsegError:
            refused = True
        assert accepts(network, patch) != refused, patch


def test_the_divisor_of_the_segresnet_is_monai_s():
    for blocks in ([1, 2, 2, 4, 4], [1, 1]):
        settings = TINY["segresnet"] | {"blocks_down": blocks}
        expected = tuple(build(in_channels=2, out_channels=3, **settings).network.shape_factor())
        assert stride_product(settings) == expected


SIX = {"name": "resenc", "settings": {"_target_": TARGETS["resenc"], "strides": [1, 2, 2, 2, 2, 2]}}
HEAD = {
    "name": "plainconv",
    "settings": {"_target_": TARGETS["plainconv"], "strides": [1, 2, 2, 2, 2, [1, 2, 2]]},
}


def test_the_paper_s_patches_fit():
    check_patch([160, 160, 160], SIX, "fine")
    check_patch([128, 128, 128], SIX, "coarse")
    check_patch([96, 160, 160], HEAD, "head")
    segresnet = {
        "name": "segresnet",
        "settings": {"_target_": TARGETS["segresnet"], "blocks_down": [1, 2, 2, 4, 4]},
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


def test_a_batch_falls_into_equal_parts():
    training = {"epochs": 1, "batch_size": 4, "iterations": None, "validate_every": 1}
    with pytest.raises(HnsegError, match=r"trainer\.accumulate=3 with training\.batch_size=4"):
        check_length(training, 3)
    for fitting in (1, 2, 4):
        check_length(training, fitting)


def test_looking_ahead_imports_nothing_heavy():
    code = (
        "import sys, hnseg.job_keys, hnseg.preflight, hnseg.run_folder, hnseg.training.cohort\n"
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


def read(*overrides: str) -> dict[str, Any]:
    config = read_job(compose_hnseg(["stage=fine", "model=plainconv", *overrides]))
    check_job(config)
    return config


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        *[(f"{key}=no", "choose true or false") for key in SWITCHES],
        ("overwrite=off", "choose true or false"),
        ("cte=null", "choose true or false"),
        ("loss.weights=monia", "choose one of nnunet, monai"),
        ("model.window.tiling=foo", "choose one of nnunet, monai"),
        ("model.window.overlap=2", "give a number of 0 or more and below 1"),
        ("model.window.overlap=-1", "give a number of 0 or more and below 1"),
        ("model.settings=null", "give the entries that conf/ has for it"),
        ("model.settings.features=5", "give a list of whole numbers of 1 or more"),
        ("model.settings.features=[4, 8.5]", "give a list of whole numbers of 1 or more"),
        ("model.settings.strides=[1, [2, 2]]", "give a list of whole numbers of 1 or more, or [z,y,x]"),
        ("stage.placement=foo", "choose one of top_of_scan"),
        ("stage.size=[16, 16]", "give a list of three whole numbers"),
        ("stage.spacing=[0, 6, 6]", "give a list of three numbers of mm above 0"),
        ("stage.classes=GTVp", "give a list of names"),
        ("stage.classes=[]", "give a list of names"),
        ("training.patch=16", "give a list of whole numbers, [z,y,x]"),
        ("training.patch=[16.0, 16, 16]", "give a list of whole numbers, [z,y,x]"),
        ("training.epochs=true", "give a whole number of 1 or more"),
        ("training.ema=1", "give a number of 0 or more and below 1, or null"),
        ("training.ema=abc", "give a number of 0 or more and below 1, or null"),
        ("trainer.threads=-1", "give a whole number of 1 or more, or null"),
        ("trainer.processes=two", "give a whole number of 1 or more, or auto"),
        *[(f"trainer.accumulate={parts}", "give a whole number") for parts in ("0", "true", "1.5", "two")],
        ("seed=-1", "give a whole number from 0"),
        ("seed=null", "give a whole number from 0"),
        ("run_dir=null", "give a path"),
        ("data.root=3.5", "give a path; one that reads as a number is written \"'3.10'\""),
        ("data.folds=null", "give a whole number"),
        ("data.split_seed=x", "give a whole number from 0"),
        ("data.exclude=null", "give a list of case ids"),
        ("data.exclude=HGJ-001", "give a list of case ids, [CASE,...]"),
        ("data.prepare_workers=-1", "give a whole number of 1 or more, or null"),
        ("optimizer.step.lr=abc", "give a number of 0 or more"),
        ("optimizer.step.lr=-1", "give a number of 0 or more"),
        ("optimizer.clip=-1", "give a number of 0 or more, or null"),
        ("optimizer.schedule=null", "give the entries"),
        ("optimizer.schedule.power=abc", "give a number of 0 or more"),
        ("loss.loss.smooth_top=abc", "give a number of 0 or more"),
        ("augment.transforms=null", "give a list of transforms"),
        ("recipe.ct_window=[190, -110]", "give [LOWER,UPPER], or null"),
        ("recipe.ct_window=[-110]", "give [LOWER,UPPER], or null"),
        ("recipe.pet_upper=0", "give a number above 0"),
        ("recipe.roi.jitter_mm=abc", "give a number of 0 or more"),
        ("recipe.coarse.margin_mm=-400", "give a number of 0 or more"),
        ("recipe.cut_head=2", "give a number from 0 to 1"),
        ("recipe.pet=sum", "choose one of minmax, suv, raw"),
        ("recipe.source=crop", "choose one of study, head_crop"),
        ("recipe.roi.train=corse", "choose one of truth, coarse"),
        ("recipe.minmax_again=fine", "give a list of head, coarse, fine"),
        ("recipe.enhance.ct=null", "give a list of square, cube_root"),
        ("recipe.decision=null", "give the entries"),
    ],
)
def test_a_value_that_a_key_cannot_have_is_told(override: str, remedy: str) -> None:
    with pytest.raises(HnsegError) as caught:
        read(override)
    assert str(caught.value).startswith(f"{override}: {remedy}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~data.folds", "data.folds is missing; give a whole number"),
        ("training=null", "optimizer.schedule.total_iters: "),
        (
            "recipe.checkpoint=compare",
            "recipe.checkpoint=compare with training.ema=null: no averaged",
        ),
        ("model.normalise.ct=zscor", "recipe.normalise.ct=zscor: choose one of zscore, ct"),
        ("recipe.cover=some", "recipe.decision.cover=some is unknown"),
        ("recipe.decision.rule=max", "recipe.decision.rule=max is unknown"),
        ("+recipe.decision.thresholds.GTV=0.3", "recipe.decision.thresholds: no class GTV"),
    ],
)
def test_what_does_not_go_together_is_told(override: str, message: str) -> None:
    with pytest.raises(HnsegError) as caught:
        read(override)
    assert str(caught.value).startswith(message)


def test_numbers_that_are_names_are_taken_as_text() -> None:
    data = read("data.root=2025", "data.cache=5", "data.exclude=[12]")["data"]
    assert (data["root"], data["cache"], data["heads"]) == ("2025", "5", "2025/heads")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("optimizer.step", {"momentum": -3}),
        ("optimizer.step", {"momentun": 0.9}),
        ("optimizer.schedule", {"powr": 0.9}),
        ("loss", {"loss": {"_target_": "hnseg.models.losses.DiceCELoss", "smooth": 1}}),
        ("augment", {"_target_": "hnseg.data.augment.Composed"}),
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
        build(in_channels=2, out_channels=3, **TINY["plainconv"], foo=1)


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


def test_the_schemes_of_normalisation_are_known() -> None:
    for scheme in SCHEMES:
        read(f"model.normalise.pet={scheme}")
