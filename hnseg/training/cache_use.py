"""What a cache of prepared volumes holds, by stage grid and cohort, and which of it runs use."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hnseg.config import Job
from hnseg.data.cache import StageVolume, entry_folder, find_entries
from hnseg.data.prepare import needs_head, stage_folder
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, read_cases
from hnseg.training.cohort import head_folder
from hnseg.training.runs import find_runs


@dataclass(frozen=True)
class Share:
    """Volumes of one grid of a stage and one cohort.

    Attributes:
        folder: Of the cache, by stage and digest of its settings.
        cohort: `data.root`; None where no run uses the volumes.
        runs: That use them.
    """

    folder: str
    cohort: Path | None
    runs: int
    volumes: Sequence[StageVolume]

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(volume.bytes for volume in self.volumes)

    @property
    def grid(self) -> str:
        """Voxels and mm along (x, y, z), margin included; empty where no volume is whole."""
        for volume in self.volumes:
            if (volume.folder / "meta.json").exists():
                grid = volume.meta["grid"]
                sides = (" x ".join(f"{side:g}" for side in grid[key]) for key in ("size", "spacing"))
                return " at ".join(sides) + " mm"
        return ""


def find_shares(cache: Path, runs: Path) -> tuple[list[Share], list[Path]]:
    """What a cache holds and which of it the runs in and under a folder use, whatever cache they name.

    A run uses the volumes that its configuration would take up: those of its stage's grid and of its cases as
    their files are now, or all of that grid where its cohort cannot be read.

    Returns:
        The shares, and runs whose configuration this version does not understand: they use none.

    Raises:
        HnsegError: No run lies there, or one with a damaged file does.
    """
    found = find_runs(runs)
    if not found:
        raise HnsegError(f"{runs}: no run lies there; name the folder that hnseg train writes to, --runs DIR")
    entries, cohorts = find_entries(cache), dict[Path, list[Case] | None]()
    users, root_of, strange = defaultdict[Path, set[Path]](set), dict[Path, Path](), []
    for run in found:
        job = _read_job(run.path / "config.json")
        if job is None or job.data.root is None:
            strange.append(run.path)
            continue
        root = job.data.root
        if root not in cohorts:
            cohorts[root] = _cases(root)
        for folder, masks in _folders(job, cache):
            cases = cohorts[root]
            used = None if cases is None else {entry_folder(folder, case, masks) for case in cases}
            for entry in entries:
                if entry.folder.parents[1] == folder and (used is None or entry.folder in used):
                    users[entry.folder].add(run.path)
                    root_of[entry.folder] = root
    groups = defaultdict[tuple[str, Path | None], list[StageVolume]](list)
    for entry in entries:
        groups[entry.folder.parents[1].name, root_of.get(entry.folder)].append(entry)
    shares = [
        Share(folder, cohort, len(set().union(*(users[volume.folder] for volume in volumes))), volumes)
        for (folder, cohort), volumes in groups.items()
    ]
    return shares, strange


def _folders(job: Job, cache: Path) -> list[tuple[Path, Path | None]]:
    """Where the job's volumes lie, and the masks that place their ROIs."""
    stage, spec, data = job.placed_stage, job.input_spec, job.data
    placed_by = [head_folder(data, stage.name)] if needs_head(stage) else [None, data.coarse]
    settings = stage, spec.sampling, spec.modalities
    return [(stage_folder(cache, *settings, masks, job.jitter_mm), masks) for masks in placed_by]


def _cases(root: Path) -> list[Case] | None:
    try:
        return read_cases(root, strict=False)
    except HnsegError:
        return None


def _read_job(path: Path) -> Job | None:
    """The configuration of a run as config.json has it; None where another version wrote it."""
    settings = json.loads(path.read_bytes())
    settings.pop("groups", None)
    if settings.get("init_from"):
        settings["init_from"] = settings["init_from"]["path"]
    try:
        return Job.model_validate(settings)
    except ValidationError:
        return None
