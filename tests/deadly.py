"""Ensembles that one case is too much for: it ends their process, as a lack of memory does, or fails."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import SimpleITK as sitk
import torch

from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.setup import Setup


class DeadlyCascade(Cascade):
    """Ends its process by SIGKILL on the case `deadly`."""

    deadly = ""

    def __call__(self, ct: sitk.Image, pet: sitk.Image, case_id: str = "") -> Segmentation:
        if case_id == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(ct, pet, case_id)


@dataclass(frozen=True)
class DeadlySetup(Setup):
    """Loads cascades that the case `deadly` ends."""

    deadly: str = ""

    def load(self, devices: Sequence[torch.device]) -> list[Cascade]:
        cascades = super().load(devices)
        for cascade in cascades:
            cascade.__class__, cascade.deadly = DeadlyCascade, self.deadly  # type: ignore[attr-defined]
        return cascades


def failing(deadly: str, error: BaseException) -> Callable[..., Segmentation]:
    """A `Cascade.__call__` that raises an error on the case `deadly`."""
    work = Cascade.__call__

    def call(self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str) -> Segmentation:
        if case_id == deadly:
            raise error
        return work(self, ct, pet, case_id)

    return call
