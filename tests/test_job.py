"""The three recipes side by side: what facts about the paper and the release say, as jobs carry it out."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from entry import ROOT, compose_job
from omegaconf import OmegaConf

from hnseg.data.sampling import Sampling
from hnseg.inference.decision import Decision
from hnseg.job import describe, jitter_mm, make_input, make_stage, scan_augment

PAIRS = {"head": "plainconv", "coarse": "plainconv", "fine": "resenc", "segresnet": "segresnet"}


def job(recipe: str, stage: str, *overrides: str) -> tuple[dict[str, Any], Any, Any]:
    """Configuration, stage and input chain; `segresnet` is the fine stage with that model."""
    name = "fine" if stage == "segresnet" else stage
    cfg = compose_job("train", f"recipe={recipe}", f"stage={name}", f"model={PAIRS[stage]}", *overrides)
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    made = make_stage(config)
    return config, made, make_input(config, made)


def schemes(spec: Any) -> list[str]:
    return [one.scheme for one in spec.normalise]


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("head", ["zscore"]),
        ("coarse", ["zscore", "zscore"]),
        ("fine", ["ct", "ct", "ct", "zscore"]),
        ("segresnet", ["range", "sigmoid"]),
    ],
)
def test_paper_normalises_as_the_makers_do(stage: str, expected: list[str]) -> None:
    _, _, spec = job("paper", stage)
    assert schemes(spec) == expected
    assert spec.ct_window == (-110, 190)
    assert spec.ct_range == (-1, 1)
    assert (spec.pet, spec.roi_minmax) == ("minmax", False)
    assert spec.sampling == Sampling("study", "air")


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("head", ["zscore"]),
        ("coarse", ["zscore", "zscore"]),
        ("fine", ["ct", "zscore"]),  # the container's ResEnc has two channels
        ("segresnet", ["range", "sigmoid"]),
    ],
)
def test_authors_cut_from_the_head_crop_and_scale_the_fine_roi_twice(stage: str, expected: list[str]) -> None:
    _, made, spec = job("authors", stage)
    assert schemes(spec) == expected
    assert spec.sampling.outside == "minus_one"
    assert spec.ct_range == (0, 1)
    if stage == "head":
        assert (made.lateral, spec.sampling.source, spec.ct_window) == ("corner", "study", (-105, 195))
    else:
        assert (spec.sampling.source, spec.sampling.ct_window) == ("head_crop", (-105, 195))
        assert (spec.ct_window, spec.pet) == (None, "raw")
    assert spec.roi_minmax is (stage in ("fine", "segresnet"))


@pytest.mark.parametrize("stage", PAIRS)
def test_best_keeps_suv_an_absolute_scale(stage: str) -> None:
    _, _, spec = job("best", stage)
    assert set(schemes(spec)) == {"cohort"}
    assert (spec.pet, spec.roi_minmax) == ("suv", False)
    assert spec.sampling.source == "study"


def test_enhancement_follows_recipe_and_model_and_is_one_switch() -> None:
    assert job("paper", "fine")[2].channels == 4
    assert job("paper", "segresnet")[2].channels == 2
    assert job("authors", "fine")[2].channels == 2
    assert job("authors", "fine", "cte=true")[2].channels == 4
    assert schemes(job("paper", "segresnet", "cte=true")[2]) == ["range"] * 3 + ["sigmoid"]


LOSS = {
    ("paper", "fine"): (True, True, "nnunet"),
    ("authors", "fine"): (False, False, "nnunet"),
    ("authors", "head"): (False, False, "nnunet"),
    ("paper", "segresnet"): (True, True, "monai"),
    ("authors", "segresnet"): (True, True, "monai"),
    ("best", "fine"): (True, True, "nnunet"),
}


@pytest.mark.parametrize(("recipe", "stage"), LOSS)
def test_the_dice_term(recipe: str, stage: str) -> None:
    loss = job(recipe, stage)[0]["loss"]
    assert (loss["loss"]["squared"], loss["loss"]["background"], loss["weights"]) == LOSS[recipe, stage]


def test_the_command_line_beats_the_recipe() -> None:
    assert job("authors", "fine", "loss=dice_ce")[0]["loss"]["loss"]["squared"] is True
    assert job("authors", "fine", "recipe.ct_window=[-100,100]")[2].sampling.ct_window == (-100, 100)


def test_a_study_prepared_once_serves_every_window() -> None:
    first, second = (
        job("paper", "fine", f"recipe.ct_window={window}")[2] for window in ([-110, 190], [-160, 240])
    )
    assert first.ct_window != second.ct_window
    assert first.sampling == second.sampling


DECISION = {
    "paper": {"fusion": "flat", "rule": "half", "way_back": "probabilities", "min_component_ml": 0.1},
    "authors": {"fusion": "authors", "rule": "argmax", "way_back": "labels", "min_component_ml": 0.0},
    "best": {"fusion": "flat", "rule": "argmax", "way_back": "probabilities", "mirror": True},
}
CASES = {"paper": ("one", "chain"), "authors": ("one", "fail"), "best": ("all", "chain")}


@pytest.mark.parametrize("recipe", DECISION)
def test_a_card_carries_the_decision(recipe: str) -> None:
    config, stage, spec = job(recipe, "fine")
    card = describe(config, stage, spec, split="", trained_on=[])
    assert card["decision"].items() >= DECISION[recipe].items()
    assert (card["decision"]["cover"], card["decision"]["fallback"]) == CASES[recipe]
    assert yaml.safe_load(yaml.safe_dump(card)) == card


def test_jitter_margin_and_head_cut() -> None:
    config, stage, _ = job("best", "fine")
    assert jitter_mm(config, stage) == 12
    config, stage, _ = job("paper", "coarse", "recipe.coarse.margin_mm=12")
    assert stage.size == (156, 156, 156)
    assert jitter_mm(config, stage) == 0
    config, stage, _ = job("paper", "coarse", "recipe.coarse.jitter_mm=8")
    assert jitter_mm(config, stage) == 8
    config, stage, _ = job("best", "head")
    augment = scan_augment(config, stage)
    assert augment is not None
    assert augment.transforms["cut_head"].p == 0.2
    assert jitter_mm(config, stage) == 0
    assert scan_augment(*job("paper", "head")[:2]) is None
    assert scan_augment(*job("best", "fine")[:2]) is None


def test_all_recipes_have_the_same_keys_and_each_is_read_somewhere() -> None:
    recipes = {name: job(name, "fine")[0]["recipe"] for name in ("paper", "authors", "best")}
    keys = recipes["paper"].keys()
    assert recipes["authors"].keys() == recipes["best"].keys() == keys
    assert recipes["authors"]["decision"].keys() == recipes["paper"]["decision"].keys()
    sources = [ROOT / "train.py", ROOT / "conf" / "train.yaml", *Path(ROOT, "hnseg").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources)
    for key in keys:
        assert f'"{key}"' in code or f"recipe.{key}" in code, key
    rules = {*recipes["paper"]["decision"], "cover", "fallback"}  # as a card has them
    assert rules == {field.name for field in fields(Decision)}
