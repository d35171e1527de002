"""The page itself: tables, pictures and viewer poured into one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from hnseg import __version__
from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan, cases_to_draw, load_scan
from hnseg.evaluation.report.cases import (
    Arm,
    Calibration,
    CaseRow,
    add_case,
    best_overlaps,
    find_arms,
    find_lesions,
    find_map,
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
from hnseg.evaluation.report.viewer import REMEDY, niivue_licence, niivue_module, viewer_grid, viewer_volumes
from hnseg.evaluation.score import MM3_PER_ML, CaseScore, find_masks
from hnseg.evaluation.statistics import SCORES, TITLES, Interval, score_intervals
from hnseg.files import read_table, replacing, require_writable
from hnseg.imaging.case import Case
from hnseg.imaging.slices import COLOURS, NAMES
from hnseg.metrics import CLASSES


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: As printed.
        order: What it is sorted by, None for its text; missing numbers come last.
        link: Id of the element on the page that it leads to; '' for none.
    """

    text: str
    order: float | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the first cell of a row names the row.

    Attributes:
        key: Its id on the page.
        caption: What it shows.
        columns: (heading, whether it holds numbers).
        rows: Cells by column.
    """

    key: str
    caption: str
    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]


def score_table(arms: Sequence[Arm]) -> Table:
    """The official scores of every arm with their 95 % intervals."""
    columns = [("Arm", False), ("Cases", True), *((TITLES[score], True) for score in SCORES), ("Note", False)]
    rows = [[Cell(arm.name), *_scores(arm.report.cases)] for arm in arms]
    return Table("scores", "Official scores, each with its 95 % interval", columns, rows)


def center_table(arms: Sequence[Arm]) -> Table:
    """The official scores centre by centre."""
    scores = [(TITLES[score], True) for score in SCORES]
    columns = [("Centre", False), ("Arm", False), ("Cases", True), *scores, ("Note", False)]
    rows = []
    for arm in arms:
        for center in arm.report.centers:
            cases = [case for case in arm.report.cases if case.center == center]
            rows.append([Cell(center or "(none)"), Cell(arm.name), *_scores(cases)])
    return Table("centres", "Official scores by centre", columns, rows)


def case_table(arms: Sequence[Arm], anchors: Mapping[str, str], shown: Arm) -> Table:
    """Every case of every arm: those to look at first, then the worst.

    Args:
        arms: All.
        anchors: Id of a case's element on the page by case.
        shown: The arm whose cases have an element.
    """
    columns = [("Case", False), ("Arm", False), ("Centre", False)]
    for title in NAMES.values():
        columns += [(f"{title} Dice", True), (f"{title} true ml", True), (f"{title} predicted ml", True)]
        columns += [(f"{title} HD95 mm", True)]
    columns += [("GTVn found", True), ("false", True), ("missed", True)]
    columns += [("Least agreement", True), ("Look first", False)]
    rows = [
        [_case_cell(row, anchors, arm is shown), Cell(arm.name), *_case_cells(row)]
        for arm in arms
        for row in arm.rows
    ]
    return Table("cases", "Cases: those to look at first, then from the worst Dice on", columns, rows)


def stored_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """A table of a CSV as it stands."""
    columns = [(name, all(_is_number(row[name]) for row in rows)) for name in rows[0]]
    cells = [
        [
            Cell(text, float(text) if numeric and text else None)
            for text, (_, numeric) in zip(row.values(), columns, strict=True)
        ]
        for row in rows
    ]
    return Table("ablation", "Ablation, as in ablation.csv", columns, cells)


def number(value: float | None, digits: int = 3) -> Cell:
    """A number, or a dash where there is none."""
    return Cell("–") if value is None else Cell(f"{value:.{digits}f}", value)


def _scores(cases: Sequence[CaseScore]) -> list[Cell]:
    intervals = score_intervals(cases)
    notes = sorted({one.note for one in intervals.values() if one.note})
    scores = [_interval(intervals[score]) for score in SCORES]
    return [Cell(str(len(cases)), len(cases)), *scores, Cell("; ".join(notes))]


def _interval(interval: Interval) -> Cell:
    if interval.value is None or interval.low is None or interval.high is None:
        return number(interval.value, 4)
    return Cell(f"{interval.value:.4f} ({interval.low:.4f} to {interval.high:.4f})", interval.value)


def _case_cell(row: CaseRow, anchors: Mapping[str, str], shown: bool) -> Cell:
    case_id = row.score.case_id
    return Cell(case_id, link=anchors[case_id] if shown else "")


def _case_cells(row: CaseRow) -> Iterable[Cell]:
    counts = row.score.counts
    yield Cell(row.score.center)
    for name in NAMES:
        overlap, distance = getattr(counts, name), row.score.distances[name]
        yield number(overlap.dice)
        yield number(overlap.truth / MM3_PER_ML, 2)
        yield number(overlap.prediction / MM3_PER_ML, 2)
        yield number(distance and distance.hd95, 1)
    yield from (Cell(str(count), count) for count in counts.lesions)
    yield number(row.agreement, 2)
    yield Cell(row.look_first)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True


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


CHARACTERS_PER_MB = 1e6
SIDES = ("truth", "prediction")


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
        arm: The one whose cases are shown; by default the first. The tables hold all.
        viewer_mb: Room for the viewer's volumes, MB; cases beyond have still pictures alone.

    Returns:
        What was shown.

    Raises:
        HnsegError: As `find_arms` and `read_arm`, an arm that is not there, CT or PET missing, or the extra
            `report` is, a damaged ablation.csv, or a file that cannot be written.
    """
    # Whatever can be refused is refused before the long work.
    template, module = _template(), niivue_module()
    folders, cohort = find_arms(out, truth)
    require_writable(html)
    arm = _choose(list(folders), arm)
    _, stored = read_table(out / "ablation.csv", "write it anew with hnseg ablation", ("arm",))
    cases = {case.case_id: case for case in cases_to_draw(cohort, images)}
    arms = {name: read_arm(name, folder, cohort) for name, folder in folders.items()}
    shown = arms[arm]
    scripts = [_asset("tables.js"), _asset("viewer.js")]
    gallery = _show(shown, cases, viewer_mb * CHARACTERS_PER_MB)
    content = {
        "title": out.resolve().name,
        "version": __version__,
        "shown": shown,
        "tables": _tables(list(arms.values()), shown, stored),
        "plots": list(_plots(shown, gallery)),
        "gallery": gallery,
        "anchors": _anchors(shown),
        "module": module,
        "licence": niivue_licence(),
        "colours": {side: [pair[kind] for pair in COLOURS.values()] for kind, side in enumerate(SIDES)},
        "styles": _asset("page.css"),
        "scripts": scripts,
        "policy": _policy(scripts),
    }
    with replacing(html) as temporary:
        template.stream(content).dump(str(temporary), encoding="utf-8")
    return gallery


