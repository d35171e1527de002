"""The entry points: composed and called in this process, or run as a user runs them."""

import importlib.util
import io
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import SimpleITK as sitk
import yaml
from fabricate import volume, write_case
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from hnseg.app import register_files

ROOT = Path(__file__).resolve().parents[1]

# Grids, networks and schedules that fit fabricated cases of 80 x 80 x 90 mm and seconds.
TINY_STAGE = ["stage.size=[16,16,16]", "stage.spacing=[6,6,6]", "training.patch=[16,16,16]"]
SMALL = {"features": [4, 8, 8], "strides": [1, 2, 2], "convolutions": 1, "decoder_convolutions": 1}
SMALL |= {"blocks": [1, 1, 1], "init_filters": 8, "blocks_down": [1, 1, 1], "depths": 2}
MODELS: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text())["model"]["settings"]
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))
}


def small(value: Any, stages: int) -> Any:
    """Lists of a value for each stage are cut to the first stages, and whole numbers to 8."""
    if isinstance(value, list):
        return [small(item, stages) for item in value[:stages]]
    return min(value, 8) if isinstance(value, int) else value


def small_settings(model: str, stages: int) -> dict[str, Any]:
    """Settings that make a network of conf/model small, whatever their names."""
    return {key: small(SMALL.get(key, value), stages) for key, value in MODELS[model].items()}


TINY_MODEL = {
    model: [
        f"model.settings.{key}={value}"
        for key, value in small_settings(model, 2).items()
        if value != settings[key]
    ]
    for model, settings in MODELS.items()
}
BRIEF = ["training.epochs=1", "training.iterations=1", "training.batch_size=2", "training.validate_every=1"]


def compose_job(name: str, *overrides: str) -> DictConfig:
    """The configuration of one job, without Hydra's own node."""
    register_files()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(name, list(overrides))


def load(name: str) -> ModuleType:
    """An entry point as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs an entry point, or the command `hnseg`, in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    program = ["-m", "hnseg"] if script == "hnseg" else [str(ROOT / script)]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def hnseg(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command `hnseg` in this process."""
    from hnseg.cli import main

    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["hnseg", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), chdir(cwd or Path.cwd()):
            main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal, after what the command was about to do."""
    assert done.returncode == 2, done.stderr
    *_, line = done.stderr.splitlines()
    return line


def write_cohort(root: Path, cases: int = 4) -> Path:
    """Fabricated cases of two centres, with head masks."""
    head = np.zeros((30, 40, 40), np.uint8)
    head[10:, 8:32, 8:32] = 1
    (root / "heads").mkdir(parents=True)
    for n in range(cases):
        name = f"{'AB'[n % 2]}-{n}"
        write_case(root, name, seed=n)
        sitk.WriteImage(volume(head, (2, 2, 3)), str(root / "heads" / f"{name}.nii.gz"))
    return root


def tiny(model: str, cohort: Path, runs: Path) -> list[str]:
    """Overrides that train any stage on a fabricated cohort within a second."""
    places = [f"data.root={cohort}", f"data.cache={cohort.parent / 'cache'}", f"runs={runs}"]
    machine = ["trainer.device=cpu", "trainer.precision=float32", "data.folds=2", "data.prepare_workers=1"]
    return [f"model={model}", *TINY_STAGE, *TINY_MODEL[model], *BRIEF, *places, *machine]


def job(cohort: Path, runs: Path, *overrides: str) -> float:
    """Trains the fine stage's resenc in this process; its score."""
    cfg = compose_job("train", "stage=fine", *tiny("resenc", cohort, runs), "logger=csv", *overrides)
    return load("train").main(cfg)


def weights(run_dir: Path) -> dict[str, Any]:
    """The last ones of a run."""
    import torch  # most who ask for entry points do without it

    return torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"]
