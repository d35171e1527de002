"""How several folds are written: `0-4`, `0-4,7`, `0,2`, `all`.

Hydra's own grammar takes `0-4` for one string and refuses it as soon as `fold` is typed, before any
sweeper or callback has a say. Folds are therefore spelt out before Hydra reads the command line
(`expand_arguments`); sweep files, whose text reaches the sweeper unread, are served by a callback
(`ExpandFolds`). Both share one parser (`expand`).
"""

import re
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from hnseg.errors import HnsegError

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
