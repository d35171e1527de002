"""What a stage is: a grid, the rule that places it, and the classes it tells apart (paper section 2.3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk

from hnseg.imaging import masks
from hnseg.imaging.grid import Grid, Triple, coarse_grid, nearest_corner, scan_grid, top_of_scan_grid

Placement = Literal["top_of_scan", "below_head", "lesions", "scan"]
LESIONS = ("GTVp", "GTVn")


@dataclass(frozen=True)
class Stage:
    """One stage of the cascade.

    Args:
        name: head, coarse or fine.
        size: Voxels of the grid, (x, y, z).
        spacing: Voxel size in mm, (x, y, z).
        placement: `top_of_scan` hangs the grid from the top of the scan, `below_head` from a head
            mask, `lesions` centres it on the mean voxel of all lesions (ground truth when training, the
            coarse prediction when inferring), `scan` on the middle of the scan. A mean voxel is whole, as
            the authors' index is: predictions that differ a little, as those of bfloat16 and float32 do,
            nearly always place the grid alike.
        classes: Foreground classes in the order of their labels 1, 2, ...
        antialias: Smooth images before sampling them on a coarser grid.
        top: For `below_head`, height of the ROI's top face as a fraction of the head's box.
        lateral: For `top_of_scan`, centred on the `body` in x and y, or from the image's `corner`.
    """

    name: str
    size: tuple[int, int, int]
    spacing: Triple
    placement: Placement
    classes: tuple[str, ...] = LESIONS
    antialias: bool = False
    top: float = 0.7
    lateral: Literal["body", "corner"] = "body"

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Stage:
        """Builds a stage from plain lists and numbers (YAML, JSON)."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the stage's arrays, (z, y, x)."""
        return self.size[2], self.size[1], self.size[0]

    def grid(self, ct: sitk.Image, reference: sitk.Image | None = None) -> Grid:
        """Places the stage's grid on one case.

        Args:
            ct: The case's CT.
            reference: The head mask for `below_head`, a lesion label image for `lesions`.

        Raises:
            ValueError: The placement needs a reference, and there is none or it is empty.
        """
        match self.placement:
            case "top_of_scan":
                return top_of_scan_grid(ct, self.size, self.spacing, self.lateral)
            case "scan":
                return scan_grid(ct, self.size, self.spacing)
            case "below_head":
                if reference is None:
                    raise ValueError("no head mask to place the ROI by")
                return coarse_grid(reference, self.size, self.spacing, self.top)
            case "lesions":
                center = None if reference is None else masks.centroid(reference)
                if reference is None or center is None:
                    raise ValueError("no lesion voxel to centre the ROI on")
                return Grid.centred(nearest_corner(reference, center), self.size, self.spacing)

    def widened(self, mm: float) -> Stage:
        """The stage with a grid larger by a margin on every side, in whole voxels."""
        x, y, z = (n + 2 * m for n, m in zip(self.size, self.voxels(mm), strict=True))
        return replace(self, size=(x, y, z))

    def voxels(self, mm: float) -> tuple[int, int, int]:
        """A length in mm as whole voxels along (x, y, z), rounded up."""
        x, y, z = (int(n) for n in np.ceil(mm / np.asarray(self.spacing)))
        return x, y, z
