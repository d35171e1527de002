"""From a command line to the function that does the work: Hydra, fold ranges, errors in one line."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.main import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from rich.markup import escape
from rich.table import Table
from yaml import YAMLError

from hnseg.errors import HnsegError
from hnseg.files import table_console

_ITEM = re.compile(r"all|([0-9]+)(?:-([0-9]+))?")
_OVERRIDE = re.compile(r"(\+{0,2}fold)=(.*)", re.DOTALL)
_SWEEP_KEYS = ("fold", "+fold", "++fold")


def expand(text: str, key: str = "fold") -> str:
    """Spells out the ranges in a list of folds.

    Args:
        text: folds separated by commas: numbers, rising ranges with both ends included, or `all`
            (train on every case). Hydra's functions and interpolations, such as `range(0,5)` or
            `${oc.env:FOLD}`, are left to Hydra.
        key: where the text was given, for the error's sake.

    Returns:
        The folds, separated by commas, each named once and in the order given: `0-2,7` → `0,1,2,7`.

    Raises:
        HnsegError: something in the list is neither a number, a rising range nor `all`.
    """
    if "(" in text or "${" in text:
        return text
    folds: list[str] = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise HnsegError(f"{key}={text}: fold is a number or all; write several as 0-4 or 0,2,7")
        first, last = match.groups()
        if first is None:
            folds.append("all")
        elif int(last or first) < int(first):
            raise HnsegError(f"{key}={text}: {item.strip()} runs backwards; write {last}-{first}")
        else:
            folds.extend(str(fold) for fold in range(int(first), int(last or first) + 1))
    return ",".join(dict.fromkeys(folds))


def expand_arguments(argv: list[str]) -> list[str]:
    """Spells out the ranges in the `fold=`, `+fold=` and `++fold=` overrides of a command line.

    Args:
        argv: the arguments after the program's name.

    Returns:
        The same arguments, in a form that Hydra sweeps over.

    Raises:
        HnsegError: see `expand`.
    """
    return [
        f"{match[1]}={expand(match[2])}" if (match := _OVERRIDE.fullmatch(argument)) else argument
        for argument in argv
    ]


class ExpandFolds(Callback):
    """Spells out the ranges in `hydra.sweeper.params.fold`, which is where a sweep file names its folds.

    Hydra starts the callbacks before it builds the sweeper out of the same config, so that what is
    written here is what the sweeper reads.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Rewrites the sweeper's folds in place.

        Args:
            config: the composed config, with its `hydra` node.
            **kwargs: unused; the rest of Hydra's signature.

        Raises:
            HnsegError: see `expand`. Hydra turns it into a warning; `hnseg.hydra_app` into an exit.
        """
        params = OmegaConf.select(config, "hydra.sweeper.params")
        for key in _SWEEP_KEYS:
            if params and key in params:
                params[key] = expand(str(params[key]), f"hydra.sweeper.params.{key}")


def arrange(arguments: Sequence[str], sweeps: Path) -> list[str]:
    """Spells out folds, puts flags behind the overrides, and lets `--cfg` and `--info` show what would run.

    argparse gives up on overrides that stand on both sides of a flag. Hydra shows one job alone, and
    refuses to where there would be several: of those the first is shown, and stderr says so. `--cfg job`
    has its interpolations resolved.

    Args:
        arguments: Those after the program's name.
        sweeps: The folder of sweep files.

    Raises:
        HnsegError: A flag that is unknown or lacks its value, folds that cannot be read (see
            `hnseg.folds.expand`).
        OverrideParseException: An override of a command that is shown is not in Hydra's grammar.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(arguments)
    flags = [text for text in arguments if text not in given.overrides]
    overrides = expand_arguments(given.overrides)
    if given.cfg is None and given.info is None:
        return [*overrides, *flags]
    grid = read_grid(sweeps, overrides)
    if given.multirun or grid:
        overrides = _first_job([*grid, *overrides])
    flags = [text for text in flags if text not in ("-m", "--multirun")]
    return [*overrides, *flags, *(["--resolve"] if given.cfg == "job" else [])]


