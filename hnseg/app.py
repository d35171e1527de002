"""From a command line to the function that does the work: Hydra, fold ranges, errors in one line."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from hnseg.errors import HnsegError

# Holds conf/ and sweeps/: a folder of the user's, else the package (of a wheel) or the repository around it.
_GIVEN, _AROUND = os.environ.get("HNSEG_CONF"), Path(__file__).resolve().parents[:2]
HOME = Path(_GIVEN).absolute() if _GIVEN else next(path for path in _AROUND if (path / "conf").is_dir())
_CONF, _SWEEPS = HOME / "conf", HOME / "sweeps"
_FOLDS = re.compile(r"all|([0-9]+)(?:-([0-9]+))?")
_FOLD_OVERRIDE = re.compile(r"(\+{0,2}fold)=(.*)", re.DOTALL)
_DEFAULTS = re.compile(r"^defaults:.*\n(?: .*\n)*", re.MULTILINE)


def run(main: Callable[[DictConfig], Any], config_name: str, arguments: Sequence[str] | None = None) -> None:
    """Runs a function under Hydra, from any working directory and with any launcher.

    Configurations are those of conf/; the YAML files in sweeps/ are the group `sweeps`. Folds may be written
    as `fold=0-4,7`. A job that fails does not stop the others of its sweep. A user's mistake becomes one line
    on stderr and exit status 2; `HYDRA_FULL_ERROR=1` in the environment shows the traceback instead.

    Args:
        main: Takes the composed configuration of one job, and may return a score for a sweeper to optimise.
        config_name: The primary configuration, without `.yaml`.
        arguments: Those of the command `hnseg CONFIG_NAME`; without them those of the script CONFIG_NAME.py.
    """
    name = f"{config_name}.py" if arguments is None else f"hnseg {config_name}"
    command = [sys.argv[0], *([] if arguments is None else [config_name])]
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its way
    errors: list[Exception] = []
    statuses: list[int] = []
    try:
        arranged = arrange(sys.argv[1:] if arguments is None else arguments)
        register_files()
        _register_help()
        job = _keep_errors(main, name, [*command, *arranged], errors, statuses)
        sys.argv[1:] = arranged  # which Hydra parses
        hydra.main(version_base="1.3", config_path=str(_CONF), config_name=config_name)(job)()
        if errors:
            raise errors[0]
    except KeyboardInterrupt:  # where no training turned it into an exit of its own
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None or wants_traceback:
            raise
        print(f"{name}: error: {line}", file=sys.stderr)
        sys.exit(2)
    if statuses:
        sys.exit(min(statuses))


def _keep_errors(
    main: Callable[[DictConfig], Any],
    name: str,
    command: Sequence[str],
    errors: list[Exception],
    statuses: list[int],
) -> Callable[[DictConfig], Any]:
    """The same function, whose errors Hydra does not see: it would print them its way.

    A sweep's job says at once what ends it, and Hydra runs the others. In another process (joblib, SLURM,
    Ray) the error is raised, for Hydra to hand over.

    Args:
        main: The function.
        name: Begins each line of an error.
        command: The whole command line, which Lightning starts a training's other processes with.
        errors: Gains what ends a job that is no part of a sweep.
        statuses: Gains the exit status of each failed job of a sweep: 1 for a defect, 2 for a mistake.
    """
    home = socket.gethostname(), os.getpid()

    @wraps(main)
    def job(config: DictConfig) -> Any:
        here = (socket.gethostname(), os.getpid()) == home
        if here:
            sys.argv[:] = command
        try:
            return main(config)
        except Exception as error:
            hydra, line = HydraConfig.get(), explain(error)
            if hydra.mode == RunMode.MULTIRUN:
                title = f"job {hydra.job.num}: {' '.join(hydra.overrides.task)}"
                text = f"{name}: error: {line or traceback.format_exc()} ({title})"
                print(text, file=sys.stderr)
                statuses.append(1 if line is None else 2)
            else:
                errors.append(error)
            if not here:
                raise
            return None

    return job


def compose(overrides: Sequence[str], config_name: str = "train") -> DictConfig:
    """The configuration that one command would run with.

    Raises:
        HnsegError: An override that does not fit.
    """
    register_files()
    try:
        with hydra.initialize_config_dir(str(_CONF), version_base="1.3"):
            composed = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        raise HnsegError(line) from error
    HydraConfig.instance().set_config(composed)  # names may be made of Hydra's own choices
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


def expand(text: str) -> str:
    """Spells out the ranges in a list of folds.

    Args:
        text: Folds separated by commas: numbers, rising ranges with both ends included, or `all` (train on
            every case). Hydra's functions and interpolations, such as `range(0,5)`, are left to Hydra.

    Returns:
        The folds, separated by commas, each named once and in the order given: `0-2,7` → `0,1,2,7`.

    Raises:
        HnsegError: Something in the list is neither a number, a rising range nor `all`.
    """
    if "(" in text or "${" in text:
        return text
    folds: list[str] = []
    for item in text.split(","):
        match = _FOLDS.fullmatch(item.strip())
        if match is None:
            raise HnsegError(f"fold={text}: fold is a number or all; write several as 0-4 or 0,2,7")
        first, last = match.groups()
        if first is None:
            folds.append("all")
        elif int(last or first) < int(first):
            raise HnsegError(f"fold={text}: {item.strip()} runs backwards; write {last}-{first}")
        else:
            folds.extend(str(fold) for fold in range(int(first), int(last or first) + 1))
    return ",".join(dict.fromkeys(folds))


def expand_arguments(arguments: Sequence[str]) -> list[str]:
    """Spells out the ranges in the `fold=`, `+fold=` and `++fold=` overrides of a command line."""
    matches = [(text, _FOLD_OVERRIDE.fullmatch(text)) for text in arguments]
    return [f"{match[1]}={expand(match[2])}" if match else text for text, match in matches]


def arrange(arguments: Sequence[str]) -> list[str]:
    """Spells out folds, puts flags behind the overrides, and lets `--cfg` and `--info` show what would run.

    argparse gives up on overrides that stand on both sides of a flag. Hydra shows one job alone: of several,
    the first is shown, and stderr says so. `--cfg job` has its interpolations resolved.

    Args:
        arguments: Those after the program's name.

    Raises:
        HnsegError: Folds that cannot be read.
        OverrideParseException: An override of a command that is shown is not in Hydra's grammar.
    """
    if {"-sc", "--shell-completion"} & set(arguments):
        return list(arguments)
    overrides = [text for text in arguments if not text.startswith("-") and (text[0] == "~" or "=" in text)]
    flags = [text for text in arguments if text not in overrides]
    overrides = expand_arguments(overrides)
    if not any(re.match(r"(-c|--cfg|-i|--info)(=|$)", flag) for flag in flags):
        return [*overrides, *flags]
    grid = read_grid(*(text.removeprefix("sweeps=") for text in overrides if text.startswith("sweeps=")))
    if grid or {"-m", "--multirun"} & set(flags):
        overrides = _first_job([*grid, *overrides])
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    shows_job = re.search(r"(-c|--cfg)[= ]job", " ".join(flags))
    return [*overrides, *flags, *(["--resolve"] if shows_job and "--resolve" not in flags else [])]


def read_grid(*names: str) -> list[str]:
    """What the last of some sweep files sweeps over, as overrides with several values."""
    path = _SWEEPS / f"{names[-1] if names else None}.yaml"
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
        print(f"the first job: {' '.join(swept.values())}", file=sys.stderr)
    return [swept.get(key, str(one.input_line)) for key, one in parsed.items()]


# Hydra's own grammar reads what stands behind the sign of equality.
_QUOTES = """; a value with spaces, commas, brackets or accents is written 'KEY="VALUE"'"""


def explain(error: BaseException) -> str | None:
    """A user's mistake in one line, without the program's name.

    Returns:
        The line; None where the error is a defect rather than a mistake, and deserves its traceback.
    """
    if isinstance(error, ValidationError):
        return _first_mistake(error)
    for cause in _causes(error):
        if isinstance(cause, HnsegError):
            return str(cause)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: a value is needed; add {error.full_key}=VALUE"
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):  # stage=null
        return f"{error}; leave the group out, or choose one of --help"
    if not isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return None
    if isinstance(error, OmegaConfBaseException) and isinstance(error, AttributeError | KeyError):
        return None  # read by the code under a name that does not exist
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value: {_on_one_line(str(error))}{_QUOTES}"
    key = getattr(error, "full_key", None)
    lines = [*([key] if key else []), *(_on_one_line(str(cause)) for cause in _causes(error))]
    text = ": ".join(dict.fromkeys(filter(None, lines)))
    several = text.startswith("Ambiguous value for argument")
    return text + ("; add -m (--multirun) to run one job for each" if several else "")


def _first_mistake(error: ValidationError) -> str:
    """Dotted key, value and what is wanted; of a key that may be of several types, all of them."""
    mistakes = error.errors()
    first, key = mistakes[0], _key(mistakes[0]["loc"])
    messages = (mistake["msg"] for mistake in mistakes if _key(mistake["loc"]) == key)
    wanted = dict.fromkeys(message.removeprefix("Value error, ") for message in messages)
    if first["type"] == "value_error":  # of a validator, whose text begins with the keys that it ties
        return ".".join(filter(None, [key, *wanted]))
    if first["type"] == "missing":
        return f"{key}: a value is needed; add {key}=VALUE"
    return f"{key}={_written(first['input'])}: {' or '.join(wanted)}"


def _key(location: Sequence[int | str]) -> str:
    """A dotted key, without pydantic's names for the members of a union."""
    types = ("int", "float", "str", "bool")
    return ".".join(str(part) for part in location if re.fullmatch(r"\w+", str(part)) and part not in types)


