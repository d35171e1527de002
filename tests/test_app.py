"""Command lines as typed: folds, sweeps, what Hydra shows, and mistakes in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from entry import ROOT, run
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from hnseg import app
from hnseg.app import expand, expand_arguments, explain
from hnseg.errors import HnsegError


class Done(NamedTuple):
    """How a command ended, and the jobs that it ran."""

    status: int | str | None
    out: str
    err: str
    jobs: list[str]


Shell = Callable[..., Done]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """Runs a function in the place of train.py's: it notes stage and fold, and fails where it is to."""
    jobs: list[str] = []

    def main(config: DictConfig) -> float:
        jobs.append(f"{config.stage.name}-{config.fold!r}")
        match config.variables.get("fail"):
            case "every":
                raise HnsegError("data.root=/scans: no such folder; set data.root=PATH")
            case "ctrl-c":
                raise KeyboardInterrupt
            case str(text) if text == f"mistake {config.fold}":
                raise HnsegError("data.root=/scans: no such folder; set data.root=PATH")
            case str(text) if text == f"defect {config.fold}":
                raise RuntimeError("shapes differ")
        return 0.5

    def typed(*arguments: str, script: str = "train") -> Done:
        jobs.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        status: int | str | None = 0
        try:
            app.run(main, script)
        except SystemExit as end:
            status = end.code
        told = capsys.readouterr()
        return Done(status, told.out, told.err, list(jobs))

    return typed


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        ("stage=coarse fold=0-2,7 -m", ["coarse-0", "coarse-1", "coarse-2", "coarse-7"]),
        ("-m stage=coarse fold=0-1", ["coarse-0", "coarse-1"]),
        ("stage=coarse --multirun fold=0-1,all", ["coarse-0", "coarse-1", "coarse-'all'"]),
        ("sweeps=folds", [f"fine-{fold}" for fold in range(5)]),
        ("sweeps=folds fold=3-4 stage=coarse,fine -m", ["coarse-3", "fine-3", "coarse-4", "fine-4"]),
    ],
)
def test_a_range_of_folds_becomes_as_many_jobs(shell: Shell, arguments: str, jobs: list[str]) -> None:
    done = shell(*arguments.split())
    assert done.status == 0
    assert sorted(done.jobs) == sorted(jobs)


