"""The mix on the device that trains: the same samples as from the loaders."""

from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from entry import compose_job
from hydra.utils import instantiate
from torch.utils.data import DataLoader
from volumes import lesions, write_volume

from hnseg.data.augment import RandomFlip, RandomNoise
from hnseg.data.augment.spatial import resample
from hnseg.data.dataset import EpochSampler, PatchDataset, augment_batch
from hnseg.data.intensity import InputSpec, Normalise
from hnseg.data.patch import Patch

SPEC = InputSpec(normalise=(Normalise("zscore"),) * 2)
MIXES = ("nnunet", "auto3dseg")


@pytest.fixture
def batches(tmp_path):
    """Return batches of a mix: `batches("nnunet", "cuda", samples, on=device)`."""
    volumes = [write_volume(tmp_path, f"A-{n}", lesions((12, 14, 16), n), seed=n) for n in range(3)]

    def make(mix: str, device: str, samples: int = 48, on: str = "cpu") -> list[dict[str, Any]]:
        augment = instantiate(compose_job("train", f"augment={mix}", f"augment.device={device}").augment)
        for transform in augment.transforms:  # often enough to be seen
            transform.probability = max(transform.probability, 0.5)
        data = PatchDataset(volumes, SPEC, (8, 10, 12), 2, augment, seed=0)
        postpones = device == "cuda"
        loader = DataLoader(data, 2, sampler=EpochSampler(samples), collate_fn=list if postpones else None)
        if not postpones:
            return list(loader)
        moved = ([{k: to(v, on) for k, v in sample.items()} for sample in batch] for batch in loader)
        return [augment_batch(augment, batch) for batch in moved]

    return make


def to(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("mix", MIXES)
def test_postponed_samples_are_those_of_the_loaders(batches, mix):
    early, late = batches(mix, "cpu"), batches(mix, "cuda")
    assert len(early) == len(late) == 24
    for one, other in zip(early, late, strict=True):
        assert one["case_id"] == other["case_id"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    assert not torch.equal(early[0]["image"], early[1]["image"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mix", MIXES)
def test_a_gpu_mixes_alike(batches, mix):
    """Up to rounding and its own noise: the same labels but for ties, the same mean and spread."""
    early, late = batches(mix, "cpu", 200), batches(mix, "cuda", 200, on="cuda")
    images = [torch.cat([batch["image"].cpu() for batch in one]) for one in (early, late)]
    labels = [torch.cat([batch["label"].cpu() for batch in one]) for one in (early, late)]
    assert (labels[0] != labels[1]).float().mean() < 1e-3
    for measure in (torch.mean, torch.std):
        torch.testing.assert_close(measure(images[1]), measure(images[0]), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("classes", [0, 2])
def test_turning_reads_no_number_from_the_device(classes):
    """Tensors without numbers, of which none could be read; a patch without lesions is one of these too."""
    label = tio.LabelMap(tensor=torch.empty(1, 8, 8, 8, dtype=torch.uint8, device="meta"), classes=classes)
    turned = resample(label, np.eye(3), Patch((4, 4, 4), (6, 6, 6), (1, 1, 1)))
    assert (turned.device.type, turned.shape) == ("meta", (1, 4, 4, 4))


def test_mirroring_is_torchio_s():
    image, label = torch.rand(2, 3, 4, 5), torch.randint(3, (1, 3, 4, 5), dtype=torch.uint8)
    for seed in range(8):
        mirrored = []
        for transform in (RandomFlip(axes=(0, 2)), tio.RandomFlip(axes=(0, 2))):
            subject = tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))
            torch.manual_seed(seed)
            mirrored.append(transform(subject))
        ours, theirs = mirrored
        assert torch.equal(ours["image"].data, theirs["image"].data)
        assert torch.equal(ours["label"].data, theirs["label"].data)


def test_noise_has_the_deviation_that_was_asked_for():
    image = torch.full((1, 32, 32, 32), 5.0)
    subject = tio.Subject(image=tio.ScalarImage(tensor=image.clone()), label=tio.LabelMap(tensor=image))
    noisy = RandomNoise(std=(0.5, 0.5))(subject)
    noise = noisy["image"].data - image
    assert noise.std() == pytest.approx(0.5, rel=0.02)  # 32,768 draws: a standard error of 0.4 %
    assert abs(noise.mean()) < 0.5 * 4 / 32**1.5
    assert torch.equal(noisy["label"].data, image)
