"""hnseg profile: steps that are counted, and advice that follows from them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from entry import tiny, write_cohort
from typer.testing import CliRunner

from hnseg.cli import app
from hnseg.config import compose_job
from hnseg.data.datamodule import Loading
from hnseg.errors import HnsegError
from hnseg.training.profile import Profile, advice, profile


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("profile")
    return [
        "stage=fine",
        *tiny("resenc", write_cohort(folder / "scans"), folder / "runs"),
        "training.batch_size=2",
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_job_is_measured_and_its_cache_stays(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """Parts of a batch are counted as they are loaded."""
    monkeypatch.chdir(tmp_path)
    length = ["training.epochs=100", "training.iterations=10", f"trainer.accumulate={accumulate}"]
    found = profile([*overrides, *length, "data.cache=cache"], steps=5)
    assert not found.synthetic
    assert (found.steps, found.samples) == (5, 10 // accumulate)
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.hours == pytest.approx(1000 * accumulate * found.total / 5 / 3600)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_several_processes_are_refused(overrides: list[str]) -> None:
    with pytest.raises(HnsegError, match=r"trainer\.processes=auto: .* set trainer\.processes=1"):
        profile([*overrides, "trainer=ddp"], steps=1)


@pytest.mark.slow
def test_without_a_cohort_the_command_makes_one_up(overrides: list[str]) -> None:
    nowhere = [one for one in overrides if not one.startswith(("data.root", "data.cache", "data.folds"))]
    done = CliRunner().invoke(app, ["profile", *nowhere, "--steps", "2"])
    assert done.exit_code == 0, done.output
    assert "fine_resenc_cte: 2 batches of 2 x" in " ".join(done.output.split())
    for text in ("forward", "backward", "On synthetic patients:", "samples/s", "What would help:"):
        assert text in done.output


def figures(**changes: object) -> Profile:
    """Of a training on a GPU that is busy."""
    found = Profile(
        job=compose_job([]),
        synthetic=False,
        device=torch.device("cuda"),
        precision="bfloat16",
        loading=Loading(4, pin=True),
        steps=10,
        seconds={"wait": 0.1, "forward": 3.0, "backward": 6.0, "update": 0.9},
        peak_mib=1000.0,
        gpu_peak_mib=10_000.0,
    )
    return replace(found, **changes)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 16 GiB with bfloat16."""

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def test_advice_follows_from_the_figures(card: None) -> None:
    assert advice(figures()) == ["nothing stands out: the time is the network's"]
    (starved,) = advice(figures(seconds={"wait": 5.0, "forward": 2.0, "backward": 2.0, "update": 1.0}))
    assert starved.startswith("50% of the time goes into waiting for batches: data.workers above 4")
    (slow,) = advice(figures(precision="float32"))
    assert slow == "it computes in float32: trainer.precision=auto takes bfloat16 here"
    (full,) = advice(figures(gpu_peak_mib=15.5 * 1024))
    assert "trainer.checkpointing=true or trainer.accumulate=2" in full
    compose_job(["augment.device=cuda", "trainer.checkpointing=true", "trainer.accumulate=2"])  # they exist