def _written(value: Any) -> str:
    """A value as it is written on the command line."""
    return json.dumps(value, default=str).replace('"', "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _on_one_line(text: str) -> str:
    """Joins the lines of a message, without OmegaConf's `full_key`, types and Hydra's links."""
    lines = (line.strip() for line in text.partition("Config search path")[0].splitlines())
    noise = ("full_key:", "object_type=", "reference_type=", "See http")
    return "; ".join(line.rstrip(":;. ") for line in lines if line and not line.startswith(noise))


def _register_help() -> None:
    """What a configuration's `hydra.help.template` may quote, so that `--help` says what the files say.

    `${commented:NAME}` is a configuration file with its comments, without its defaults and `hydra`;
    `${options:GROUP}` the choices of a group.
    """

    def commented(name: str) -> str:
        text = (_CONF / f"{name}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
        return _DEFAULTS.sub("", text).strip().replace("$", "$$")  # the template is Python's too

    def options(group: str) -> str:
        folder = _SWEEPS if group == "sweeps" else _CONF / group
        return "|".join(sorted(path.stem for path in folder.glob("*.yaml")))

    OmegaConf.register_new_resolver("commented", commented, replace=True)
    OmegaConf.register_new_resolver("options", options, replace=True)


def register_files() -> None:
    """Makes the files of sweeps/ the options of the group `sweeps`; conf/local.yaml may be missing.

    With the repository as a search path, every folder in it would be a group, which `--help` walks through.
    """
    if not (_CONF / "local.yaml").exists():
        ConfigStore.instance().store("local", {})
    for path in sorted(_SWEEPS.glob("*.yaml")):
        node = OmegaConf.load(path)
        ConfigStore.instance().store(path.stem, node, "sweeps", package="_global_", provider=str(_SWEEPS))
