"""Scans without one of the modalities."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform


class RandomDropout(RandomTransform, tio.IntensityTransform):
    """Empties a modality: every voxel becomes 0, for PET no activity anywhere (modality dropout).

    Meant for the scan in HU and SUV: what the network sees is then what its input chain makes of a PET
    without activity. That is one value throughout each channel, whichever normalisation follows. A stage
    that does not see the modality stays as it is.

    Args:
        modality: What is emptied.
    """

    def __init__(self, *, modality: str = "pet", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.modality = modality

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.modality not in subject:
            return subject
        image = subject[self.modality]
        image.set_data(torch.zeros_like(image.data))
        return subject
