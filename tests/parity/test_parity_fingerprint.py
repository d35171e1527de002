"""Constants of the training fold against nnU-Net's fingerprint and MONAI's foreground statistics."""

import numpy as np
import pytest
import torch
from monai.auto3dseg import FgImageStats, FgImageStatsSumm
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from numpy.typing import NDArray
from spoiled import must_fail
from volumes import write_volume

from hnseg.card import InputSpec
from hnseg.data.cache import StageVolume
from hnseg.data.dataset import roi_subject
from hnseg.data.fingerprint import Fingerprint
from hnseg.data.intensity import input_transform

SPEC = InputSpec(ct_window=(-200.0, 300.0), cte=True)
# Side of the lesion of each case, in voxels: each weighs the same for nnU-Net, however large.
SIDES = (12, 6, 9)


@pytest.fixture
def volumes(tmp_path) -> list[StageVolume]:
    """Cases whose lesions differ in size and in their values, and one without a lesion."""
    made = []
    for seed, side in enumerate((*SIDES, 0)):
        label = np.zeros((16, 14, 15), np.uint8)
        label[1 : side + 1, 1 : side + 1, 2 : side + 2] = 1 + seed % 2
        volume = write_volume(tmp_path / "volumes", f"A-{seed}", label, seed=seed)
        ct = np.load(volume.folder / "ct.npy")
        np.save(volume.folder / "ct.npy", ct + np.int16(60 * seed))
        made.append(volume)
    return made


def images(volumes: list[StageVolume]) -> list[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
    """Scaled channels (C, z, y, x) and labels (z, y, x) of all cases."""
    subjects = [input_transform(SPEC.unnormalised)(roi_subject(v, v.margin)) for v in volumes]
    return [(s["image"].data.numpy(), s["label"].data[0].numpy()) for s in subjects]


def nnunet(volumes: list[StageVolume]) -> NDArray[np.float64]:
    """Percentiles, mean and deviation (C, 4) of what nnU-Net draws of each case, pooled as it pools it."""
    drawn = [
        DatasetFingerprintExtractor.collect_foreground_intensities(
            label[None].astype(np.int8), image, num_samples=100_000
        )[0]
        for image, label in images(volumes)
    ]
    pooled = [np.concatenate(channel) for channel in zip(*drawn, strict=True)]
    return np.array([[*np.percentile(x, (0.5, 99.5)), np.mean(x), np.std(x)] for x in pooled])


def monai(volumes: list[StageVolume]) -> NDArray[np.float64]:
    """Percentiles (C, 2): Auto3DSeg's summary over cases of what it analyses of each, channel by channel."""
    found = []
    for n in range(4):
        analysed = []
        for image, label in images(volumes):
            case = {"image": torch.from_numpy(image[n : n + 1]), "label": torch.from_numpy(label)}
            analysed.append(FgImageStats("image", "label")(case))
        summary = FgImageStatsSumm()(analysed)["intensity"]
        found.append([summary["percentile_00_5"], summary["percentile_99_5"]])
    return np.array(found)


@pytest.fixture
def measured(volumes, tmp_path) -> Fingerprint:
    return Fingerprint.measure(volumes, SPEC, tmp_path)


def test_pooled_constants_are_nnunet_s(volumes, measured):
    # The case without foreground counts for nothing in either. nnU-Net draws 300 000 voxels, ours takes all.
    ours = [channel.pooled for channel in measured.channels]
    np.testing.assert_allclose(ours, nnunet(volumes), rtol=0, atol=4e-3)


def test_per_case_percentiles_are_auto3dseg_s_of_the_cases_with_a_lesion(volumes, measured):
    ours = [channel.per_case for channel in measured.channels]
    np.testing.assert_allclose(ours, monai(volumes[:-1]), rtol=0, atol=1e-5)
    # On purpose: MONAI takes percentiles of 0 where nothing is labelled, and averages them in.
    with must_fail():
        np.testing.assert_allclose(ours, monai(volumes), rtol=0, atol=1e-5)
