"""What the page shows of one case beyond its scores."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import SimpleITK as sitk

from hnseg.cases import Case
from hnseg.evaluation.slices import NAMES
from hnseg.evaluation.view import Scan, load_scan
from hnseg.metrics import CLASSES
from hnseg.report.arms import Arm, CaseRow
from hnseg.report.calibration import Calibration, add_case, find_map
from hnseg.report.findings import best_overlaps, find_lesions, lesion_box
from hnseg.report.pictures import Picture, lesion_picture, maximum_projection
from hnseg.report.volumes import viewer_grid, viewer_volumes

MOST_PICTURES = 20  # of a case: a mask of dust would fill the page


@dataclass(frozen=True)
class ShownCase:
    """A case of the page.

    Attributes:
        row: Its scores and what to know of it.
        projection: PET from the front.
        lesions: A picture a lesion, the largest first.
        undrawn: How many smaller lesions have none.
        volumes: What the viewer loads, as JSON of base64; None where the page has no room for it.
    """

    row: CaseRow
    projection: Picture
    lesions: list[Picture]
    undrawn: int
    volumes: str | None


@dataclass
class Gallery:
    """The cases of one arm, shown one after the other while what the page sums up over them is gathered.

    Attributes:
        room: Characters left for the viewer's volumes.
        cases: Those shown so far.
        nodes: (ml, best IoU) of every true node.
        calibrations: Of the classes whose probability maps were found.
    """

    room: float
    cases: list[ShownCase] = field(default_factory=list)
    nodes: list[tuple[float, float]] = field(default_factory=list)
    calibrations: dict[str, Calibration] = field(default_factory=dict)

    @property
    def without_viewer(self) -> int:
        """Cases whose volumes found no room."""
        return sum(case.volumes is None for case in self.cases)

    def add(self, arm: Arm, row: CaseRow, case: Case, mask: Path) -> None:
        """Draw a case.

        Raises:
            HnsegError: A file that cannot be read, or a mask that is not on the CT's grid.
        """
        scan = load_scan(case, mask)
        findings, focus = find_lesions(scan), scan.focus()
        start, size = lesion_box(scan, focus)
        view = scan.crop(start, size, focus)
        pictures = [lesion_picture(view, start, one) for one in findings[:MOST_PICTURES]]
        undrawn = len(findings) - len(pictures)
        volumes = self._volumes(scan, sitk.RegionOfInterest(scan.ct, size, start))
        self.cases.append(ShownCase(row, maximum_projection(scan), pictures, undrawn, volumes))
        self.nodes += best_overlaps(scan)
        self._calibrate(arm.folder / "maps" / case.case_id, case)

    def _volumes(self, scan: Scan, shown: sitk.Image) -> str | None:
        """The viewer's volumes while there is room for them; the first that do not fit end it."""
        if self.room <= 0:
            return None
        volumes = json.dumps(viewer_volumes(scan, viewer_grid(shown)))
        self.room -= len(volumes)
        return volumes if self.room >= 0 else None

    def _calibrate(self, maps: Path, case: Case) -> None:
        for name, label in CLASSES.items():
            probability = find_map(maps, NAMES[name])
            if probability is not None and case.label is not None:
                add_case(self.calibrations.setdefault(name, Calibration()), probability, case.label, label)
