"""Augmentation of a sample: at once in a loader's worker, or later on the device that trains.

Both ways are one: the same transforms draw the same numbers, since a sample takes its seed with it. What
the device draws for itself, the noise, is other numbers alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torchio as tio
from torch.utils.data import default_collate

from hnseg.data.coordinates import network_input
from hnseg.data.patch import Patch

Sample = dict[str, Any]


def sample_of(subject: tio.Subject, case_id: str) -> Sample:
    """What a network is trained on: `image` (C, z, y, x) float, `label` (z, y, x) long, `case_id`."""
    return {"image": network_input(subject), "label": subject["label"].data[0].long(), "case_id": case_id}


def augmented(augment: tio.Transform, subject: tio.Subject, seed: int, case_id: str) -> Sample:
    """A sample after the mix, drawn from `seed`."""
    with seeded(seed):
        return sample_of(augment(subject), case_id)


def postponed(subject: tio.Subject, seed: int, case_id: str) -> Sample:
    """What `augmented` needs, as tensors and numbers that can be sent to a device.

    Args:
        subject: With `image` and `label`, and perhaps the `patch` that the mix will cut: then only what it
            may show is taken.
        seed: Of the mix.
        case_id: The case.
    """
    image, label, patch = subject["image"].data, subject["label"].data, subject.get("patch")
    if patch is not None:
        image, label = (patch.surroundings(data)[0].contiguous() for data in (image, label))
        patch = (patch.size, patch.around, tuple(min(start, 0) for start in patch.start))
    return {
        "image": image,
        "label": label,
        "classes": int(label.max()),  # so that nobody has to ask the device
        "patch": patch,
        "seed": seed,
        "case_id": case_id,
    }


def augment_batch(augment: tio.Transform, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Does on their device what was postponed, and puts the samples together to a batch."""
    return default_collate([_resumed(augment, **sample) for sample in samples])


def _resumed(
    augment: tio.Transform, image: Any, label: Any, classes: int, patch: Any, **sample: Any
) -> Sample:
    labels = tio.LabelMap(tensor=label, classes=classes)
    subject = tio.Subject(image=tio.ScalarImage(tensor=image), label=labels)
    if patch is not None:
        subject["patch"] = Patch(*patch)
    return augmented(augment, subject, **sample)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the processor's generator, which transforms draw from, and leaves it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
