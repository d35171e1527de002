"""How the cost of a case list grows with its length.

    python benchmarks/case_lists.py            # 200 and 20,000 cases: five minutes of one core

A stand-in for the cascade answers at once, so that what is measured is the list itself: small scans read and
checked, masks, records and tables written, and then the whole list skipped by a second call. All cases share
one pair of scans. Processor seconds of each case, of this process and its threads; the longer list may take
at most 1.2 times as much a case as the shorter.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from time import process_time
from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import torch

from hnseg.card import Decision
from hnseg.imaging.case import Case
from hnseg.imaging.grid import Grid
from hnseg.imaging.images import write_image
from hnseg.inference.cascade import Segmentation
from hnseg.inference.decision import Uptake
from hnseg.inference.lesions import Lesion
from hnseg.inference.predict_cases import predict_cases

SHAPE = (20, 24, 24)  # z, y, x
MOST = 1.2


class StandIn:
    """What `predict_cases` asks of a cascade; it finds the same two lesions in every case.

    Args:
        bundle: A folder that stands for a bundle.
    """

    def __init__(self, bundle: Path) -> None:
        self.bundle = SimpleNamespace(path=bundle, identity="none", members=[])
        self.decision, self.names = Decision(), ["fine"]
        self.out_of_fold, self.head_masks, self.lesions = False, None, None
        self.probabilities = self.uncertainty = False
        self.networks = SimpleNamespace(device=torch.device("cpu"), precision="float32")

    def __call__(
        self, ct: sitk.Image, pet: sitk.Image, case_id: str = "", cache: None = None
    ) -> Segmentation:
        """A mask of zeros on the CT's grid."""
        grid = Grid.centred((0.0, 0.0, 0.0), (32, 32, 32), (1.0, 1.0, 1.0))
        result = Segmentation(sitk.Image(ct.GetSize(), sitk.sitkUInt8), True, self.decision)
        result.mask.CopyInformation(ct)
        result.grids["fine"] = [grid]
        result.lesions = [
            Lesion(n, "GTVn", 1.0, Uptake(9.0, 5.0, 7.0), (0.0, 0.0, 0.0), 0.9, 0.9, 20.0) for n in (1, 2)
        ]
        return result


def main() -> None:
    """Prints a table, and whether the bound holds."""
    parser = argparse.ArgumentParser(description="Measures how the cost of a case list grows.")
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 20_000])
    counts = parser.parse_args().cases
    with tempfile.TemporaryDirectory() as folder:
        scans = write_scans(Path(folder))
        seconds([scans], Path(folder), 20)  # whatever happens only once
        rows = {count: seconds([scans], Path(folder), count) for count in counts}
    print("\n| cases | segmented, ms a case | skipped, ms a case |\n| --- | --- | --- |")
    for count, (segmented, skipped) in rows.items():
        print(f"| {count:,} | {segmented * 1000:.2f} | {skipped * 1000:.2f} |")
    first, last = sum(rows[counts[0]]), sum(rows[counts[-1]])
    verdict = "at most" if last <= MOST * first else "MORE than"
    print(f"\n{last / first:.2f} times as much a case: {verdict} {MOST}")


def write_scans(folder: Path) -> tuple[Path, Path]:
    """A small CT and PET."""
    rng, images = np.random.default_rng(0), {}
    hu = np.where(np.indices(SHAPE)[2] > 6, rng.normal(40, 10, SHAPE), -1000)
    hu[:, :, 20:] = 800  # bone
    for name, values in (("ct", hu), ("pet", rng.uniform(0.2, 2, SHAPE))):
        images[name] = sitk.GetImageFromArray(values.astype(np.float32))
        images[name].SetSpacing((6.0, 6.0, 6.0))
        write_image(images[name], folder / f"{name}.nii.gz")
    (folder / "bundle").mkdir()
    (folder / "bundle" / "bundle.yaml").touch()
    return folder / "ct.nii.gz", folder / "pet.nii.gz"


def seconds(scans: list[tuple[Path, Path]], folder: Path, count: int) -> tuple[float, float]:
    """Of the processor for each case of a list, segmented and then skipped."""
    cases = [Case(f"A-{n:06}", *scans[n % len(scans)]) for n in range(count)]
    out, took = folder / "out", []
    for _ in range(2):
        start = process_time()
        outcomes = predict_cases(cases, [{out: StandIn(folder / "bundle")}])  # type: ignore[dict-item]
        took.append((process_time() - start) / count)
        assert not [one for one in outcomes if one.status == "error"], outcomes[0]
    shutil.rmtree(out)
    return took[0], took[1]


if __name__ == "__main__":
    main()
