"""The page itself: tables, pictures and viewer in one HTML file that needs nothing else."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from rich.progress import track

from hnseg import __version__
from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan, find_lesions
from hnseg.evaluation.report.cases import CaseRow, columns, scored_rows, tiles, unscored_rows
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
from hnseg.evaluation.score import CohortScore, evaluate, find_masks
from hnseg.evaluation.statistics import Interval
from hnseg.evaluation.tables import ABLATION, FOOTNOTE, ablation_rows, make_tables
from hnseg.files import replacing, require_writable
from hnseg.imaging.case import Case, read_cases
from hnseg.imaging.images import to_array
from hnseg.imaging.slices import COLOURS
from hnseg.metrics.official import CLASSES, TITLES

TEMPLATES = Path(__file__).parent / "templates"
MOST_PICTURES = 20  # of a case: a mask of dust would fill the page
WORST = 3  # cases on the first screen
VIEWER_CHARACTERS = 100_000_000  # of all volumes: browsers open no page of gigabytes


@dataclass(frozen=True)
class DrawnCase:
    """A case of the page."""

    row: CaseRow
    thumbnail: Picture | None  # the largest lesion, where the case is on the first screen
    projection: Picture  # PET from the front
    lesions: list[Picture]  # the largest of each class first
    undrawn: int  # lesions without a picture
    volumes: str | None  # what the viewer loads, as JSON of base64; None where the page has no room for it


def write_report(out: Path, truth: Path | None = None, data: Path | None = None) -> list[DrawnCase]:
    """Write OUT/report.html, whole or not at all: the masks of a folder, and their scores.

    Args:
        out: What hnseg infer left, or a folder of arms with their ablation.json. The first arm's cases are
            drawn, the tables hold all.
        truth: The cohort, with CT and PET; by default the one that the ablation names.
        data: Patients without ground truth, which is not looked at; the cases with a mask are shown.

    Returns:
        The cases that were drawn.

    Raises:
        HnsegError: No cohort, or CT or PET missing.
    """
    # Whatever can be refused is refused before the long work.
    modules, html = {"niivue": niivue(), "datatables": datatables()}, out / "report.html"
    if data is None:
        folders, cohort = _find_arms(out, truth)
        listed = read_cases(cohort)
    else:
        folders, masks = {out.resolve().name: out}, find_masks(out)
        listed = [replace(case, label=None) for case in read_cases(data, strict=False)]
        listed = [case for case in listed if case.case_id in masks]
        if not listed:
            raise HnsegError(f"{out}: no mask CASE.nii.gz of a case of {data}; give what hnseg infer wrote")
    require_writable(html)
    first, folder = next(iter(folders.items()))
    if data is None:
        arms = {name: evaluate(cohort, own) for name, own in folders.items()}
        rows = {name: scored_rows(arms[name], own) for name, own in folders.items()}
        shown = _scores(arms)
    else:
        rows = {first: unscored_rows(listed, folder)}
        shown = _findings(rows[first])
    drawn, plots = draw_cases(rows[first], {case.case_id: case for case in listed}, folder)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of cases, centres and files come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sources = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js", "viewer.js"))
    styles, *scripts = sources
    page = environment.get_template("page.html").stream(
        shown,
        title=out.resolve().name,
        version=__version__,
        arm=first if len(folders) > 1 else "",
        scored=data is None,
        first=sorted((case for case in drawn if case.thumbnail), key=lambda case: case.row.dice),
        plots=shown["volumes"] + plots,
        case_columns=columns(scored=data is None, several=len(folders) > 1),
        rows=[(name, row) for name, arm in rows.items() for row in arm],
        cases=drawn,
        links={case.row.case_id: f"case-{number}" for number, case in enumerate(drawn, start=1)},
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


def _scores(arms: Mapping[str, CohortScore]) -> dict[str, Any]:
    """The first arm's figures, and tables and plots of scores."""
    cohort, tables = next(iter(arms.values())), make_tables(ablation_rows(arms))
    measured = {
        name: [
            (case.center, dice)
            for case in cohort.cases
            if (dice := case.counts.overlaps[name].dice) is not None
        ]
        for name in CLASSES
    }
    return {
        "tiles": [(TITLES[score], *_figure(interval)) for score, interval in cohort.intervals.items()],
        "plot": by_centre(measured, "Dice"),
        "tables": tables if len(arms) > 1 else tables[1:],  # the first screen has a single arm's scores
        "footnote": FOOTNOTE if any(interval.note for interval in cohort.intervals.values()) else "",
        "volumes": [plot for name in CLASSES if (plot := agreement(name, cohort.cases))],
    }


def _figure(interval: Interval) -> tuple[str, str]:
    """A score and its interval."""
    value = "–" if interval.value is None else f"{interval.value:.3f}"
    if interval.low is None:
        return value, "no interval"
    return value, f"95 % interval {interval.low:.3f} to {interval.high:.3f}{'*' if interval.note else ''}"


def _findings(rows: Sequence[CaseRow]) -> dict[str, Any]:
    """Figures and a plot of the masks alone."""
    volumes = {name: [(row.centre, sum(row.volumes(name))) for row in rows] for name in CLASSES}
    plot = by_centre(volumes, "volume (ml)")
    return {"tiles": tiles(rows), "plot": plot, "tables": [], "footnote": "", "volumes": []}


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
        case_id = row.case_id
        scan = Scan.read(cases[case_id], masks[case_id], folder / "maps" / case_id)
        volumes = json.dumps(viewer_volumes(scan)) if room > 0 else ""
        room -= len(volumes)
        findings = find_lesions(scan)
        pictures = [lesion_picture(scan, finding) for finding in findings[:MOST_PICTURES]]
        largest = max(findings, key=lambda lesion: (lesion.truth_ml, lesion.predicted_ml), default=None)
        thumbnail = lesion_picture(scan, largest, FUSED) if row in worst and largest else None
        undrawn, shown = len(findings) - len(pictures), volumes if room > 0 else None
        drawn.append(DrawnCase(row, thumbnail, maximum_projection(scan), pictures, undrawn, shown))
        if not scan.labelled:
            continue
        nodes += best_overlaps(scan)
        for name, calibration in calibrations.items():
            if probability := scan.maps.get(f"probability_{name}"):
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
        raise HnsegError(
            f"{out}: has no {ABLATION} to name the cohort; add --ground-truth ROOT, or "
            "--data ROOT of patients without ground truth"
        )
    return {out.resolve().name: out}, truth


def _policy(scripts: list[str]) -> str:
    """The content security policy: these scripts and what is unpacked from the page, and no network."""
    digests = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; font-src data:"
    )
