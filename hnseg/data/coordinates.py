"""Where in its ROI each voxel lies, as three channels more: the simplest anatomical prior.

Coordinates go with the anatomy: what augmentation turns, scales or mirrors keeps the position it had in the
ROI, as it does under mirroring at test time. Computed afterwards, in the frame of the patch, they would say
next to nothing, since nnU-Net and Auto3DSeg mirror half of all patches along each axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torchio as tio
from torch import Tensor

AXES = ("x", "y", "z")
# Voxels along each axis from which a position is told: exact for affine transforms, so that few do.
_SAMPLES = 16


class Coordinates(tio.Image):
    """Positions in the ROI, (4, z, y, x): x, y and z along the patient's axes, and 1 wherever they are known.

    They are in units of half the ROI from its middle: -1 and 1 are its faces, whatever its voxels, and 1 is
    left, posterior, superior. An image of a type of its own: spatial transforms carry it along, TorchIO's to
    the nearest voxel, intensity transforms pass it by, and what is left of it `network_input` reads.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "type": "coordinates"})


class AddCoordinates(tio.transforms.Transform):
    """Adds `coordinates` to a subject whose `image` is the whole ROI."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        image = subject["image"]
        z, y, x = (2 * (torch.arange(n) + 0.5) / n - 1 for n in image.spatial_shape)
        steps = torch.meshgrid(z, y, x, indexing="ij")
        known = torch.stack([*reversed(steps), torch.ones(image.spatial_shape)])
        subject.add_image(Coordinates(tensor=known, affine=image.affine), "coordinates")
        return subject


def network_input(subject: tio.Subject) -> Tensor:
    """The channels of a subject: its `image`, and x, y and z where it has `coordinates`.

    Returns:
        (C, z, y, x).
    """
    image: Tensor = subject["image"].data
    if "coordinates" not in subject:
        return image
    return torch.cat([image, extended(subject["coordinates"].data)])


def extended(coordinates: Tensor) -> Tensor:
    """Positions also where transforms have left none: beyond the ROI they go on beyond -1 and 1.

    All that augmentation and padding do is affine, so positions are an affine function of the voxel, which is
    found from those that are known; the voxels where nearest neighbours stood in are evened out.

    Args:
        coordinates: (4, z, y, x), of `Coordinates` after any affine transforms.

    Returns:
        x, y and z, (3, z, y, x); 0 where not one is known.
    """
    shape = coordinates.shape[1:]
    places = [torch.arange(0, n, max(1, n // _SAMPLES)) for n in shape]
    z, y, x = torch.meshgrid(*places, indexing="ij")
    few = coordinates[:, z, y, x].flatten(1).double()
    voxels = torch.cartesian_prod(*places).double()
    known = few[3] > 1 - 1e-3
    design = torch.cat([voxels, torch.ones(len(voxels), 1, dtype=torch.float64)], dim=1)[known]
    # The pseudo-inverse also serves patches that show a single slice of the ROI.
    slopes = torch.linalg.pinv(design) @ few[:3, known].T if known.any() else torch.zeros(4, 3).double()
    z, y, x = (torch.arange(n, dtype=torch.float64)[:, None] * slopes[axis] for axis, n in enumerate(shape))
    positions = z[:, None, None] + y[None, :, None] + x[None, None, :] + slopes[3]
    return positions.movedim(-1, 0).float().contiguous()
