"""What a stage's volumes are cut from: the study itself, or the authors' windowed head crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from hnseg.data.resample import AIR_HU, NO_SUV, label_to_grid, to_grid
from hnseg.imaging.grid import Grid, top_of_scan_grid

MODALITIES = ("ct", "pet")
# The authors' window on the PET that min-max has brought to [0, 1]: level 2.5, width 5.
_PET_WINDOW = (0.0, 5.0)


@dataclass(frozen=True)
class Sampling:
    """How CT and PET come onto a stage's grid.

    Args:
        source: `study` samples the original study once (HU and SUV). `head_crop` samples the authors'
            head crop, which was sampled and windowed before: CT in [0, 1] of `ct_window`, PET by min-max
            over the crop and then a window of level 2.5 and width 5, B-spline twice.
        outside: Value outside the source: `air` is air and no activity; `minus_one` is the authors', -1
            in both modalities where the study is sampled, and CT -1, PET 0 where the head crop is.
        ct_window: HU that become 0 and 1 in the head crop.
        head_size: Voxels of the head crop, (x, y, z).
        head_spacing: mm, (x, y, z).
    """

    source: Literal["study", "head_crop"] = "study"
    outside: Literal["air", "minus_one"] = "air"
    ct_window: tuple[float, float] = (-105.0, 195.0)
    head_size: tuple[int, int, int] = (256, 256, 128)
    head_spacing: tuple[float, float, float] = (2.0, 2.0, 3.0)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Sampling:
        """Reads what `to_dict` wrote."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**plain)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and names."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def images(
        self,
        ct: sitk.Image,
        pet: sitk.Image,
        grid: Grid,
        *,
        modalities: Sequence[str] = MODALITIES,
        antialias: bool = False,
    ) -> dict[str, NDArray[np.float32]]:
        """CT and PET on a stage's grid.

        Args:
            ct: CT, HU.
            pet: PET, SUV.
            grid: The stage's grid on this case.
            modalities: Those wanted: the head stage sees CT alone, and sampling costs seconds.
            antialias: As for `hnseg.data.resample.to_grid`.

        Returns:
            `ct` and `pet`, as wanted, (z, y, x) float32. From the study, HU are rounded to whole numbers: the
            cache keeps them so, and what was learnt from is what is shown at inference.
        """
        images, outside = {"ct": ct, "pet": pet}, self._outside
        if self.source == "head_crop":
            crop = self._head_grid(ct)
            units = self._head_crop(ct, pet, crop, modalities)
            images = {name: crop.image(unit) for name, unit in units.items()}
        sampled = {
            name: to_grid(images[name], grid, fill=outside[name], antialias=antialias) for name in modalities
        }
        if self.source == "study" and "ct" in sampled:
            sampled["ct"] = np.clip(np.rint(sampled["ct"]), -32768, 32767)
        return sampled

    @property
    def _outside(self) -> dict[str, float]:
        """What lies outside the source, by modality."""
        authors = self.outside == "minus_one"
        if self.source == "study":
            return {"ct": -1.0, "pet": -1.0} if authors else {"ct": AIR_HU, "pet": NO_SUV}
        return {"ct": -1.0 if authors else 0.0, "pet": 0.0}

    def label(self, label: sitk.Image, ct: sitk.Image, grid: Grid) -> NDArray[np.uint8]:
        """A label image on a stage's grid, sampled as often as the images are, by nearest neighbour."""
        if self.source == "study":
            return label_to_grid(label, grid)
        crop = self._head_grid(ct)
        return label_to_grid(crop.image(label_to_grid(label, crop)), grid)

    def _head_grid(self, ct: sitk.Image) -> Grid:
        return top_of_scan_grid(ct, self.head_size, self.head_spacing, lateral="corner")

    def _head_crop(
        self, ct: sitk.Image, pet: sitk.Image, crop: Grid, modalities: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        units = Sampling("study", self.outside).images(ct, pet, crop, modalities=modalities)
        if "ct" in units:
            units["ct"] = _unit(units["ct"], self.ct_window)
        if "pet" in units:
            low, high = units["pet"].min(), units["pet"].max()
            units["pet"] = _unit((units["pet"] - low) / max(float(high - low), 1e-8), _PET_WINDOW)
        return units


# The paper's, and the default.
STUDY = Sampling()


def _unit(array: NDArray[np.float32], window: tuple[float, float]) -> NDArray[np.float32]:
    low, high = window
    return ((np.clip(array, low, high) - low) / (high - low)).astype(np.float32)