def read_grid(sweeps: Path, overrides: Sequence[str]) -> list[str]:
    """What the sweep file that `sweeps=NAME` chooses sweeps over, as overrides with several values."""
    names = [text.removeprefix("sweeps=") for text in overrides if text.startswith("sweeps=")]
    path = sweeps / f"{names[-1] if names else None}.yaml"
    grid = OmegaConf.load(path).hydra.sweeper.params if path.exists() else {}
    return expand_arguments([f"{key}={value}" for key, value in grid.items()])


def _first_job(overrides: Sequence[str]) -> list[str]:
    """The overrides of a sweep's first job, the last of each key; stderr says which values it has."""
    parsed = {one.get_key_element(): one for one in OverridesParser.create().parse_overrides([*overrides])}
    swept = {
        key: f"{key}={next(one.sweep_string_iterator())}"
        for key, one in parsed.items()
        if one.is_discrete_sweep()
    }
    if swept:
        print(f"{Path(sys.argv[0]).name}: the first job: {' '.join(swept.values())}", file=sys.stderr)
    return [swept.get(key, str(one.input_line)) for key, one in parsed.items()]


def _refuse(message: str) -> NoReturn:
    raise HnsegError(f"{message}; overrides are KEY=VALUE, and --hydra-help lists the flags")


# Hydra's own grammar reads what stands behind the sign of equality.
_QUOTES = """; a value with spaces, commas, brackets or accents is written 'KEY="VALUE"'"""
_UNKNOWN_GROUP = re.compile(r"Could not override '([^']+)'")  # of another entry point, for instance
_UNKNOWN_KEY = (ConfigAttributeError, ConfigKeyError)


