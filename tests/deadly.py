"""What a case is too much for: it ends its process, as a lack of memory does, or fails."""

import os
import signal
from collections.abc import Callable

import SimpleITK as sitk
import torch
from members import Pointwise

from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.ensemble import LogitsCache


class Deadly(Pointwise):
    """A pointwise network that ends its process by SIGKILL where the PET reaches SUV 18, 0.9 of its scale."""

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        if image[:, 1].max() > 0.9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(image)


def failing(deadly: str, error: BaseException) -> Callable[..., Segmentation]:
    """A `Cascade.__call__` that raises an error on the case `deadly`."""
    work = Cascade.__call__

    def call(
        self: Cascade, ct: sitk.Image, pet: sitk.Image, case_id: str, cache: LogitsCache | None
    ) -> Segmentation:
        if case_id == deadly:
            raise error
        return work(self, ct, pet, case_id, cache)

    return call
