"""The page itself: tables, pictures and viewer poured into one HTML file that needs nothing else."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from hnseg import __version__
from hnseg.cases import Case
from hnseg.errors import HnsegError
from hnseg.evaluation.score import find_masks
from hnseg.evaluation.slices import COLOURS, NAMES
from hnseg.evaluation.view import cases_to_draw
from hnseg.files import replacing, require_writable
from hnseg.report.arms import Arm, find_arms, read_arm
from hnseg.report.pictures import Picture
from hnseg.report.plots import agreement, reliability, sizes
from hnseg.report.shown import Gallery
from hnseg.report.tables import Table, case_table, center_table, score_table, stored_table
from hnseg.report.viewer import REMEDY, niivue_licence, niivue_module
from hnseg.tables import read_table

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
        loader=PackageLoader("hnseg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return files("hnseg.report").joinpath("templates", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: these scripts and what is unpacked from the page, and no network."""
    digests = [base64.b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed} blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src data: blob:; font-src data:"
    )
