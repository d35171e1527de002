"""The configuration that an imported network is set into."""

from __future__ import annotations

from collections.abc import Sequence

from hnseg.errors import HnsegError
from hnseg.hydra_app import compose_job
from hnseg.job import Config
from hnseg.job_keys import read_job


def compose(model: str, overrides: Sequence[str]) -> Config:
    """The configuration of a command's overrides, around a network of the folder's kind.

    Args:
        model: What the folder holds.
        overrides: As for train.py.

    Raises:
        HnsegError: Overrides that do not fit, or that ask for another kind of network.
    """
    chosen = [] if any(override.startswith("model=") for override in overrides) else [f"model={model}"]
    config = read_job(compose_job([*chosen, *overrides]))
    if config["model"]["architecture"] != model:
        raise HnsegError(f"model={config['model']['name']}: the folder holds model={model}; leave it out")
    return config
