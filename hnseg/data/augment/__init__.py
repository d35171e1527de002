"""Training augmentation, in torch: the same code on processors and GPUs.

A transform draws parameters for a sample from a random stream of its own, and changes samples by given
parameters. conf/augment/ (patches of normalised channels) and conf/scan_augment/ (CT in HU and PET in SUV,
before these become channels) compose them.
"""

from hnseg.data.augment.intensity import (
    RandomBlur,
    RandomContrast,
    RandomDropout,
    RandomGamma,
    RandomLowResolution,
    RandomNoise,
    RandomScaleShift,
)
from hnseg.data.augment.spatial import RandomAffine, RandomFlip, RandomHeadTruncation, RandomMisalignment
from hnseg.data.augment.transform import Compose, Sample, Streams, Transform

__all__ = [
    "Compose",
    "RandomAffine",
    "RandomBlur",
    "RandomContrast",
    "RandomDropout",
    "RandomFlip",
    "RandomGamma",
    "RandomHeadTruncation",
    "RandomLowResolution",
    "RandomMisalignment",
    "RandomNoise",
    "RandomScaleShift",
    "Sample",
    "Streams",
    "Transform",
]
