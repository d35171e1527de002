"""What conf/ names can be built, what cannot is refused, and the supported pairs of stage and model train."""

from pathlib import Path

import pytest
from entry import ROOT, compose_job, load, tiny, write_cohort

from hnseg.config import compose_job as compose
from hnseg.errors import HnsegError
from hnseg.training.fit import check_components

PAIRS = [path.stem.split("_") for path in sorted((ROOT / "conf/stage_model/full").glob("*.yaml"))]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def test_every_model_builds_at_full_size_with_a_stage() -> None:
    assert {model for _, model in PAIRS} == set(choices("model"))
    for stage, model in PAIRS:
        check_components(compose([f"stage={stage}", f"model={model}"]))


@pytest.mark.parametrize("group", ["optimizer", "loss", "augment", "scan_augment", "recipe", "scale"])
def test_every_option_builds(group: str) -> None:
    for n, option in enumerate(choices(group)):
        stage, model = PAIRS[n % len(PAIRS)]
        check_components(
            compose([f"{group}={option}", f"stage={stage}", f"model={model}", "training.ema=0.9"])
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.patch=[150,160,160]", r"training\.patch=\[150, 160, 160\].*=\[160, 160, 160\]"),
        ("training.patch=[32,32,32]", r"training\.patch=\[32, 32, 32\].*=\[64, 64, 64\]"),
        ("loss.loss.class_weights=[1,2]", "loss for background, GTVp, GTVn cannot be built"),
        ("+loss.loss.smooth=1", "loss cannot be built: .*smooth"),
        ("loss.weights=monay", "loss cannot be built: weights=monay"),
        ("loss.loss.squared=no", "loss cannot be built: .*squared=no"),
        ("+model.settings.foo=1", r"model\.settings cannot be built: .*foo"),
        ("model.settings.features=[8,16]", r"model\.settings cannot be built: 2 features but 6 strides"),
        ("optimizer.step.momentum=-3", r"optimizer\.step cannot be built: .*momentum"),
        ("+optimizer.step.momentun=0.9", r"optimizer\.step cannot be built: .*momentun"),
        ("optimizer.step.lr=abc", r"optimizer\.step cannot be built"),
        ("+optimizer.schedule.powr=0.9", r"optimizer\.schedule cannot be built: .*powr"),
        (
            "augment.transforms.noise._target_=hnseg.data.augment.RandomNoises",
            r"augment\.transforms\.noise cannot be built: .*RandomNoises",
        ),
    ],
)
def test_what_cannot_be_built_is_told_with_its_key(override: str, message: str) -> None:
    with pytest.raises(HnsegError, match=message) as refusal:
        check_components(compose(["stage=fine", "model=resenc", override]))
    assert "\n" not in str(refusal.value)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


@pytest.mark.parametrize(("n", "stage", "model"), [(n, *pair) for n, pair in enumerate(PAIRS)])
def test_supported_pairs_train(cohort: Path, tmp_path: Path, n: int, stage: str, model: str) -> None:
    """One step and one validation each, the other groups taking turns."""
    groups = ("optimizer", "loss", "augment", "recipe")
    turns = [f"{group}={choices(group)[n % len(choices(group))]}" for group in groups]
    ema = f"training.ema={['null', 0.9, 0.9][n % 3]}"
    cfg = compose_job("train", f"stage={stage}", *tiny(model, cohort, tmp_path), *turns, ema, "logger=csv")
    dice = load("train").main(cfg)
    assert 0 <= dice <= 1
    assert (Path(cfg.run_dir) / "best.ckpt").exists()
