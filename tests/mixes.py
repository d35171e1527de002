"""The augmentation of conf/augment, built."""

from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.utils import instantiate

from hnseg.data.augment import Compose, Transform

CONF = Path(__file__).parents[1] / "conf" / "augment"
MIXES = sorted(path.stem for path in CONF.glob("*.yaml"))


def transform(mix: str, name: str, **changes: Any) -> Transform:
    """A transform of a mix, with some of its settings changed."""
    node = yaml.safe_load((CONF / f"{mix}.yaml").read_text())["transforms"][name]
    return instantiate(node | changes, _convert_="all")


def mix(name: str, device: Literal["cpu", "cuda"] = "cpu") -> Compose:
    names = yaml.safe_load((CONF / f"{name}.yaml").read_text())["transforms"]
    return Compose({key: transform(name, key) for key in names}, device)
