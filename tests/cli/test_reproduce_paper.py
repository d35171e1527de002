"""`hnseg reproduce-paper`: its commands in order, their cost, and that it stops at the first that fails."""

from pathlib import Path

import pytest
from entry import hnseg, refused, write_cohort

from hnseg.cli.reproduce import steps
from hnseg.config import compose_job
from hnseg.training.profile import training_flops


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "scans", 10)


def test_every_case_is_scored_by_networks_of_folds_that_lack_it(cohort: Path, tmp_path: Path) -> None:
    commands = steps(cohort, ["recipe=best"], tmp_path)
    assert [command[0] for command in commands] == [
        *("train", "export", "infer"),  # the localiser, and its head masks
        *("train", "train", "train", "export", "infer", "evaluate"),
    ]
    trained = {(command[1], command[2]): command for command in commands if command[0] == "train"}
    assert "fold=all" in trained["stage=localiser", "model=plainconv"]
    for networks in (("coarse", "plainconv"), ("fine", "resenc"), ("fine", "segresnet")):
        command = trained[f"stage={networks[0]}", f"model={networks[1]}"]
        assert {"fold=0-4", "-m", "recipe=best", f"data.head_masks={tmp_path / 'head_masks'}"} <= {*command}
    assert "out_of_fold=true" in commands[-2]
    (cohort / "heads").rename(cohort / "others")
    assert steps(cohort, [], tmp_path)[0][:2] == ["propose-heads", str(cohort)]


def test_operations_of_a_training_are_those_of_its_convolutions() -> None:
    """A network of two levels on 8³ voxels: from 1 channel to 4, down to 8, up to 4, 8 to 4, 2 classes."""
    settings = {"features": "[4,8]", "strides": "[1,2]", "convolutions": 1, "decoder_convolutions": 1}
    network = [f"model.settings.{key}={value}" for key, value in settings.items()]
    length = ["training.batch_size=3", "training.iterations=5", "training.epochs=7"]
    job = compose_job(["stage=localiser", "model=plainconv", *network, "training.patch=[8,8,8]", *length])
    channels = 27 * 1 * 4 * 8**3 + 27 * 4 * 8 * 4**3 + 8 * 4 * 8 * 4**3 + 27 * 8 * 4 * 8**3 + 4 * 2 * 8**3
    # A multiplication and an addition each; forward, and two gradients; patches of all steps.
    assert training_flops(job, cases=10) == 2 * channels * 3 * (3 * 5 * 7)


def test_the_first_command_that_fails_ends_it(cohort: Path, tmp_path: Path) -> None:
    for mask in (cohort / "heads").iterdir():
        mask.unlink()
    done = hnseg("reproduce-paper", cohort, "--out", tmp_path / "paper", cwd=tmp_path)
    assert "step 1 ended with status 2" in refused(done)
    assert not (tmp_path / "paper").exists()
