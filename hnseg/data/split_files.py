"""Split files, whoever wrote them: hnseg, nnU-Net or Auto3DSeg, told apart by their content."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hnseg.cases import EXTENSIONS
from hnseg.errors import HnsegError

Folds = tuple[tuple[str, ...], ...]

# HECKTOR's CASE__CT, CASE__PT and nnU-Net's CASE_0000, CASE_0001.
_MODALITY = re.compile(r"(__CT|__PT|_[0-9]{4})$")


@dataclass(frozen=True)
class SplitFile:
    """What a file says of the cases: the folds by number, their names if they have any, and test cases."""

    folds: Folds
    names: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()


def read_split_file(path: Path, known: Collection[str]) -> SplitFile:
    """Reads the folds of a split file.

    It may be hnseg's own (`{"folds": [[CASE, ...], ...]}`), nnU-Net's `splits_final.json`
    (`[{"train": [...], "val": [...]}, ...]`: fold k is the k-th `val`) or an Auto3DSeg datalist
    (`{"training": [{"image": ..., "fold": k}, ...]}`; what stands under `validation` or `testing`
    belongs to no fold).

    Args:
        path: The file.
        known: Case ids on disk, among which a datalist's images are looked up; none where nobody can tell.

    Raises:
        HnsegError: The file is missing or malformed, has fewer than two folds or an empty one, names a
            case twice, was changed after it was hashed, or trains a fold on what it holds out.
    """
    if not path.exists():
        raise HnsegError(f"{path}: no such split file; check the path (data.split=centres needs none)")
    try:
        content = json.loads(path.read_text())
        split = _parse(content, path, known)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise HnsegError(
            f'{path}: not a split file ({error}); it holds {{"folds": [[CASE, ...], ...]}}, or is '
            "nnU-Net's splits_final.json or an Auto3DSeg datalist"
        ) from error
    if len(split.folds) < 2 or not all(split.folds):
        count, empty = len(split.folds), split.folds.count(())
        raise HnsegError(f"{path}: {count} folds, {empty} of them empty; give two or more, none empty")
    counts = Counter(case_id for group in (*split.folds, split.aside) for case_id in group)
    if twice := sorted(case_id for case_id, count in counts.items() if count > 1):
        raise HnsegError(f"{path}: listed twice: {', '.join(twice)}; keep each case in one fold")
    if isinstance(content, list):
        _check_training(path, split.folds, [_ids(entry["train"]) for entry in content])
    return split


def _parse(content: Any, path: Path, known: Collection[str]) -> SplitFile:
    if isinstance(content, list):
        return SplitFile(tuple(_ids(entry["val"]) for entry in content))
    if not isinstance(content, dict):
        raise TypeError(f"{content!r:.60} is neither a list nor a mapping")
    if "training" in content:
        return _datalist(content, path, known)
    if "folds" not in content:
        raise TypeError("it has no folds")
    names = _ids(content.get("names", []))
    split = SplitFile(tuple(_ids(fold) for fold in content["folds"]), names)
    if names and len(names) != len(split.folds):
        raise ValueError(f"{len(names)} names for {len(split.folds)} folds")
    if content.get("hash") not in (None, hash_folds(split.folds)):
        raise HnsegError(
            f'{path}: its "hash" {content["hash"]} is not that of its folds ({hash_folds(split.folds)}), '
            "which were changed since; remove the hash to use them as they are"
        )
    return split


def _datalist(content: Mapping[str, Any], path: Path, known: Collection[str]) -> SplitFile:
    others = [*content.get("validation", []), *content.get("testing", [])]
    images = [entry["image"] if isinstance(entry, dict) else entry for entry in others]
    known = known or _folders([*(entry["image"] for entry in content["training"]), *images])
    cases = [(_case_id(entry["image"], known), entry.get("fold")) for entry in content["training"]]
    wrong = sorted({case_id for case_id, fold in cases if type(fold) is not int or fold < 0})
    if wrong:
        raise HnsegError(f'{path}: no number as "fold" for {", ".join(wrong)}; number the folds from 0')
    count = max((fold for _, fold in cases), default=-1) + 1
    folds = tuple(tuple(case_id for case_id, fold in cases if fold == k) for k in range(count))
    return SplitFile(folds, aside=tuple(dict.fromkeys(_case_id(image, known) for image in images)))


def _case_id(image: str | Sequence[str], known: Collection[str]) -> str:
    """The case that an image belongs to, by its own name or its folder's: whichever is on disk.

    Args:
        image: A path, or one a channel.
        known: Case ids on disk.
    """
    path = _path(image)
    name = path.name
    for extension in EXTENSIONS:
        name = name.removesuffix(extension)
    stem = _MODALITY.sub("", name)
    return next((case_id for case_id in (name, stem, path.parent.name) if case_id in known), stem)


def _folders(images: Sequence[str | Sequence[str]]) -> set[str]:
    """The images' folders where all images have one name, so that those alone tell cases apart."""
    one_name = len({_case_id(image, ()) for image in images}) == 1
    return {_path(image).parent.name for image in images} if one_name else set()


def _path(image: str | Sequence[str]) -> PurePosixPath:
    return PurePosixPath(image if isinstance(image, str) else image[0])


def _check_training(path: Path, folds: Folds, trained: Sequence[tuple[str, ...]]) -> None:
    """Refuses nnU-Net's train lists where hnseg, which trains on all other folds, would differ."""
    listed = {case_id for fold in folds for case_id in fold}
    for k, (held, train) in enumerate(zip(folds, trained, strict=True)):
        rest = listed - set(held)
        parts = {"it lacks": rest - set(train), "it also has": set(train) - rest}
        if told := [f"{what} {', '.join(sorted(ids))}" for what, ids in parts.items() if ids]:
            raise HnsegError(
                f'{path}: "train" of fold {k} is not what the other folds hold out: {"; ".join(told)}; '
                "give each case one fold and train on all the others"
            )


def hash_folds(folds: Folds) -> str:
    """Hash of the folds' content, 12 hexadecimal digits; checkpoints carry it."""
    return hashlib.sha256(json.dumps(folds).encode()).hexdigest()[:12]


def _ids(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.60} is not a list of cases")
    return tuple(map(str, values))
