"""Head masks for a random part of a cohort, with a table and a picture to check them by."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.console import Console
from rich.progress import track

from hnseg.cases import Case, mask_file
from hnseg.data.heads.propose import propose_head
from hnseg.data.heads.sheet import Panel, draw_sheet
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.images import read_image, read_mask, write_image
from hnseg.masks import mask_bounds
from hnseg.pool import make_pool
from hnseg.tables import read_table

TABLE, SHEET = "heads.csv", "contact_sheet.png"
FIELDS = ("case_id", "head", "x_min", "x_max", "y_min", "y_max", "z_min", "z_max", "remark")
KEPT = "was already there: left as it is"


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        case_id: The case.
        head: Whether its mask holds a head; None where the case failed.
        box: Of the mask in mm, LPS: x_min, x_max, y_min, y_max, z_min, z_max; empty without a head.
        remark: What calls for a look, or the reason of the failure.
        panel: Its picture; None where the case failed.
        kept: Whether the mask was there before.
    """

    case_id: str
    head: bool | None
    box: tuple[float, ...] = ()
    remark: str = ""
    panel: Panel | None = None
    kept: bool = False


def draw_cases(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases at random, all if there are fewer; with the same seed a larger draw holds the smaller.

    Args:
        cases: The cohort.
        count: How many; forty in the paper (section 2.3).
        seed: Not negative.
    """
    order = np.random.default_rng(seed).permutation(len(cases))[:count]
    return [cases[index] for index in sorted(order)]


def propose_heads(
    cases: Sequence[Case], out: Path, *, overwrite: bool = False, workers: int | None = None
) -> list[Outcome]:
    """Writes OUT/CASE.nii.gz for every case, OUT/heads.csv and OUT/contact_sheet.png.

    A mask that is there already may have been corrected by hand: it is kept, and shown with the others. Lines
    of the table stay as long as their masks do, and a call that is stopped leaves those of what it did.

    Args:
        cases: Of which only the CT is read.
        out: Folder of the masks.
        overwrite: Propose anew what is there already.
        workers: Processes; a whole-body CT takes up to 2 GB in each. Default: up to four.

    Returns:
        One outcome a case, in the order of `cases`; a CT that cannot be read is a failed one.

    Raises:
        HnsegError: The folder cannot be written, its heads.csv cannot be read, or a worker was killed, most
            likely for want of memory.
    """
    workers = min(workers or min(4, os.cpu_count() or 1), len(cases))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HnsegError(f"{out}: cannot be a folder ({error.strerror}); choose another --out") from error
    earlier = _read_table(out / TABLE)
    doubts = {case_id: row["remark"].removesuffix(KEPT).rstrip("; ") for case_id, row in earlier.items()}
    work = partial(_propose_case, out=out, overwrite=overwrite, doubts=doubts)
    outcomes: list[Outcome] = []
    try:
        outcomes.extend(_with_bar(work, cases, workers))
    except BrokenProcessPool as error:
        raise HnsegError(f"--workers {workers}: a worker was killed, likely for memory; use fewer") from error
    finally:
        if outcomes:
            _write_table(earlier, outcomes, out / TABLE)
    draw_sheet([one.panel for one in outcomes if one.panel], out / SHEET)
    return outcomes


def summary(outcomes: Sequence[Outcome], out: Path) -> str:
    """A line for every failed case, and one on all."""
    lines = [f"{one.case_id}: {one.remark}" for one in outcomes if one.head is None]
    heads = [one.head for one in outcomes]
    counts = [f"{heads.count(True)} heads", f"{heads.count(False)} scans without one"]
    if kept := sum(one.kept for one in outcomes):
        counts.append(f"{kept} of these masks were there and are left as they are (--overwrite redoes them)")
    if failed := heads.count(None):
        counts.append(f"{failed} failed")
    return "\n".join([*lines, f"{out}: {', '.join(counts)}; look at {SHEET}"])


def _with_bar(work: partial[Outcome], cases: Sequence[Case], workers: int) -> Iterator[Outcome]:
    bar = partial(track, description="proposing heads", total=len(cases), console=Console(stderr=True))
    if workers <= 1:
        yield from bar(map(work, cases))
        return
    with make_pool(workers) as pool:
        yield from bar(pool.map(work, cases))


def _propose_case(case: Case, *, out: Path, overwrite: bool, doubts: Mapping[str, str]) -> Outcome:
    path = mask_file(out, case.case_id)
    kept = path.exists() and not overwrite
    try:
        case.check()
        ct = read_image(case.ct)
        if kept:
            mask, remark = read_mask(path, ct), "; ".join(filter(None, (doubts.get(case.case_id), KEPT)))
        else:
            proposal = propose_head(ct)
            mask, remark = proposal.mask, "; ".join(proposal.flags)
            write_image(mask, path)
    except HnsegError as error:
        return Outcome(case.case_id, head=None, remark=str(error))
    head = bool(sitk.GetArrayViewFromImage(mask).any())
    sides = zip(*mask_bounds(mask), strict=True) if head else ()
    box = tuple(round(float(mm), 1) for pair in sides for mm in pair)
    return Outcome(case.case_id, head, box, remark, Panel.of(case.case_id, ct, mask, remark), kept)


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    """The lines of earlier calls whose masks are still there, by case."""
    _, rows = read_table(path, "correct it, or move it away: the masks stay", FIELDS)
    return {row["case_id"]: row for row in rows if mask_file(path.parent, row["case_id"]).exists()}


def _write_table(earlier: Mapping[str, Mapping[str, str]], outcomes: Sequence[Outcome], path: Path) -> None:
    words = {True: "yes", False: "no", None: "failed"}
    lines = {case_id: [row[name] for name in FIELDS] for case_id, row in earlier.items()}
    for one in outcomes:
        lines[one.case_id] = [one.case_id, words[one.head], *(map(str, one.box or [""] * 6)), one.remark]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(lines[case_id] for case_id in sorted(lines))