@pytest.mark.parametrize(
    ("arguments", "shown", "first"),
    [
        ("stage=coarse --cfg job fold=2", "of-coarse-2", ""),
        ("stage=coarse,fine fold=2-4 -m --cfg job", "of-coarse-2", "the first job: stage=coarse fold=2"),
        ("-m -c=job stage=coarse fold=2", "of-coarse-2", ""),
        ("sweeps=folds --cfg job stage=coarse", "of-coarse-0", "the first job: fold=0"),
        ("sweeps=folds --cfg job fold=3,4 -m --resolve", "of-fine-3", "the first job: fold=3"),
    ],
)
def test_the_configuration_of_any_command_is_shown_resolved(
    shell: Shell, arguments: str, shown: str, first: str
) -> None:
    done = shell("name=of-${stage.name}-${fold}", *arguments.split())
    assert f"\nname: {shown}\n" in done.out
    assert done.err == (f"{first}\n" if first else "")
    assert not done.jobs


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["fold=0-2"], ["fold=0,1,2", "add -m"]),
        (["fold=4-0", "-m"], ["fold=4-0", "write 0-4"]),
        (["fold=x"], ["fold=x", "a number or all"]),
        (["sweeps=foldz"], ["sweeps/foldz", "folds; gating"]),
        (["stage=fine,finest", "-m"], ["stage/finest", "coarse; fine; localiser"]),
        (["stagee=fine"], ["stagee"]),
        (["training.epoch=3"], ["training.epoch"]),
        (["engine=ray"], ["engine"]),
        (["data.root=my scans (1)"], ["data.root=my scans (1)", """'KEY="VALUE"'"""]),
        (["fold=0-1", "--cfg", "job"], ["fold=0,1", "add -m"]),
        (["+variables.fail=every"], ["data.root=/scans: no such folder; set data.root=PATH"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(shell: Shell, arguments: list[str], parts: list[str]) -> None:
    done = shell(*arguments)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith("train.py: error: ")
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("script", "keys", "offers"),
    [
        (
            "train",
            ["fold", "init_from", "head_masks", "precision", "pictures_every", "roi_minmax"],
            ["stage=coarse|fine|localiser", "sweeps=ablation|", "${stage.name}_${model.name}"],
        ),
        ("infer", ["cases", "decision", "trainer", "last_stage", "workers"], ["engine=local|ray", "no_cte"]),
    ],
)
def test_help_explains_each_key_and_offers_the_choices(
    shell: Shell, script: str, keys: list[str], offers: list[str]
) -> None:
    shown = shell("--help", script=script).out
    for key in keys:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{key}:") or f" {key}: " in line]
        assert "#" in line
    for text in offers:
        assert text in shown


def test_a_job_that_fails_in_a_sweep_is_named_and_the_others_still_run(shell: Shell) -> None:
    done = shell("+variables.fail=mistake 1", "fold=0-2", "-m")
    assert done.jobs == ["fine-0", "fine-1", "fine-2"]
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert "data.root=/scans: no such folder" in line
    assert "fold=1" in line


def test_a_defect_keeps_its_traceback(shell: Shell) -> None:
    with pytest.raises(RuntimeError, match="shapes differ"):
        shell("+variables.fail=defect 0")
    done = shell("+variables.fail=defect 1", "fold=0-2", "-m")
    assert (done.status, len(done.jobs)) == (1, 3)
    assert "Traceback" in done.err
    assert "RuntimeError: shapes differ" in done.err


def test_ctrl_c_in_a_job_ends_the_sweep(shell: Shell) -> None:
    done = shell("fold=0-2", "+variables.fail=ctrl-c", "-m")
    assert (done.status, done.err, done.jobs) == (130, "train.py: stopped\n", ["fine-0"])


def test_the_shell_completes_choices(tmp_path: Path) -> None:
    shown = run("train.py", "-sc", "query=bash", cwd=tmp_path, COMP_LINE="python train.py fold=0-2 sweeps=fo")
    assert shown.stdout.split() == ["sweeps=folds"]


@pytest.mark.parametrize(
    ("launcher", "plugin", "settings"),
    [
        ("joblib", "hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "hydra_submitit_launcher", []),
        (
            "ray",
            "hydra_ray_launcher",
            ["+hydra.launcher.ray.init.num_cpus=1", "+hydra.launcher.ray.init.include_dashboard=false"],
        ),
    ],
)
@pytest.mark.slow
@pytest.mark.usefixtures("only_cluster")
def test_folds_run_under_every_launcher(
    tmp_path: Path, launcher: str, plugin: str, settings: list[str]
) -> None:
    """Each job gets as far as the missing data."""
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="pip install hnseg[launchers]")
    sweep = f"hydra.sweep.dir={tmp_path}"
    done = run("train.py", f"hydra/launcher={launcher}", *settings, sweep, "fold=0-1", "-m", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "train.py: error: data.root" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("3", "3"),
        ("0-4,7", "0,1,2,3,4,7"),
        ("2-2", "2"),
        ("8-11", "8,9,10,11"),
        ("0-2, 1-3", "0,1,2,3"),
        ("0-1,all", "0,1,all"),
        ("range(0,5)", "range(0,5)"),
        ("${oc.env:FOLD}", "${oc.env:FOLD}"),
    ],
)
def test_ranges_are_spelt_out(text: str, folds: str) -> None:
    assert expand(text) == folds


@pytest.mark.parametrize("text", ["x", "", "0-", "-1", "-", "0--2", "0-4-7", "0,,2", "1.5", "[0,1]", "All"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(HnsegError, match="number or all"):
        expand(text)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=6))
def test_exactly_the_folds_of_the_ranges_each_once(ranges: list[tuple[int, int]]) -> None:
    text = ",".join(f"{first}-{first + length}" for first, length in ranges)
    folds = [int(fold) for fold in expand(text).split(",")]
    assert len(folds) == len(set(folds))
    assert set(folds) == {first + step for first, length in ranges for step in range(length + 1)}


def test_only_the_overrides_of_fold_are_touched() -> None:
    others = ["stage=fine", "-m", "data.fold=0-4", "folds=0-4", "~fold", "name=fold=0-4", "--cfg", "job"]
    assert expand_arguments(others) == others
    assert expand_arguments(["fold=0-2", "+fold=0-1"]) == ["fold=0,1,2", "+fold=0,1"]


def test_a_broken_yaml_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("fold: [0\nseed: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"), pytest.raises(Exception) as mistake:  # noqa: PT011
        compose("broken")
    line = explain(mistake.value)
    assert line is not None
    assert str(tmp_path / "broken.yaml") in line
    assert "\n" not in line


def refuse() -> None:
    raise HnsegError("patch=[5, 5, 5]: does not fit")


def test_a_refusal_inside_a_constructor_speaks_for_itself() -> None:
    config = OmegaConf.create({"_target_": f"{__name__}.refuse"})
    with pytest.raises(InstantiationException) as mistake:
        instantiate(config)
    assert explain(mistake.value) == "patch=[5, 5, 5]: does not fit"


def test_a_key_that_the_code_gets_wrong_is_a_defect() -> None:
    config: Any = OmegaConf.create({"fold": 0})
    OmegaConf.set_struct(config, True)
    with pytest.raises(AttributeError) as defect:
        config.flod  # noqa: B018
    assert explain(defect.value) is None
    assert explain(RuntimeError("shapes differ")) is None


def test_every_sweep_file_composes() -> None:
    for path in (ROOT / "sweeps").glob("*.yaml"):
        assert app.read_grid(path.stem), path
