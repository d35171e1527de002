"""A tiny application behind the wrapper, run as a user runs it: from another folder, in its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from hnseg.errors import HnsegError
from hnseg.hydra_app import run
from hnseg.run_folder import Score


@dataclass
class Schema:
    stage: Any = None
    fold: int = 0
    fail: str = ""
    out: str = "jobs"


def main(config):
    Path(config.out).mkdir(exist_ok=True)
    (Path(config.out) / f"{config.stage.name}-{config.fold!r}").touch()
    if config.fail in ("every", f"fold {config.fold}"):
        raise HnsegError("data.root=/scans: no such folder; set data.root=PATH")
    if config.fail == "ctrl-c":
        raise KeyboardInterrupt
    if config.fail in ("defect", f"defect {config.fold}"):
        raise RuntimeError("shapes differ")
    return Score(0.5 + config.fold / 10, "finished" if config.fold else "fresh", Path(config.out))


if __name__ == "__main__":
    ConfigStore.instance().store(name="schema", node=Schema)
    run(main, "train")
    assert "torch" not in sys.modules
"""
CONFIG = """
defaults: [schema, {stage: fine}, _self_, {sweeps: null}]
fold: 0
hydra:
  callbacks:
    folds: {_target_: hnseg.folds.ExpandFolds}
"""
SWEEP = """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      fold: FOLDS
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("app")
    files = {
        "train.py": APP,
        "conf/train.yaml": CONFIG,
        "conf/stage/fine.yaml": "name: fine",
        "conf/stage/coarse.yaml": "name: coarse",
        "sweeps/folds.yaml": SWEEP.replace("FOLDS", "0-2,7"),
        "sweeps/backwards.yaml": SWEEP.replace("FOLDS", "4-0"),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root / "train.py"


class Shell:
    """Runs the application in a folder that is not its own."""

    def __init__(self, app: Path, folder: Path) -> None:
        self.app, self.folder = app, folder

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
        return subprocess.run(
            [sys.executable, str(self.app), *arguments],
            cwd=self.folder,
            env=clean | {"OMP_NUM_THREADS": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def jobs(self) -> set[str]:
        return {job.name for job in (self.folder / "jobs").glob("*")}


@pytest.fixture
def shell(app: Path, tmp_path: Path) -> Shell:
    return Shell(app, tmp_path)


def refused(run: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert line.startswith("train.py: error: ")
    return line


def test_a_range_of_folds_becomes_as_many_jobs_of_a_typed_fold(shell: Shell) -> None:
    run = shell("stage=coarse", "fold=0-2,7", "-m")
    assert run.returncode == 0, run.stderr
    assert shell.jobs() == {"coarse-0", "coarse-1", "coarse-2", "coarse-7"}


@pytest.mark.parametrize("arguments", ["-m stage=coarse fold=0-1", "stage=coarse --multirun fold=0-1"])
def test_the_flag_may_stand_anywhere(shell: Shell, arguments: str) -> None:
    run = shell(*arguments.split())
    assert run.returncode == 0, run.stderr
    assert shell.jobs() == {"coarse-0", "coarse-1"}


@pytest.mark.parametrize(
    ("arguments", "shown", "told"),
    [
        ("stage=coarse --cfg job fold=2", "of-coarse-2", ""),
        ("stage=coarse,fine fold=2-4 -m --cfg job", "of-coarse-2", "the first job: stage=coarse fold=2"),
        ("-m -c=job stage=coarse fold=2", "of-coarse-2", ""),
        ("sweeps=folds --cfg job stage=coarse", "of-coarse-0", "the first job: fold=0"),
        ("sweeps=folds --cfg job fold=3,4 -m --resolve", "of-fine-3", "the first job: fold=3"),
    ],
)
def test_the_configuration_of_any_command_is_shown_with_its_numbers(
    shell: Shell, arguments: str, shown: str, told: str
) -> None:
    run = shell("out=of-${stage.name}-${fold}", *arguments.split())
    assert run.returncode == 0, run.stderr
    assert f"out: {shown}\n" in run.stdout
    assert run.stderr == (f"train.py: {told}\n" if told else "")
    assert shell.jobs() == set()


def test_a_sweep_file_is_found_from_any_folder_and_takes_the_same_text(shell: Shell) -> None:
    run = shell("sweeps=folds")
    assert run.returncode == 0, run.stderr
    assert shell.jobs() == {"fine-0", "fine-1", "fine-2", "fine-7"}


def test_the_command_line_has_the_last_word_over_the_sweep_file(shell: Shell) -> None:
    run = shell("sweeps=folds", "fold=3-4", "stage=coarse,fine", "-m")
    assert run.returncode == 0, run.stderr
    assert shell.jobs() == {"coarse-3", "coarse-4", "fine-3", "fine-4"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fold=0-2"], ["fold=0,1,2", "add -m"]),
        (["fold=4-0", "-m"], ["fold=4-0", "write 0-4"]),
        (["fold=x"], ["fold=x", "a number or all"]),
        (["sweeps=foldz"], ["sweeps=foldz", "backwards, folds"]),
        (["sweeps=backwards"], ["hydra.sweeper.params.fold=4-0"]),
        (["stage=fine,finest", "-m"], ["stage=finest", "coarse, fine"]),
        (["stage=null"], ["stage=null: choose one of coarse, fine"]),
        (["stagee=fine"], ["stagee", "did you mean stage?"]),
        (["fold=0-1", "--cfg", "job"], ["fold=0,1", "add -m"]),
        (["stage=fine", "--cfg"], ["--cfg", "expected one argument"]),
        (["--mulitrun", "stage=fine"], ["unrecognized arguments: --mulitrun"]),
        (["fail=every"], ["data.root=/scans: no such folder; set data.root=PATH"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(shell: Shell, arguments: list[str], parts: list[str]) -> None:
    line = refused(shell(*arguments))
    for part in parts:
        assert part in line


def test_a_job_that_fails_in_a_sweep_is_named_and_the_others_still_run(shell: Shell) -> None:
    line = refused(shell("fail=fold 1", "fold=0-2", "-m"))
    assert "data.root=/scans" in line
    assert "fold=1" in line
    assert shell.jobs() == {"fine-0", "fine-1", "fine-2"}


def table(stdout: str) -> list[list[str]]:
    """The rows of a sweep's table, and its title."""
    lines = stdout.splitlines()
    (head,) = (n for n, line in enumerate(lines) if line.startswith("job "))
    return [line.split() for line in lines[head - 1 :]]


