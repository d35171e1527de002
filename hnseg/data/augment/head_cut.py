"""Scans without a head, or with part of one."""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import coin


class RandomHeadCut(RandomTransform, tio.SpatialTransform):
    """Cuts the top of a scan off, so that the head stage learns scans with and without a head.

    The cut goes through the head as often as through the body beneath it, whose lower half always
    stays. What is left is hung from the top of the grid, as the stage hangs every scan, and below it is
    air: the minimum of each channel, and label 0. Meant for the scan in HU and SUV, before
    anything is normalised. Subjects without a head (label 1) stay as they are.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        slices = subject["label"].data[0].flatten(1).any(1).nonzero()[:, 0]  # z; the last one is on top
        if not len(slices):
            return subject
        bottom, top = int(slices[0]), int(slices[-1]) + 1
        low, high = (bottom, top) if coin(0.5) else (bottom // 2, bottom)
        kept = int(torch.randint(max(low, 1), max(high, 1) + 1, ()))
        for image in self.get_images(subject):
            data = image.data
            lost = data.shape[1] - kept
            air = data.amin(dim=(1, 2, 3), keepdim=True) if not isinstance(image, tio.LabelMap) else 0
            moved = torch.empty_like(data)
            moved[:, lost:] = data[:, :kept]
            moved[:, :lost] = air
            image.set_data(moved)
        return subject