def explain(error: Exception, groups: Iterable[str] = ()) -> str | None:
    """Tells a user's mistake in one line.

    Args:
        error: what a Hydra application ended with.
        groups: the names of the config groups, to suggest the one meant.

    Returns:
        The line, without the program's name; None where the error is a defect rather than a
        mistake, and deserves its traceback.
    """
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, HnsegError):
            return str(cause) + _job_of(error)
    if isinstance(error, YAMLError):
        return _on_one_line(str(error))
    if isinstance(error, _UNKNOWN_KEY) or not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return _unknown_option(cause)
        if isinstance(cause, _UNKNOWN_KEY):
            return _unknown_key(cause, groups)
        if isinstance(cause, MissingMandatoryValue):
            return f"{cause.full_key}: a value is needed; add {cause.full_key}=VALUE{_job_of(error)}"
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: cannot be read as key=value: {_on_one_line(str(cause))}{_QUOTES}"
    if match := _UNKNOWN_GROUP.match(str(error)):
        return f"{match[1]}: no such group here; {_remedy(match[1], [*groups])}"
    return _in_their_words(chain) + _job_of(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from; a warning made an error hides the reason in its context."""
    while error is not None:
        yield error
        error = error.__context__ if isinstance(error, Warning) else error.__cause__


def _job_of(error: Exception) -> str:
    return "".join(f" ({note})" for note in getattr(error, "__notes__", ()))


def _on_one_line(text: str) -> str:
    """Joins the lines of a message, without OmegaConf's `full_key`, types and Hydra's links."""
    lines = (line.strip() for line in text.splitlines())
    noise = ("full_key:", "object_type=", "reference_type=", "See http")
    return "; ".join(line.rstrip(":;. ") for line in lines if line and not line.startswith(noise))


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    if not error.options:
        return _on_one_line(str(error).partition("Config search path")[0])
    return f"{group}={option}: no such choice; {_remedy(option, error.options)}"


def _unknown_key(error: ConfigAttributeError | ConfigKeyError, groups: Iterable[str]) -> str:
    key = str(error.full_key)
    prefix = key.removesuffix(str(error.key))
    siblings = error.parent_node if isinstance(error.parent_node, DictConfig) else ()
    known = {prefix + str(sibling) for sibling in siblings if sibling != "hydra"}
    if not prefix:
        known.update(groups)
    return f"{key}: no such key; {_remedy(key, known)}"


def _remedy(name: str, known: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{meant}Known: {', '.join(sorted(known)) or 'none here'}"


def _in_their_words(chain: list[BaseException]) -> str:
    """Hydra's or OmegaConf's own words; the key goes first where they leave it out."""
    key = getattr(chain[0], "full_key", None)
    text = f"{key}: " if key else ""
    text += ": ".join(line for cause in chain if (line := _on_one_line(str(cause))))
    if text.startswith("Ambiguous value for argument"):
        override = text.split("'")[1]
        return (
            f"{override}: several values, several jobs; add -m (--multirun) to run one job for each{_QUOTES}"
        )
    return text.removeprefix("Error merging override ")


_taken: dict[Path, int] = {}
_OUTCOMES = {"fresh": "trained", "interrupted": "resumed", "finished": "skipped"}


def collect_jobs() -> list[JobReturn]:
    """Makes Hydra gather a sweep's jobs, where it raises the error of the first that failed.

    Launchers run all jobs of a batch and hand them to the sweeper, which looks at what each returned: in
    the sweep's own process, whichever launcher it was.

    Returns:
        The list that fills while sweepers look.
    """
    jobs: list[JobReturn] = []

    def return_value(job: JobReturn) -> Any:
        failed = job.status is JobStatus.FAILED
        if job.hydra_cfg and job.hydra_cfg.hydra.mode == RunMode.MULTIRUN:
            if all(job is not known for known in jobs):
                jobs.append(job)
            return None if failed else job._return_value
        if failed:
            raise job._return_value
        return job._return_value

    JobReturn.return_value = JobReturn.return_value.getter(return_value)  # type: ignore[attr-defined, method-assign]
    return jobs


def take_folder(folder: Path) -> None:
    """Notes whose folder it is within a sweep, for jobs that run in one process.

    Raises:
        HnsegError: An earlier job of the sweep has had it: one of them would replace the other's run.
    """
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    job = HydraConfig.get().job.num
    if _taken.setdefault(folder.resolve(), job) != job:
        raise HnsegError(
            f"{folder}: another job of this sweep trains there; put what differs between them into arm, as "
            "in 'arm=seed_${seed}'"
        )


def report_jobs(jobs: Sequence[JobReturn]) -> None:
    """Prints what ran, was skipped and failed, with run folders and scores.

    Raises:
        Exception: What the first failed job ended with, a defect rather than a user's mistake; a note says
            which job that was.
    """
    if not jobs:
        return
    common = set.intersection(*(set(job.overrides or ()) for job in jobs)) if len(jobs) > 1 else set()
    titles = [" ".join(text for text in job.overrides or () if text not in common) for job in jobs]
    failures = [(job._return_value, title) for job, title in zip(jobs, titles, strict=True) if _failed(job)]
    console = table_console()
    console.print(_table(jobs, titles))
    for error, title in failures:
        console.print(f"failed: {title}: {_reason(error)}", markup=False, highlight=False, soft_wrap=True)
    if failures:
        error, title = next((one for one in failures if explain(one[0]) is None), failures[0])
        more = f", and {len(failures) - 1} more failed" if len(failures) > 1 else ""
        error.add_note(f"in the job {title}{more}")
        raise error


def _table(jobs: Sequence[JobReturn], titles: Sequence[str]) -> Table:
    counts: dict[str, int] = {}
    table = Table(title_justify="left", box=None, pad_edge=False)
    for name in ("job", "outcome", "val/dice", "run"):
        table.add_column(name, justify="right" if name == "val/dice" else "left", overflow="fold")
    for job, title in zip(jobs, titles, strict=True):
        outcome, score, folder = _row(job)
        counts[outcome] = counts.get(outcome, 0) + 1
        table.add_row(escape(title), outcome, score, escape(folder))
    table.title = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return table


def _row(job: JobReturn) -> tuple[str, str, str]:
    """Outcome, score and run folder."""
    if _failed(job):
        return "failed", "", _folder(job)
    from hnseg.training.run_folder import Score

    result = job._return_value
    if not isinstance(result, Score):
        return "done", "", ""
    return _OUTCOMES[result.state], f"{result:.4f}", os.path.relpath(result.folder)


def _folder(job: JobReturn) -> str:
    """The run folder of a job that failed after it had begun there."""
    if job.cfg is None or job.hydra_cfg is None:
        return ""
    HydraConfig.instance().set_config(job.hydra_cfg)  # names may be made of Hydra's own choices
    folder = OmegaConf.select(job.cfg, "run_dir")
    return os.path.relpath(folder) if folder and Path(folder).is_dir() else ""


def _failed(job: JobReturn) -> bool:
    return job.status is JobStatus.FAILED


def _reason(error: Exception) -> str:
    """One line; that of a defect has its type."""
    return explain(error) or " ".join(f"{type(error).__name__}: {error}".split())


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
