"""All arms on all cases, each by members that never saw the case."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnseg.ablation.arms import Config
from hnseg.ablation.sources import Sources
from hnseg.cases import Case
from hnseg.errors import HnsegError
from hnseg.files import replacing
from hnseg.hardware import pick_devices
from hnseg.inference.arms import Arms, segment_arms
from hnseg.inference.memory import Memory
from hnseg.inference.setup import Setup
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import Checkpoint, checkpoint_file

BUNDLE = "bundle"  # OUT/bundle
_MADE_OF = "made_of.json"  # in it: the checkpoints it was exported from


def predict(
    arms: Mapping[str, Config],
    sources: Sources,
    cases: Sequence[Case],
    out: Path,
    *,
    oracle: bool = False,
    checkpoint: Checkpoint = "best",
) -> None:
    """Segments every case with every arm, into OUT/ARM; what an earlier call finished is skipped.

    Args:
        arms: As `read_arms` gives them.
        sources: The runs they are made of.
        cases: The cohort.
        out: The ablation's folder.
        oracle: The true lesions place the fine ROI, instead of head and coarse networks.
        checkpoint: Which of the runs' weights; the cases had a say in which are the best.

    Raises:
        HnsegError: A run cannot be exported, a case was trained on by every network of a kind, or cases could
            not be segmented.
    """
    bundle = make_bundle(sources.folders, out / BUNDLE, checkpoint)
    require_unseen(bundle, cases)
    options: dict[str, Any] = {"lesions": {case.case_id: case.label for case in cases}} if oracle else {}
    setups = {
        name: Setup.from_config(config | {"bundle": bundle.path, "heads": None})
        for name, config in arms.items()
    }
    first, device = next(iter(setups.values())), next(iter(arms.values()))["trainer"]["device"]
    devices = []
    for one in pick_devices(device):
        networks, memory = first.networks(one), Memory()
        shared = {"networks": networks, "memory": memory, **options}
        devices.append(Arms({name: setup.make(bundle, **shared) for name, setup in setups.items()}, memory))
    outcomes = segment_arms(sources.in_order(cases), devices, out)
    failed = [(name, one.case_id) for name, ones in outcomes.items() for one in ones if one.status == "error"]
    if failed:
        table = out / failed[0][0] / "cases.csv"
        ids = ", ".join(dict.fromkeys(case_id for _, case_id in failed))
        raise HnsegError(f"not segmented: {ids} (reasons in {table}); mend that, and run the command again")


def make_bundle(folders: Sequence[Path], path: Path, checkpoint: Checkpoint) -> Bundle:
    """Checkpoints of runs as a bundle; one that was made of the same files is kept.

    Raises:
        HnsegError: As `export_bundle`.
    """
    checkpoints = [checkpoint_file(folder, checkpoint) for folder in folders]
    files = [[str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns] for one in checkpoints]
    made_of = [checkpoint, *files]
    record = path / _MADE_OF
    if _read(record) != made_of:
        print(f"Bundling {len(folders)} networks: {path}", file=sys.stderr)  # large ones take a while
        export_bundle(folders, path, checkpoint=checkpoint)
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(made_of))
    return Bundle.load(path)


def _read(record: Path) -> Any:
    """What a bundle was made of; None where nothing tells, so that it is made anew."""
    try:
        return json.loads(record.read_text())
    except (OSError, ValueError):
        return None


def require_unseen(bundle: Bundle, cases: Sequence[Case]) -> None:
    """Refuses a bundle in which all networks of a kind were trained on a case.

    A split file says what a run was to hold out; the checkpoint says what it was trained on.
    """
    kinds: dict[str, list[Any]] = {}
    for member in bundle.members:
        kinds.setdefault(member.card["name"].rpartition("_fold_")[0], []).append(member)
    for kind, members in kinds.items():
        for case in cases:
            if all(member.has_seen(case.case_id) for member in members):
                raise HnsegError(
                    f"{bundle.path}: every {kind} network was trained on {case.case_id}, which the runs' "
                    "split.json holds out of one; train them again with overwrite=true"
                )