def _choose(arms: Sequence[str], name: str | None) -> str:
    if name is None:
        return arms[0]
    if name not in arms:
        raise HnsegError(f"--arm {name}: no such arm; choose from {', '.join(arms)}")
    return name


def _show(arm: Arm, cases: dict[str, Case], room: float) -> Gallery:
    from rich.console import Console
    from rich.progress import track

    masks, gallery = find_masks(arm.folder), Gallery(room)
    for row in track(arm.rows, "drawing", console=Console(stderr=True)):
        case_id = row.score.case_id
        gallery.add(arm, row, cases[case_id], masks[case_id])
    return gallery


def _anchors(arm: Arm) -> dict[str, str]:
    """An id of the page for every case: names hold what an id must not."""
    return {row.score.case_id: f"case-{number}" for number, row in enumerate(arm.rows, start=1)}


def _tables(arms: Sequence[Arm], shown: Arm, stored: Sequence[Mapping[str, str]]) -> list[Table]:
    tables = [score_table(arms)]
    if stored:
        tables.append(stored_table(stored))
    return [*tables, center_table(arms), case_table(arms, _anchors(shown), shown)]


def _plots(arm: Arm, gallery: Gallery) -> Iterator[Picture]:
    for name in NAMES:
        if plot := agreement(name, arm.report.cases):
            yield plot
    if plot := sizes(gallery.nodes, arm.report.options.threshold):
        yield plot
    for name, calibration in gallery.calibrations.items():
        yield reliability(name, calibration)


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise HnsegError(f"hnseg report: Jinja2 is not installed; {REMEDY}") from error
    # Everything is escaped: names of cases, centres and files come from outside.
    environment = Environment(
        loader=PackageLoader("hnseg.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return files("hnseg.evaluation.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: these scripts and what is unpacked from the page, and no network."""
    digests = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; font-src data:"
    )
