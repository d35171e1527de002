"""Where a patch lies in a volume, and where its voxels lie in the ROI.

Positions are in units of half the ROI from its middle: -1 and 1 are its faces, whatever its voxels, and 1 is
left, posterior, superior. All that padding, cutting and augmentation do to voxels is affine, so positions are
carried as a matrix (3, 4) from a voxel (z, y, x, 1) to its position (z, y, x), and go on beyond the ROI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]
Position = NDArray[np.float64]


@dataclass(frozen=True)
class Patch:
    """A patch in the middle of the surroundings in which it is turned and scaled, (z, y, x) in voxels.

    Both may reach past the volume, where all is 0.
    """

    size: Shape  # of the patch
    around: Shape  # of the surroundings, at least `size`
    start: Shape  # first voxel of the surroundings in the volume; may be negative

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Patch:
        z, y, x = shape
        return cls((z, y, x), (z, y, x), (0, 0, 0))

    @property
    def first(self) -> Shape:
        """First voxel of the patch in the volume, rounded as by nnU-Net's crop of the middle."""
        z, y, x = (a + n // 2 - m // 2 for a, n, m in zip(self.start, self.around, self.size, strict=True))
        return z, y, x

    def within(self, first: Sequence[int]) -> Patch:
        """The same patch, in a part of the volume that begins at a voxel."""
        z, y, x = (a - b for a, b in zip(self.start, first, strict=True))
        return replace(self, start=(z, y, x))

    def cut(self, volume: Tensor) -> Tensor:
        """The patch of a volume (..., z, y, x), 0 where it reaches past the volume."""
        spans = list(zip(self.first, self.size, volume.shape[-3:], strict=True))
        inside = [slice(max(a, 0), min(a + n, limit)) for a, n, limit in spans]
        part = _crop(volume, inside)
        if part.shape[-3:] == self.size:
            return part.contiguous()
        patch = volume.new_zeros((*volume.shape[:-3], *self.size))
        target = [slice(s.start - a, s.stop - a) for s, a in zip(inside, self.first, strict=True)]
        _crop(patch, target).copy_(part)
        return patch

    def surroundings(self, volume: Tensor) -> tuple[Tensor, Sequence[float]]:
        """The surroundings within the volume (..., z, y, x), and how far the middle of all is off theirs."""
        spans = zip(self.start, self.around, volume.shape[-3:], strict=True)
        box = [slice(max(a, 0), min(a + n, limit)) for a, n, limit in spans]
        offset = [
            a + n / 2 - (s.start + s.stop) / 2 for s, a, n in zip(box, self.start, self.around, strict=True)
        ]
        return _crop(volume, box), offset


def _crop(volume: Tensor, box: Sequence[slice]) -> Tensor:
    z, y, x = box
    return volume[..., z, y, x]


def sample_patch(
    volume: Sequence[int],
    size: Shape,
    rng: np.random.Generator,
    *,
    around: Shape | None = None,
    voxel: Sequence[int] | None = None,
    overhang: bool = False,
) -> Patch:
    """Draws the position of a patch (nnU-Net's nnUNetDataLoader.get_bbox).

    Args:
        volume: Shape of the volume (z, y, x).
        size: Shape of the patch; along axes where the volume is smaller, it is centred on the volume.
        rng: Draws the position where no voxel is given.
        around: Shape of the surroundings; the patch alone by default.
        voxel: To be in the middle of the patch as far as the bounds allow.
        overhang: Let such a patch reach past the volume's end, up to half its size, as nnU-Net does.
    """
    around = around or size
    shape, outer = np.asarray(volume), np.asarray(around)
    missing = np.maximum(outer - np.asarray(size), outer - shape)
    low, high = -missing // 2, shape + missing // 2 + missing % 2 - outer
    if voxel is None:
        start = rng.integers(low, high + 1)
    else:
        start = np.maximum(low, np.asarray(voxel) - outer // 2)
        start = start if overhang else np.minimum(start, high)
    z, y, x = (int(i) for i in start)
    return Patch(size, around, (z, y, x))


def foreground_voxel(label: Tensor, rng: np.random.Generator) -> Sequence[int] | None:
    """A random voxel (z, y, x) of a random class present in a label (z, y, x); None without foreground."""
    classes = torch.bincount(label.flatten())[1:].nonzero()[:, 0] + 1
    if not len(classes):
        return None
    voxels = (label == int(rng.choice(classes.numpy()))).nonzero()
    return voxels[int(rng.integers(len(voxels)))].tolist()


def roi_position(shape: Sequence[int]) -> Position:
    """Positions of a whole ROI (z, y, x)."""
    n = np.asarray(shape)
    return np.column_stack([np.diag(2 / n), 1 / n - 1])


def follow(
    position: Position, matrix: NDArray[np.float64], first: Sequence[float] | NDArray[np.float64]
) -> Position:
    """Positions of an output whose voxel v shows `matrix @ v + first` of the input (z, y, x)."""
    slopes, offset = position[:, :3], position[:, 3]
    return np.column_stack([slopes @ matrix, slopes @ np.asarray(first) + offset])


def coordinate_channels(position: Position, shape: Sequence[int], device: torch.device) -> Tensor:
    """x, y and z of each voxel of a shape (z, y, x): (3, z, y, x) float32."""
    *slopes, offset = torch.from_numpy(position[::-1].T.copy()).to(device)
    z, y, x = (
        torch.arange(n, device=device)[:, None] * slope for n, slope in zip(shape, slopes, strict=True)
    )
    positions = z[:, None, None] + y[None, :, None] + x[None, None, :] + offset
    return positions.movedim(-1, 0).float().contiguous()
