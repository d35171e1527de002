"""What infer.py's options may be, told before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hnseg.errors import HnsegError
from hnseg.kinds import is_count

_CHOICES = {
    "until": (("head", "coarse", "fine"), "is no stage; choose head, coarse or fine"),
    "format": (("nii.gz", "mha"), "is unknown; choose nii.gz or mha"),
    "windows": (("trained", "whole"), "is unknown; choose trained or whole"),
}
# What decides a mask of the fine stage; the labels of an earlier one are what would place the next ROI.
_OF_FINE_MASKS = ("rule", "thresholds", "way_back", "min_component_ml", "node_suv_peak", "cover")


def check_options(config: Mapping[str, Any]) -> None:
    """Refuses a configuration of infer.py that would be misunderstood.

    Raises:
        HnsegError: A choice that does not exist, or a rule that would decide nothing.
    """
    for key in ("overwrite", "unseen", "probabilities", "uncertainty", "mirror"):
        if not isinstance(config[key], bool) and (key, config[key]) != ("mirror", None):
            raise HnsegError(f"{key}={config[key]} is neither true nor false")
    for key, (known, remark) in _CHOICES.items():
        if config[key] not in known:
            raise HnsegError(f"{key}={config[key]} {remark}")
    threads = config["trainer"]["threads"]
    if threads is not None and not is_count(threads):
        raise HnsegError(f"trainer.threads={threads}: give a number of 1 or more, or null for all cores")
    unused = [f"decision.{key}" for key in _OF_FINE_MASKS if config["decision"][key] is not None]
    if unused and config["until"] != "fine":
        raise HnsegError(
            f"until={config['until']} with {' '.join(unused)}: only the fine stage's masks are decided by "
            "it; leave it out, or set until=fine"
        )
