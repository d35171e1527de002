"""The grand-challenge interface: the only CT and PET under a container's input folder → one mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hnseg.devices import pick_device
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case
from hnseg.imaging.images import write_image
from hnseg.inference.backends import make_networks
from hnseg.inference.cascade import Cascade, Segmentation
from hnseg.inference.predict_cases import read_checked
from hnseg.models.bundle import Bundle


@dataclass(frozen=True)
class Interface:
    """Where a challenge's platform puts images and looks for the mask, below its input and output folders.

    Args:
        ct: Folder of the CT.
        pet: Folder of the PET.
        mask: The mask's path; `{study}` is the name of the CT's file.
    """

    ct: str
    pet: str
    mask: str


# HECKTOR 2025 task 1, and the segmentation interface of 2026.
INTERFACES = {
    "2025": Interface("images/ct", "images/pet", "images/tumor-lymph-node-segmentation/{study}.mha"),
    "2026": Interface("images/ct", "images/pet", "images/head-neck-tumor-segmentation/output.mha"),
}


def segment_study(source: Path, out: Path, bundle: Path, interface: Interface) -> tuple[Path, Segmentation]:
    """Segments the only study of a container, with the fastest arithmetic that the machine offers.

    Args:
        source: The input folder.
        out: The output folder.
        bundle: The trained members; only read.
        interface: Where images and mask lie.

    Returns:
        The mask's file, and what the cascade made of the case.

    Raises:
        HnsegError: Not exactly one CT and PET, or a study that `read_checked` refuses.
    """
    study = Case("study", _only_image(source / interface.ct), _only_image(source / interface.pet))
    ct, pet, _ = read_checked(study)
    result = Cascade(Bundle.load(bundle), make_networks(pick_device()))(ct, pet)
    target = out / interface.mask.format(study=study.ct.stem)
    write_image(result.mask, target)
    return target, result


def _only_image(folder: Path) -> Path:
    found = sorted(folder.glob("*.mha"))
    if len(found) != 1:
        raise HnsegError(f"{folder}: {len(found)} .mha files; the platform puts exactly one there")
    return found[0]
