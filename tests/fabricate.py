"""Small PET/CT cases written with SimpleITK alone, so that tests do not lean on what they test."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk


def volume(
    values: np.ndarray, spacing: tuple[float, ...], origin: tuple[float, ...] = (0.0, 0.0, 0.0)
) -> sitk.Image:
    """An image of `values` (z, y, x) with spacing and origin (x, y, z) in mm."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def ct_image(seed: int = 0) -> sitk.Image:
    """80 x 80 x 90 mm of HU: a soft cylinder with a bone in air."""
    hu = np.full((30, 40, 40), -1000, np.float32)
    hu[:, 8:32, 8:32] = 40
    hu[:, 18:22, 18:22] = 800
    hu += np.random.default_rng(seed).normal(0, 10, hu.shape).astype(np.float32)
    return volume(hu, (2, 2, 3))


def pet_image(seed: int = 0) -> sitk.Image:
    """SUV on a coarser grid over the same 80 x 80 x 90 mm, a hot spot of SUV 12 in it."""
    suv = np.random.default_rng(seed).uniform(0.2, 1.0, (18, 20, 20)).astype(np.float32)
    suv[8:11, 6:9, 6:9] = 12
    return volume(suv, (4, 4, 5), (1, 1, 1))


def label_image() -> sitk.Image:
    """On the CT's grid: one GTVp of 0.768 ml, and two GTVn voxel blocks of 0.096 ml that share no corner."""
    label = np.zeros((30, 40, 40), np.uint8)
    label[10:14, 10:14, 10:14] = 1
    label[20:22, 10:12, 10:12] = 2
    label[20:22, 10:12, 20:22] = 2
    return volume(label, (2, 2, 3))


def write_case(root: Path, name: str, *, seed: int = 0, **images: sitk.Image | None) -> Path:
    """Write a case in the HECKTOR layout; `ct`, `pet`, `label` replace the usual, None leaves out."""
    folder = root / name
    folder.mkdir(parents=True)
    usual = {"ct": ct_image(seed), "pet": pet_image(seed), "label": label_image()}
    for part, image in (usual | images).items():
        if image is not None:
            suffix = {"ct": "__CT", "pet": "__PT", "label": ""}[part]
            sitk.WriteImage(image, str(folder / f"{name}{suffix}.nii.gz"))
    return folder
