"""The page itself: tables, pictures and viewer in one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import SimpleITK as sitk
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.progress import track

from hnseg import __version__
from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan, find_lesions
from hnseg.evaluation.report.libraries import datatables, licences, niivue
from hnseg.evaluation.report.pictures import (
    FUSED,
    Calibration,
    Picture,
    agreement,
    best_overlaps,
    by_centre,
    lesion_picture,
    maximum_projection,
    reliability,
    sizes,
)
from hnseg.evaluation.report.viewer import viewer_volumes
from hnseg.evaluation.score import MM3_PER_ML, CaseScore, CohortScore, evaluate, find_masks
from hnseg.evaluation.tables import ABLATION, FOOTNOTE, ablation_rows, make_tables
from hnseg.files import replacing, require_writable
from hnseg.imaging.case import Case, mask_file, read_cases
from hnseg.imaging.images import read_image, to_array
from hnseg.imaging.slices import COLOURS
from hnseg.inference.records import read_records
from hnseg.metrics.official import CLASSES, TITLES

TEMPLATES = Path(__file__).parent / "templates"
MOST_PICTURES = 20  # of a case: a mask of dust would fill the page
WORST = 3  # cases on the first screen
VIEWER_CHARACTERS = 100_000_000  # of all volumes: browsers open no page of gigabytes


@dataclass(frozen=True)
class CaseRow:
    """A case as a table shows it.

    Attributes:
        score: Its scores.
        reasons: Why a reader should review it first.
        agreement: Share of members that agree, 0 to 1, of the lesion where it is least; None if unknown.
    """

    score: CaseScore
    reasons: Sequence[str]
    agreement: float | None

    @property
    def dice(self) -> float:
        """Mean of the Dice of the classes that either side holds; 1 where neither holds any."""
        both = (self.score.counts.gtvp.dice, self.score.counts.gtvn.dice)
        known = [dice for dice in both if dice is not None]
        return sum(known) / len(known) if known else 1.0

    @property
    def cells(self) -> list[str]:
        """Dice, volumes, HD95 by class; nodes found, false and missed; the least agreement, as text."""
        cells = []
        for name, overlap in self.score.counts.overlaps.items():
            distance = self.score.distances[name]
            cells += [
                _number(overlap.dice, 3),
                _number(overlap.truth / MM3_PER_ML, 2),
                _number(overlap.prediction / MM3_PER_ML, 2),
                _number(distance and distance.hd95, 1),
            ]
        counts = map(str, self.score.counts.lesions)
        return [*cells, *counts, _number(self.agreement, 2)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class DrawnCase:
    """A case of the page."""

    row: CaseRow
    thumbnail: Picture | None  # the largest lesion, where the case is on the first screen
    projection: Picture  # PET from the front
    lesions: list[Picture]  # the largest of each class first
    undrawn: int  # lesions without a picture
    volumes: str | None  # what the viewer loads, as JSON of base64; None where the page has no room for it


def write_report(out: Path, truth: Path | None = None) -> list[DrawnCase]:
    """Score the masks of a folder and write OUT/report.html, whole or not at all.

    Args:
        out: What hnseg infer left, or a folder of arms with their ablation.json. The first arm's cases are
            drawn, the tables hold all.
        truth: The cohort, with CT and PET; by default the one that the ablation names.

    Returns:
        The cases that were drawn.

    Raises:
        HnsegError: No cohort, or CT or PET missing.
    """
    # Whatever can be refused is refused before the long work.
    modules, html = {"niivue": niivue(), "datatables": datatables()}, out / "report.html"
    folders, truth = _find_arms(out, truth)
    require_writable(html)
    cases = {case.case_id: case for case in read_cases(truth)}
    arms = {name: evaluate(truth, folder) for name, folder in folders.items()}
    rows = {name: sort_cases(arms[name], folder) for name, folder in folders.items()}
    first, folder = next(iter(folders.items()))
    drawn, plots = draw_cases(rows[first], cases, folder)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of cases, centres and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js", "viewer.js"))
    styles, *scripts = sources
    cohort, tables = arms[first], make_tables(ablation_rows(arms))
    volumes = [plot for name in CLASSES if (plot := agreement(name, cohort.cases))]
    page = environment.get_template("page.html").stream(
        title=out.resolve().name,
        version=__version__,
        arm=first if len(arms) > 1 else "",
        scores=[(TITLES[score], interval) for score, interval in cohort.intervals.items()],
        cohort=cohort,
        dice_plot=by_centre(cohort.cases),
        worst=sorted((case for case in drawn if case.thumbnail), key=lambda case: case.row.dice),
        tables=tables if len(arms) > 1 else tables[1:],  # the first screen has a single arm's scores
        footnote=FOOTNOTE,
        plots=volumes + plots,
        case_columns=case_columns(several=len(arms) > 1),
        rows=[(name, row) for name, arm in rows.items() for row in arm],
        cases=drawn,
        links={case.row.score.case_id: f"case-{number}" for number, case in enumerate(drawn, start=1)},
        without_viewer=sum(case.volumes is None for case in drawn),
        modules=modules,
        licences=licences(),
        legend=[(name, *COLOURS[name]) for name in CLASSES],
        colours=dict(zip(("truth", "prediction"), zip(*COLOURS.values(), strict=True), strict=True)),
        styles=styles,
        scripts=scripts,
        policy=_policy(scripts),
    )
    with replacing(html) as temporary:
        page.dump(str(temporary), encoding="utf-8")
    return drawn


def draw_cases(
    rows: Sequence[CaseRow], cases: Mapping[str, Case], folder: Path
) -> tuple[list[DrawnCase], list[Picture]]:
    """The cases of an arm in their order, and plots of its nodes' sizes and its maps' calibration."""
    masks, room = find_masks(folder), VIEWER_CHARACTERS
    drawn: list[DrawnCase] = []
    nodes: list[tuple[float, float]] = []
    calibrations = {name: Calibration() for name in CLASSES}
    worst = sorted(rows, key=lambda row: row.dice)[:WORST]
    for row in track(rows, "drawing", console=Console(stderr=True)):
        case_id = row.score.case_id
        scan = Scan.read(cases[case_id], masks[case_id])
        volumes = json.dumps(viewer_volumes(scan)) if room > 0 else ""
        room -= len(volumes)
        findings = find_lesions(scan)
        pictures = [lesion_picture(scan, finding) for finding in findings[:MOST_PICTURES]]
        largest = max(findings, key=lambda lesion: (lesion.truth_ml, lesion.predicted_ml), default=None)
        thumbnail = lesion_picture(scan, largest, FUSED) if row in worst and largest else None
        undrawn, shown = len(findings) - len(pictures), volumes if room > 0 else None
        drawn.append(DrawnCase(row, thumbnail, maximum_projection(scan), pictures, undrawn, shown))
        nodes += best_overlaps(scan)
        for name, calibration in calibrations.items():
            path = mask_file(folder / "maps" / case_id, f"probability_{name}")
            if path.is_file():
                probability = sitk.DICOMOrient(read_image(path), "LPS")
                calibration.add(to_array(probability), to_array(scan.truth) == CLASSES[name])
    plots = [sizes(nodes), *(reliability(name, calibration) for name, calibration in calibrations.items())]
    return drawn, [plot for plot in plots if plot]


def _find_arms(out: Path, truth: Path | None) -> tuple[dict[str, Path], Path]:
    """Each arm's folder by name, in the ablation's order, and the cohort."""
    table = out / ABLATION
    if table.exists():
        content = json.loads(table.read_text(encoding="utf-8"))
        return {name: out / name for name in content["arms"]}, truth or Path(content["data"])
    if truth is None:
        raise HnsegError(f"{out}: has no {ABLATION} to name the cohort; add --ground-truth ROOT")
    return {out.resolve().name: out}, truth


def sort_cases(cohort: CohortScore, folder: Path) -> list[CaseRow]:
    """The cases with what their records say: those to review first, each group from the worst Dice on."""
    records, rows = read_records(folder), []
    for score in cohort.cases:
        record = records.get(score.case_id)
        lesions = record.lesions if record else []
        agreements = [lesion.agreement for lesion in lesions if lesion.agreement is not None]
        reasons = record.review_reasons if record else []
        rows.append(CaseRow(score, reasons, min(agreements, default=None)))
    return sorted(rows, key=lambda row: (not row.reasons, row.dice, row.score.case_id))


def case_columns(*, several: bool) -> list[tuple[str, list[str]]]:
    """The headings of the table of cases, in groups, with the arm where there are several."""
    measures = ["Dice", "true ml", "predicted ml", "HD95 mm"]
    groups = [("", ["Case", *(["Arm"] if several else []), "Centre"])]
    groups += [(name, measures) for name in CLASSES]
    return [*groups, ("GTVn nodes", ["found", "false", "missed"]), ("", ["Least agreement", "Review first"])]


def _policy(scripts: list[str]) -> str:
    """The content security policy: these scripts and what is unpacked from the page, and no network."""
    digests = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; font-src data:"
    )