def test_a_sweep_ends_with_a_table_of_its_jobs(shell: Shell) -> None:
    run = shell("stage=coarse", "fold=0-2", "fail=fold 1", "-m")
    title, _, *rows, failure = table(run.stdout)
    assert " ".join(title) == "1 trained, 1 failed, 1 skipped"
    assert rows == [
        ["fold=0", "trained", "0.5000", "jobs"],
        ["fold=1", "failed"],
        ["fold=2", "skipped", "0.7000", "jobs"],
    ]
    assert " ".join(failure).startswith("failed: fold=1: data.root=/scans: no such folder")
    assert run.returncode == 2


def test_a_sweep_without_failures_ends_well(shell: Shell) -> None:
    run = shell("fold=0-1", "-m")
    assert (run.returncode, run.stderr) == (0, "")
    assert [row[0] for row in table(run.stdout)[2:]] == ["fold=0", "fold=1"]


def test_a_defect_among_mistakes_is_the_one_that_is_shown(shell: Shell) -> None:
    """Six jobs in three batches: what fails in one does not stop the next."""
    run = shell("fold=0-2", "fail=fold 0,defect 1", "-m", "+hydra.sweeper.max_batch_size=2")
    assert run.returncode == 1
    assert len(shell.jobs()) == 3
    assert "RuntimeError: shapes differ" in run.stderr
    assert "fold=1" in run.stderr.splitlines()[-1]
    assert "1 more failed" in run.stderr.splitlines()[-1]
    assert sum(row[:1] == ["failed:"] for row in table(run.stdout)) == 2


def test_ctrl_c_in_a_job_ends_the_sweep(shell: Shell) -> None:
    run = shell("fold=0-2", "fail=ctrl-c", "-m")
    assert (run.returncode, run.stderr) == (130, "train.py: stopped\n")
    assert shell.jobs() == {"fine-0"}


def test_a_defect_keeps_its_traceback(shell: Shell) -> None:
    run = shell("fail=defect")
    assert run.returncode == 1
    assert "Traceback" in run.stderr
    assert "RuntimeError: shapes differ" in run.stderr


def test_the_traceback_of_a_mistake_is_there_on_request(shell: Shell) -> None:
    run = shell("fail=every", HYDRA_FULL_ERROR="1")
    assert run.returncode == 1
    assert "Traceback" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--help"], "sweeps: backwards, folds"),
        (["--cfg", "job", "stage=coarse"], "name: coarse"),
        (["--info", "defaults"], "stage/fine"),
    ],
)
def test_hydras_own_commands_work(shell: Shell, arguments: list[str], part: str) -> None:
    run = shell(*arguments)
    assert run.returncode == 0, run.stderr
    assert part in run.stdout
    assert shell.jobs() == set()


def test_the_shell_completes_choices(shell: Shell) -> None:
    run = shell("-sc", "query=bash", COMP_LINE="python train.py fold=0-2 sweeps=")
    assert run.stdout.split() == ["sweeps=backwards", "sweeps=folds"]


@pytest.mark.parametrize(
    ("launcher", "plugin", "settings"),
    [
        ("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        pytest.param("submitit_local", "hydra_submitit_launcher", [], marks=pytest.mark.slow),
        pytest.param(
            "ray",
            "hydra_ray_launcher",
            ["+hydra.launcher.ray.init.num_cpus=1", "+hydra.launcher.ray.init.include_dashboard=false"],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("only_cluster")
def test_folds_run_under_every_launcher(
    shell: Shell, launcher: str, plugin: str, settings: list[str]
) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="pip install hnseg[launchers]")
    arguments = [f"hydra/launcher={launcher}", *settings, f"out={shell.folder / 'jobs'}", "fail=fold 1"]
    run = shell(*arguments, "fold=0-2", "-m")
    assert run.returncode == 2, run.stderr
    assert shell.jobs() == {"fine-0", "fine-1", "fine-2"}
    (line,) = (line for line in run.stderr.splitlines() if "error" in line)
    assert line.startswith("train.py: error: data.root=/scans")
    assert "fold=1" in line
    assert [row[1:3] for row in table(run.stdout)[2:5]] == [
        ["trained", "0.5000"],
        ["failed"],
        ["skipped", "0.7000"],
    ]
