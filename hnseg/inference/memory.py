"""What the networks said of the case at hand, so that several arms ask each of them once."""

from __future__ import annotations

import SimpleITK as sitk
from torch import Tensor

from hnseg.geometry import Grid

Key = tuple[str, Grid, bool]  # member, where it looked, mirrored or not


class Memory:
    """Members' logits on one case; the arms of an ensemble share head, coarse and most fine members.

    Cascades that share it must differ in nothing but their members: not in how these are shown a volume.
    """

    def __init__(self) -> None:
        self._scan: tuple[sitk.Image, sitk.Image] | None = None
        self._logits: dict[Key, Tensor] = {}

    def turn_to(self, ct: sitk.Image, pet: sitk.Image) -> None:
        """Forgets everything unless it is of these very images."""
        if self._scan is None or self._scan[0] is not ct or self._scan[1] is not pet:
            self._logits.clear()
            self._scan = ct, pet

    def forget(self) -> None:
        """Lets go of images and logits."""
        self._logits.clear()
        self._scan = None

    def recall(self, key: Key) -> Tensor | None:
        """The logits (K, z, y, x) of a member on a grid, if it was asked before."""
        return self._logits.get(key)

    def keep(self, key: Key, logits: Tensor) -> None:
        """Remembers them; nobody may change them from now on."""
        self._logits[key] = logits
