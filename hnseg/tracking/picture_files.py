"""Where a run keeps its pictures: pictures/CASE/step_0000499.png, the step as in metrics.csv."""

from __future__ import annotations

from pathlib import Path


def picture_path(folder: Path, case_id: str, step: int) -> Path:
    """Of a case's picture at a step."""
    return folder / "pictures" / case_id / f"step_{step:07d}.png"


def pictures(folder: Path) -> list[tuple[int, str, Path]]:
    """All pictures of a run in the order they were painted, as (step, case, path)."""
    found = (folder / "pictures").glob("*/step_*.png")
    return sorted((int(path.stem.removeprefix("step_")), path.parent.name, path) for path in found)


def discard_pictures(folder: Path, step: int) -> None:
    """Removes those of a step on, which a run that is taken up there will paint again."""
    for painted, _, path in pictures(folder):
        if painted >= step:
            path.unlink()


def picture_key(case_id: str) -> str:
    """What a logger calls the pictures of a case."""
    return f"pictures/{case_id}"
