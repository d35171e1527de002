"""Digest of a prepared data set: the same wherever and whenever the same volumes were prepared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress

from hnseg.data.cache import StageVolume
from hnseg.errors import HnsegError
from hnseg.files import replacing


def digest_volumes(volumes: Iterable[StageVolume]) -> str:
    """Of cases, their arrays and where these lie in the patient, whatever the order of the cases."""
    contents = sorted((volume.case_id, _digest_volume(volume)) for volume in volumes)
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:12]


def _digest_volume(volume: StageVolume) -> str:
    """Read once, then kept beside the arrays; an entry prepared anew is another folder."""
    kept = volume.folder / "content.txt"
    if kept.exists() and (known := kept.read_text()):
        return known
    content = hashlib.sha256(json.dumps([volume.meta["grid"], volume.meta["margin"]]).encode())
    for name in volume.arrays:
        with (volume.folder / f"{name}.npy").open("rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
    with suppress(HnsegError), replacing(kept) as temporary:  # the cache may be another user's
        temporary.write_text(content.hexdigest())
    return content.hexdigest()
