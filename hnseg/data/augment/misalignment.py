"""PET that does not lie where the CT does: patients move between the two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torchio as tio
from torchio.transforms.augmentation import RandomTransform

from hnseg.data.augment.draw import uniform
from hnseg.data.augment.spatial import resample, rotation
from hnseg.data.patch import Patch


class RandomMisalignment(RandomTransform, tio.IntensityTransform):
    """Shifts and turns one modality rigidly about the middle of the ROI; the other and the label stay.

    The label stays with the CT, on which it was drawn. Beyond the ROI the border's values go on. Meant for
    the scan in HU and SUV, before enhancement makes several channels of a modality. A stage that does not see
    the modality stays as it is.

    Args:
        spacing: Voxel size in mm, (x, y, z).
        mm: The shift along each axis is drawn from [-mm, mm].
        degrees: The angle about each axis is drawn from [-degrees, degrees].
        modality: What is moved.
    """

    def __init__(
        self,
        *,
        spacing: tuple[float, float, float],
        mm: float = 4.0,
        degrees: float = 5.0,
        modality: str = "pet",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spacing, self.mm, self.degrees, self.modality = spacing, mm, degrees, modality

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        if self.modality not in subject:
            return subject
        image, shape = subject[self.modality], subject.spatial_shape
        angles = np.deg2rad([uniform(-self.degrees, self.degrees) for _ in range(3)])
        voxel = np.asarray(self.spacing)[::-1]  # mm, (z, y, x)
        # Rigid in mm, and therefore sheared in voxels that are no cubes.
        matrix = np.diag(1 / voxel) @ rotation(angles) @ np.diag(voxel)
        shift = np.array([uniform(-self.mm, self.mm) for _ in range(3)]) / voxel
        image.set_data(resample(image, matrix, Patch(shape, shape, (0, 0, 0)), "border", shift))
        return subject
