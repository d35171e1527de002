"""Sweep files: grids with a name, for Hydra and, made of the same file, for W&B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from hnseg.app import expand_arguments, read_grid
from hnseg.config import compose_job
from hnseg.errors import HnsegError


def wandb_sweep(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The file `sweeps/NAME.yaml` as a W&B sweep.

    An agent's job is the sweep's job: the same file with one value for each key of its grid.

    Args:
        name: Of the sweep.
        overrides: As for hnseg train. Several values add to the grid or replace what it has; one goes to
            every job.
    """
    grid = read_grid(name)
    fixed: list[str] = []
    parameters: dict[str, dict[str, list[int | str]]] = {}
    for text in [*grid, *expand_arguments(list(overrides))]:
        key, swept, values = _parse(text)
        if swept or key in parameters:
            parameters[key] = {"values": values}
        else:
            fixed.append(text)
    first = [f"{key}={parameter['values'][0]}" for key, parameter in parameters.items()]
    job = compose_job([f"sweeps={name}", *fixed, *first])  # which refuses what does not fit
    return {
        "name": name,
        "project": job.logger.project,
        "method": "grid",
        "metric": {"name": "val/dice", "goal": "maximize"},
        "parameters": parameters,
        "command": [
            "${env}",
            *("hnseg", "train"),
            f"sweeps={name}",
            "hydra.mode=RUN",
            *fixed,
            "${args_no_hyphens}",
        ],
    }


def _parse(override: str) -> tuple[str, bool, list[int | str]]:
    """The key of an override, whether it sweeps, and its values."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except OverrideParseException as error:
        raise HnsegError(f"{override}: cannot be read as key=value") from error
    key, _, value = override.partition("=")
    swept = parsed.is_sweep_override()
    # As the sweep file has them, and not as Python does.
    spelling = {"True": "true", "False": "false"}
    values = (
        [spelling.get(str(item), str(item)) for item in parsed.sweep_string_iterator()] if swept else [value]
    )
    return key, swept, [int(text) if text.isdigit() else text for text in values]
