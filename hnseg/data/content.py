"""Digest of a prepared data set: the same wherever and whenever the same volumes were prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from hnseg.data.cache import StageVolume
from hnseg.files import replacing


def digest_volumes(volumes: Iterable[StageVolume]) -> str:
    """Of cases, their arrays and where these lie in the patient, whatever the order of the cases."""
    contents = sorted((volume.case_id, _digest_volume(volume)) for volume in volumes)
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


def _digest_volume(volume: StageVolume) -> str:
    """Read once, then kept beside the arrays; an entry prepared anew is another folder."""
    kept = volume.folder / "content.txt"
    if kept.exists():
        return kept.read_text()
    content = hashlib.sha256(json.dumps([volume.meta["grid"], volume.meta["margin"]]).encode())
    for name in volume.arrays:
        with (volume.folder / f"{name}.npy").open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    with replacing(kept) as temporary:
        temporary.write_text(content.hexdigest())
    return content.hexdigest()
