"""The arguments of an entry point, put as Hydra takes them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.main import get_args_parser
from omegaconf import OmegaConf

from hnseg.errors import HnsegError
from hnseg.folds import expand_arguments


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
