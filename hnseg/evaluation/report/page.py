"""The page itself: tables, pictures and viewer in one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import SimpleITK as sitk
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.environment import TemplateStream
from rich.console import Console
from rich.progress import track

from hnseg import __version__
from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan, cases_to_draw, load_scan
from hnseg.evaluation.report import tables
from hnseg.evaluation.report.cases import (
    Arm,
    Calibration,
    CaseRow,
    best_overlaps,
    find_arms,
    find_lesions,
    lesion_box,
    read_arm,
)
from hnseg.evaluation.report.pictures import (
    Picture,
    agreement,
    lesion_picture,
    maximum_projection,
    reliability,
    sizes,
)
from hnseg.evaluation.report.viewer import niivue_licence, niivue_module, viewer_grid, viewer_volumes
from hnseg.evaluation.score import find_masks
from hnseg.files import read_table, replacing, require_writable
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS
from hnseg.metrics.official import CLASSES

MOST_PICTURES = 20  # of a case: a mask of dust would fill the page
CHARACTERS_PER_MB = 1e6


@dataclass(frozen=True)
class DrawnCase:
    """A case of the page.

    Attributes:
        row: Its scores.
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
    """The drawn cases of one arm, and what the page sums up over them.

    Attributes:
        room: Characters left for the viewer's volumes.
        cases: Those drawn so far.
        nodes: (ml, best IoU) of every ground-truth node.
        calibrations: By class, of the probability maps.
    """

    room: float
    cases: list[DrawnCase] = field(default_factory=list)
    nodes: list[tuple[float, float]] = field(default_factory=list)
    calibrations: dict[str, Calibration] = field(
        default_factory=lambda: {name: Calibration() for name in CLASSES}
    )

    @property
    def without_viewer(self) -> int:
        """Cases whose volumes found no room."""
        return sum(case.volumes is None for case in self.cases)

    def add(self, row: CaseRow, case: Case, mask: Path) -> None:
        """Draw a case.

        Raises:
            HnsegError: A file that cannot be read, or a mask that is not on the CT's grid.
        """
        scan = load_scan(case, mask)
        findings, focus = find_lesions(scan), scan.focus()
        start, size = lesion_box(scan, focus)
        view = scan.crop(start, size, focus)
        pictures = [lesion_picture(view, start, finding) for finding in findings[:MOST_PICTURES]]
        volumes = self._volumes(scan, sitk.RegionOfInterest(scan.ct, size, start))
        undrawn = len(findings) - len(pictures)
        self.cases.append(DrawnCase(row, maximum_projection(scan), pictures, undrawn, volumes))
        self.nodes += best_overlaps(scan)
        if case.label is not None:
            for name, calibration in self.calibrations.items():
                calibration.add_maps(mask.parent / "maps" / case.case_id, name, case.label)

    def _volumes(self, scan: Scan, part: sitk.Image) -> str | None:
        """The viewer's volumes until the first that do not fit."""
        if self.room <= 0:
            return None
        volumes = json.dumps(viewer_volumes(scan, viewer_grid(part)))
        self.room -= len(volumes)
        return volumes if self.room >= 0 else None


def write_report(
    out: Path,
    html: Path,
    *,
    truth: Path | None = None,
    images: Path | None = None,
    arm: str | None = None,
    viewer_mb: float = 100.0,
) -> Gallery:
    """Score the masks of a folder and write the page.

    Args:
        out: What infer.py left, or a folder of arms with their ablation.json.
        html: The file, written whole or not at all.
        truth: The cohort; by default the one that the ablation names.
        images: CT and PET; by default the cohort's.
        arm: The arm whose cases are drawn; by default the first. The tables hold all.
        viewer_mb: Room for the viewer's volumes, MB; further cases have still pictures alone.

    Returns:
        What was drawn.

    Raises:
        HnsegError: An unknown arm, CT or PET missing, or a file that cannot be written.
    """
    # Whatever can be refused is refused before the long work.
    module = niivue_module()
    folders, cohort = find_arms(out, truth)
    require_writable(html)
    arm = arm or next(iter(folders))
    if arm not in folders:
        raise HnsegError(f"--arm {arm}: no such arm; choose from {', '.join(folders)}")
    _, stored = read_table(out / "ablation.csv", "write it anew with hnseg ablation", ("arm",))
    cases = {case.case_id: case for case in cases_to_draw(cohort, images)}
    arms = {name: read_arm(name, folder, cohort) for name, folder in folders.items()}
    gallery = _draw(arms[arm], cases, viewer_mb * CHARACTERS_PER_MB)
    page = _render(out.resolve().name, list(arms.values()), arms[arm], stored, gallery, module)
    with replacing(html) as temporary:
        page.dump(str(temporary), encoding="utf-8")
    return gallery


def _render(
    title: str, arms: list[Arm], drawn: Arm, stored: list[dict[str, str]], gallery: Gallery, module: str
) -> TemplateStream:
    environment = Environment(
        loader=PackageLoader("hnseg.evaluation.report"),
        autoescape=True,  # names of cases, centres and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles, *scripts = (_source(environment, name) for name in ("page.css", "tables.js", "viewer.js"))
    return environment.get_template("page.html").stream(
        title=title,
        version=__version__,
        arm=drawn.name,
        tables=[
            tables.score_table(arms),
            *([tables.stored_table(stored)] if stored else []),
            tables.center_table(arms),
            tables.case_table(arms, drawn),
        ],
        plots=list(_plots(drawn, gallery)),
        gallery=gallery,
        module=module,
        licence=niivue_licence(),
        colours=dict(zip(("truth", "prediction"), zip(*COLOURS.values(), strict=True), strict=True)),
        styles=styles,
        scripts=scripts,
        policy=_policy(scripts),
    )


def _draw(arm: Arm, cases: Mapping[str, Case], room: float) -> Gallery:
    masks, gallery = find_masks(arm.folder), Gallery(room)
    for row in track(arm.rows, "drawing", console=Console(stderr=True)):
        gallery.add(row, cases[row.score.case_id], masks[row.score.case_id])
    return gallery


def _plots(arm: Arm, gallery: Gallery) -> Iterator[Picture]:
    for name in CLASSES:
        if plot := agreement(name, arm.cohort.cases):
            yield plot
    if plot := sizes(gallery.nodes, arm.cohort.options.threshold):
        yield plot
    for name, calibration in gallery.calibrations.items():
        if calibration.voxels.any():
            yield reliability(name, calibration)


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _policy(scripts: list[str]) -> str:
    """The content security policy: these scripts and what is unpacked from the page, and no network."""
    digests = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; font-src data:"
    )
