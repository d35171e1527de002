"""Training augmentation that TorchIO does not bring, one transform a file.

The mixes themselves are composed in conf/augment/. All act on normalised subjects with `image`
(C, z, y, x) and `label`, but for those that act on scans, `ct` in HU and `pet` in SUV, before these become
channels: `RandomHeadCut`, and those of conf/scan_augment/.
"""

from hnseg.data.augment.blur import RandomBlur, RandomChannelBlur
from hnseg.data.augment.contrast import RandomContrast
from hnseg.data.augment.dropout import RandomDropout
from hnseg.data.augment.flip import RandomFlip
from hnseg.data.augment.gamma import RandomGamma
from hnseg.data.augment.head_cut import RandomHeadCut
from hnseg.data.augment.low_resolution import RandomLowResolution
from hnseg.data.augment.misalignment import RandomMisalignment
from hnseg.data.augment.mix import Mix
from hnseg.data.augment.noise import RandomNoise
from hnseg.data.augment.scale_shift import RandomScaleShift
from hnseg.data.augment.spatial import RandomBorderAffine, RandomPatchAffine

__all__ = [
    "Mix",
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
