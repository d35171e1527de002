"""A training that is killed ends as one that was not, to the last bit."""

import csv
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entry import tiny, write_cohort
from forked import Forked

KILLS = int(os.environ.get("HNSEG_KILLS", "2"))  # more by hand
ARM = Path("hecktor") / "fine_resenc_cte" / "fold_0"
# What a checkpoint knows of the training, all but Lightning's own counters and paths.
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "epoch")


def trained(folder: Path) -> dict[str, Any]:
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    return {key: stored[key] for key in STATE if key in stored}


def metrics(folder: Path) -> list[dict[str, str]]:
    """Rows as they lie on disk, without those of the machine's time and memory."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {
                key: value
                for key, value in row.items()
                if key.startswith(("train/loss", "val", "lr")) or key == "epoch"
            }
            for row in csv.DictReader(file)
        ]


def assert_same(a: Any, b: Any) -> None:
    """Equal to the last bit, however nested."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Moments are spread over the time of a whole training; every second is amid a file."""
    cohort = write_cohort(tmp_path / "scans")
    length = ["training.epochs=6", "training.iterations=3", "training.ema=0.9"]
    settings = ["stage=fine", *length, "augment=nnunet", "trainer.deterministic=true", "logger=csv"]
    command = [*tiny("resenc", cohort, tmp_path / "runs"), *settings]
    whole, parts = (tmp_path / name / ARM for name in ("whole", "parts"))
    with closing(Forked("train.py", *command)) as train:
        span = train(whole, f"runs={tmp_path / 'whole'}")
        assert span is not None
        assert len(metrics(whole)) >= 6
        draw, kills = np.random.default_rng(), 0
        while kills < KILLS:
            moment = draw.uniform(0, 0.8 * span)
            ended = train(parts, f"runs={tmp_path / 'parts'}", moment=moment, amid=kills % 2 == 1)
            kills += ended is None
            if ended is not None:
                assert_same(trained(parts), trained(whole))
                shutil.rmtree(parts)
        train(parts, f"runs={tmp_path / 'parts'}")
    assert_same(trained(parts), trained(whole))
    assert metrics(parts) == metrics(whole)
    assert (parts / "score.json").read_bytes() == (whole / "score.json").read_bytes()
