"""The one door between a command line, Hydra and the function that does the work."""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from hnseg.command_line import arrange
from hnseg.errors import HnsegError
from hnseg.hydra_errors import explain
from hnseg.multirun import collect_jobs, report_jobs

REPOSITORY = Path(__file__).resolve().parents[1]
_DEFAULTS = re.compile(r"^defaults:.*\n(?: .*\n)*", re.MULTILINE)


def run(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Runs a function under Hydra, from any working directory and with any launcher.

    The configs are those of the folder `conf` beside the file that defines `main`; the YAML files in
    the folder `sweeps` beside it make up the group `sweeps`. Folds may be written as `fold=0-4,7`.
    A job that fails does not stop the others of its sweep, which ends with a table of them all.
    A user's mistake becomes one line on stderr and exit status 2; `HYDRA_FULL_ERROR=1` in the
    environment shows the traceback instead.

    Args:
        main: takes the composed config of one job, and may return a score for a sweeper to optimise.
        config_name: the primary config, without `.yaml`.
    """
    root = Path(inspect.getfile(main)).resolve().parent
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its way
    jobs = collect_jobs()
    # Hydra makes a warning of a callback that fails: a sweep would go on with folds nobody can read.
    warnings.filterwarnings("error", message="Callback ExpandFolds")
    groups: list[str] = []
    try:
        groups = _groups(root, config_name)
        sys.argv[1:] = arrange(sys.argv[1:], root / "sweeps")
        _require_options(sys.argv[1:], root, groups)
        _register_sweeps(root / "sweeps")
        _register_help(root)
        hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name=config_name)(main)()
        report_jobs(jobs)
    except KeyboardInterrupt:  # where no training turned it into an exit of its own
        print(f"{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = None if wants_traceback else explain(error, groups)
        if line is None:
            raise
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
        sys.exit(2)


def compose_job(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    """The configuration that one command would run with, from the `conf` beside the package.

    Raises:
        HnsegError: An override that does not fit, in the words the entry points use.
    """
    root = REPOSITORY
    if not (root / "conf" / f"{config_name}.yaml").exists():
        raise HnsegError(f"{root / 'conf'}: not there; install hnseg from its repository (pip install -e .)")
    _register_sweeps(root / "sweeps")
    groups = _groups(root, config_name)
    _require_options(overrides, root, groups)
    try:
        with hydra.initialize_config_dir(str(root / "conf"), version_base="1.3"):
            return hydra.compose(config_name, list(overrides))
    except Exception as error:
        line = explain(error, groups)
        if line is None:
            raise
        raise HnsegError(line) from error


def _groups(root: Path, config_name: str) -> list[str]:
    """The groups that a config chooses from."""
    defaults = OmegaConf.load(root / "conf" / f"{config_name}.yaml").defaults
    keys = [str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry]
    return [key.removeprefix("optional ") for key in keys if "hydra/" not in key]


def _require_options(overrides: Sequence[str], root: Path, groups: Sequence[str]) -> None:
    """Refuses null for a group, of which Hydra says neither the name nor the line."""
    for override in overrides:
        group, _, option = override.partition("=")
        if option.lower() == "null" and group in groups:
            folder = root / ("sweeps" if group == "sweeps" else f"conf/{group}")
            known = sorted(path.stem for path in folder.rglob("*.yaml"))
            raise HnsegError(f"{override}: choose one of {', '.join(known)}, or leave it out")


def _register_help(root: Path) -> None:
    """What a config's `hydra.help.template` may quote, so that `--help` says what the files say.

    `${commented:NAME}` is a config file with its comments, without its defaults and `hydra`;
    `${options:GROUP}` the choices of a group.
    """

    def commented(name: str) -> str:
        text = (root / "conf" / f"{name}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
        return _DEFAULTS.sub("", text).strip().replace("$", "$$")  # the template is Python's too

    def options(group: str) -> str:
        folder = root / "sweeps" if group == "sweeps" else root / "conf" / group
        return "|".join(sorted(path.stem for path in folder.glob("*.yaml")))

    OmegaConf.register_new_resolver("commented", commented, replace=True)
    OmegaConf.register_new_resolver("options", options, replace=True)


def _register_sweeps(folder: Path) -> None:
    """Makes the YAML files of a folder the options of the group `sweeps`.

    The folder's parent could be a search path instead, but then every folder in it (data, runs,
    environments) would be a config group, which `--help` walks through.
    """
    for path in sorted(folder.glob("*.yaml")):
        ConfigStore.instance().store(
            group="sweeps",
            name=path.stem,
            node=OmegaConf.load(path),
            package="_global_",
            provider=str(folder),
        )
