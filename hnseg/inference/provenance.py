"""What a mask is made from: the case's files, the bundle and the settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import hnseg
from hnseg.errors import HnsegError
from hnseg.files import digest, digest_file
from hnseg.imaging.case import Case, mask_file
from hnseg.imaging.suv import sidecar
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import LISTING


@dataclass(frozen=True)
class Provenance:
    """What all masks of a call are made with, wherever its cascades run.

    Args:
        version: Of hnseg.
        bundle: Digest of the bundle's listing, which holds the hashes of its files.
        identity: Of the bundle's members, whatever its rules.
        members: Names of the members in use, and the window that each is shown.
        rules: Of the decision.
        until: The last stage to run.
        unseen: Each case is segmented with the members that were not trained on it.
        heads: Folder of head masks that stand for the head stage.
        oracle: True lesions place the fine ROI.
        precision: The networks' arithmetic.
        device: Where they run, cpu or cuda.
        networks: What runs them.
        maps: Whether probabilities and uncertainty are asked for.
    """

    version: str
    bundle: str
    identity: str
    members: list[tuple[str, list[int]]]
    rules: dict[str, Any]
    until: str
    unseen: bool
    heads: Path | None
    oracle: bool
    precision: str
    device: str
    networks: str
    maps: list[bool]

    @classmethod
    def of(cls, cascade: Cascade) -> Provenance:
        """Of what a cascade makes."""
        return cls(
            version=hnseg.__version__,
            bundle=digest_file(cascade.bundle.path / LISTING),
            identity=cascade.bundle.identity,
            members=[(member.card["name"], list(member.card["patch"])) for member in cascade.bundle.members],
            rules=asdict(cascade.decision),
            until=cascade.names[-1],
            unseen=cascade.unseen,
            heads=cascade.heads,
            oracle=cascade.lesions is not None,
            precision=cascade.precision,
            device=cascade.networks.device.type,
            networks=type(cascade.networks).__name__,
            maps=[cascade.probabilities, cascade.uncertainty],
        )

    @classmethod
    def common(cls, several: Sequence[Provenance]) -> Provenance:
        """The one that several cascades share: it must not matter which of them makes a mask.

        Raises:
            HnsegError: They differ.
        """
        first = several[0]
        for other in several[1:]:
            for name in (one.name for one in fields(cls)):
                here, there = getattr(first, name), getattr(other, name)
                if here != there:
                    raise HnsegError(
                        f"the machines or GPUs differ in {name} ({here}, {there}) and would make different "
                        "masks; set trainer.precision, trainer.device and backend, and have one hnseg on all"
                    )
        return first

    def digest(self, case: Case, extension: str) -> str:
        """Digest of everything that a case's mask depends on, behind the bundle's identity and a hyphen.

        Files count by path, size and time of change.

        Args:
            case: Its files may be missing.
            extension: Of masks and maps.
        """
        files = [_state(path) for path in _files(case, self)]
        made_with = asdict(self) | {"heads": None}  # their files count, not their folder
        return f"{self.identity}-" + digest([made_with, files, case.pet_factor, extension], 64)


def _files(case: Case, made_with: Provenance) -> Iterator[Path]:
    yield from (case.ct, case.pet)
    with suppress(HnsegError):  # a misnamed PET has no sidecar, and is refused when it is read
        yield sidecar(case.pet)
    if made_with.heads is not None:
        yield mask_file(made_with.heads, case.case_id)
    if made_with.oracle and case.label is not None:
        yield case.label


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        status = path.stat()
    except OSError:  # missing, or beyond reach: told when it is read
        return None
    return os.path.realpath(path), status.st_size, status.st_mtime_ns
