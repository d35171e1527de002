"""The grand-challenge interface: one study in fixed folders → one mask in another.

A container has no case list: it finds the only CT and PET under its input folder, and must leave exactly
one mask. Nothing is written but that mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hnseg.devices import pick_device
from hnseg.errors import HnsegError
from hnseg.imaging.audit import check_case
from hnseg.imaging.case import Case
from hnseg.imaging.images import write_image
from hnseg.imaging.suv import read_scan
from hnseg.inference.cascade import Segmentation
from hnseg.inference.setup import Setup


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
    """Segments the one study of a container, with the fastest that the machine offers.

    Args:
        source: The input folder.
        out: The output folder.
        bundle: The trained members; only read.
        interface: Where things lie.

    Returns:
        The mask's file, and what the cascade said of the case.

    Raises:
        HnsegError: Not exactly one CT and PET, an unusable study, or a mask that cannot be written.
    """
    study = Case("study", _only_image(source / interface.ct), _only_image(source / interface.pet))
    ct, pet = read_scan(study)
    faults = [finding.text for finding in check_case(ct, pet) if finding.level == "error"]
    if faults:
        raise HnsegError(f"{source}: {faults[0]}")
    (cascade,) = Setup(bundle).load([pick_device()])
    result = cascade(ct, pet)
    target = out / interface.mask.format(study=study.ct.stem)
    write_image(result.mask, target)
    return target, result


def _only_image(folder: Path) -> Path:
    found = sorted(folder.glob("*.mha"))
    if len(found) != 1:
        raise HnsegError(f"{folder}: {len(found)} .mha files; the platform puts exactly one there")
    return found[0]
