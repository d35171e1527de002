"""What a W&B run that is taken up again is told of the past."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from hnseg.training.pictures import pictures
from hnseg.training.wandb_runs import StepLogger


@pytest.mark.parametrize("paints", [True, False])
def test_pictures_painted_offline_do_not_go_online_unasked(tmp_path: Path, paints: bool) -> None:
    path = tmp_path / "pictures" / "A-1" / "step_2.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(path)
    assert len(list(pictures(tmp_path))) == 1
    logged: dict[int, dict[str, Any]] = {}
    logger: Any = SimpleNamespace(log_metrics=lambda values, step: logged.update({step: values}))
    StepLogger.replay(logger, [{"step": "1", "val/dice": "0.5"}], tmp_path, paints=paints)
    assert logged[1] == {"val/dice": 0.5}
    assert (2 in logged) is paints
