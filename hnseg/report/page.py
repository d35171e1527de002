"""The page itself: tables, pictures and viewer poured into one HTML file that needs nothing else."""

import base64
from collections.abc import Iterator, Sequence
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
from hnseg.files import replacing
from hnseg.inference.tables import read_table
from hnseg.report.arms import Arm, read_arms
from hnseg.report.pictures import Picture
from hnseg.report.plots import agreement, reliability, sizes
from hnseg.report.shown import Gallery
from hnseg.report.tables import Table, case_table, center_table, score_table, stored_table
from hnseg.report.viewer import REMEDY, niivue_licence, niivue_module

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
        HnsegError: As `read_arms`, an arm that is not there, CT or PET missing, or the extra `report` is.
    """
    template, module = _template(), niivue_module()  # before the long work
    arms, cohort = read_arms(out, truth)
    shown = _choose(arms, arm)
    cases = {case.case_id: case for case in cases_to_draw(cohort, images)}
    scripts = [_asset("tables.js"), _asset("viewer.js")]
    gallery = _show(shown, cases, viewer_mb * CHARACTERS_PER_MB)
    content = {
        "title": out.resolve().name,
        "version": __version__,
        "shown": shown,
        "tables": _tables(arms, shown, out),
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


def _choose(arms: list[Arm], name: str | None) -> Arm:
    if name is None:
        return arms[0]
    by_name = {arm.name: arm for arm in arms}
    if name not in by_name:
        raise HnsegError(f"--arm {name}: no such arm; choose from {', '.join(by_name)}")
    return by_name[name]


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


def _tables(arms: list[Arm], shown: Arm, out: Path) -> list[Table]:
    tables = [score_table(arms)]
    _, stored = read_table(out / "ablation.csv", "write it anew with hnseg ablation", ("arm",))
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
