"""Training augmentation that TorchIO does not bring, one transform a file.

The mixes themselves are composed in conf/augment/. All act on normalised subjects with `image`
(C, z, y, x) and `label`, but for those that act on scans, `ct` in HU and `pet` in SUV, before these become
channels: `RandomHeadCut`, and those of conf/scan_augment/.
"""

from hnseg.data.augment.compose import Compose
from hnseg.data.augment.intensity import (
    RandomBlur,
    RandomChannelBlur,
    RandomContrast,
    RandomDropout,
    RandomGamma,
    RandomLowResolution,
    RandomNoise,
    RandomScaleShift,
)
from hnseg.data.augment.spatial import (
    RandomBorderAffine,
    RandomFlip,
    RandomHeadCut,
    RandomMisalignment,
    RandomPatchAffine,
)

__all__ = [
    "Compose",
    "RandomBlur",
    "RandomBorderAffine",
    "RandomChannelBlur",
    "RandomContrast",
    "RandomDropout",
    "RandomFlip",
    "RandomGamma",
    "RandomHeadCut",
    "RandomLowResolution",
    "RandomMisalignment",
    "RandomNoise",
    "RandomPatchAffine",
    "RandomScaleShift",
]
