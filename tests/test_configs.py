"""What conf/ names can be built, and the supported pairs of stage and model train."""

from pathlib import Path

import pytest
import torch
from entry import ROOT, compose_job, load, tiny, write_cohort

from hnseg.config import Job, build, read_job
from hnseg.models import nets

PAIRS = [
    ("head", "plainconv"),
    ("coarse", "plainconv"),
    ("fine", "resenc"),
    ("fine", "segresnet"),
    ("fine", "plainconv"),
]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def assert_builds(job: Job) -> None:
    """Everything the configuration names can be made of it; networks without memory for their weights."""
    with torch.device("meta"):
        settings = job.model.settings
        nets.build(
            settings.target, in_channels=2, out_channels=len(job.stage.classes) + 1, **settings.arguments
        )
    optimizer = build(job.optimizer.step, "optimizer.step")([torch.nn.Parameter(torch.zeros(1))])
    schedule = build(job.optimizer.schedule, "optimizer.schedule")(optimizer)
    assert schedule.get_last_lr()[0] >= 0
    depths = [torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 2, 2, 2)]
    assert torch.isfinite(build(job.loss, "loss")(depths, torch.zeros(1, 4, 4, 4).long()))
    for name, node in (job.augment.of(job.stage.name) | job.scan_augment).items():
        build(node, name)


@pytest.mark.parametrize("group", ["optimizer", "loss", "augment", "scan_augment", "recipe", "scale"])
def test_every_option_builds(group: str) -> None:
    for n, option in enumerate(choices(group)):
        stage, model = PAIRS[n % len(PAIRS)]
        overrides = [f"{group}={option}", "training.ema=0.9"]
        if (stage, model) != ("fine", "plainconv") or group != "scale":
            assert_builds(read_job(compose_job("train", f"stage={stage}", f"model={model}", *overrides)))


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
