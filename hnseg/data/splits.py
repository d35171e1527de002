"""Folds of case ids: stratified by centre, one fold a centre, or read from a split file."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hnseg.errors import HnsegError
from hnseg.files import digest, replacing
from hnseg.imaging.case import EXTENSIONS, Case

Folds = tuple[tuple[str, ...], ...]

CENTRES = "centres"  # the value of data.split that leaves one centre out
# HECKTOR's CASE__CT, CASE__PT and nnU-Net's CASE_0000, CASE_0001.
_CHANNEL = re.compile(r"(__CT|__PT|_[0-9]{4})$")


@dataclass(frozen=True)
class Split:
    """Disjoint folds of case ids; fold k validates on `folds[k]` and trains on the rest."""

    folds: Folds
    names: tuple[str, ...] = ()  # the centre that each fold holds out, for folds by centre
    test_cases: tuple[str, ...] = ()  # that a split file lists outside its folds

    @classmethod
    def make(cls, cases: Sequence[Case], folds: int, seed: int) -> Split:
        """Shuffles the cases of each centre and distributes them over the folds in turn, centre after centre.

        Two folds differ by at most one case, in all and of each centre.

        Raises:
            HnsegError: Fewer than two folds, or more than there are cases.
        """
        if not 2 <= folds <= len(cases):
            raise HnsegError(f"data.folds={folds} with {len(cases)} cases; choose 2 to {len(cases)}")
        centers = _by_center(cases)
        rng = np.random.default_rng(seed)
        shuffled = [case_id for name in sorted(centers) for case_id in rng.permutation(centers[name])]
        return cls(tuple(tuple(sorted(map(str, shuffled[k::folds]))) for k in range(folds)))

    @classmethod
    def leave_one_center_out(cls, cases: Sequence[Case]) -> Split:
        """One fold a centre, in the order of their names.

        Raises:
            HnsegError: Cases without a centre, or one centre alone.
        """
        centers = _by_center(cases)
        if unknown := centers.get(""):
            raise HnsegError(
                f"data.split={CENTRES}: the centre is not known of {', '.join(unknown)}; name cases "
                "CENTRE-NUMBER or list them in a CSV with a column center"
            )
        if len(centers) < 2:
            raise HnsegError(f"data.split={CENTRES}: {', '.join(centers)} is the only centre; two are needed")
        names = tuple(sorted(centers))
        return cls(tuple(tuple(centers[name]) for name in names), names)

    @classmethod
    def read(cls, path: Path, cases: Sequence[Case], excluded: Collection[str] = ()) -> Split:
        """Reads a split file (see `read_split_file`) for the cases on disk; it may list the `excluded` too.

        Raises:
            HnsegError: The file lists cases that are not on disk, or lacks some that are.
        """
        split, on_disk = read_split_file(path), {case.case_id for case in cases}
        listed = set(chain(*split.folds))
        if absent := sorted(listed - on_disk.union(excluded)):
            raise HnsegError(
                f"{path}: cases that are not on disk: {', '.join(absent)}; check data.root, or take them out "
                "of the file"
            )
        if unlisted := sorted(on_disk - listed - set(split.test_cases)):
            raise HnsegError(
                f"{path}: cases on disk that are in no fold; add them, or leave them out with "
                f"data.exclude=[{','.join(unlisted)}]"
            )
        return split.only(cases)

    def write(self, path: Path) -> None:
        """Saves the folds as JSON."""
        content = {"folds": self.folds, **({"names": self.names} if self.names else {}), "hash": self.hash}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    @property
    def hash(self) -> str:
        """Hash of the folds' content, 12 hexadecimal digits; checkpoints carry it."""
        return digest(self.folds)

    def only(self, cases: Iterable[Case]) -> Split:
        """The same folds with these cases only, those that a stage can learn from; fold numbers stay."""
        kept = {case.case_id for case in cases}
        return replace(self, folds=tuple(tuple(i for i in fold if i in kept) for fold in self.folds))

    def title(self, fold: int | str) -> str:
        """A fold as it is printed: `fold 3`, or `fold 3 (CHUS)` where folds have names."""
        named = isinstance(fold, int) and fold < len(self.names)
        return f"fold {fold} ({self.names[int(fold)]})" if named else f"fold {fold}"

    def assign(self, cases: Sequence[Case], fold: int | str) -> tuple[list[Case], list[Case]]:
        """Training and validation cases of one fold; `all` trains on every fold and validates on fold 0.

        Cases that are in no fold, for instance a datalist's test cases, are in neither.

        Raises:
            HnsegError: No such fold, or one with nothing to validate or to train on.
        """
        if fold != "all" and fold not in range(len(self.folds)):
            names = ", ".join(f"{k} {name}" for k, name in enumerate(self.names))
            numbers = f"0 to {len(self.folds) - 1}" + (f" ({names})" if names else "")
            raise HnsegError(f"fold={fold}: this split has folds {numbers}, or fold=all")
        held = set(self.folds[0 if fold == "all" else int(fold)])
        trained = set(chain(*self.folds)) - (set() if fold == "all" else held)
        train = [case for case in cases if case.case_id in trained]
        validation = [case for case in cases if case.case_id in held]
        if not train or not validation:
            what = "train" if validation else "validate"
            raise HnsegError(
                f"fold={fold}: no case to {what} on: those of the split are excluded or lack what this stage "
                "needs (data.head_labels for stage=localiser); choose another fold or label some"
            )
        return train, validation


def read_split_file(path: Path) -> Split:
    """Reads the folds of a split file.

    It may be hnseg's own (`{"folds": [[CASE, ...], ...]}`), nnU-Net's `splits_final.json`
    (`[{"train": [...], "val": [...]}, ...]`: fold k is the k-th `val`) or an Auto3DSeg datalist
    (`{"training": [{"image": ..., "fold": k}, ...]}`; `validation` and `testing` are in no fold), whose
    images belong to the case in their file name: CASE__CT.nii.gz, CASE_0000.nii.gz or CASE.nii.gz.

    Raises:
        HnsegError: The file is missing or malformed, has fewer than two folds or an empty one, lists a case
            twice, or trains a fold on other cases than those that the other folds hold out.
    """
    try:
        split = _parse(json.loads(path.read_text()), path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise HnsegError(
            f'{path}: not a split file ({type(error).__name__}: {error}); it holds {{"folds": [[CASE, ...], '
            "...]}, or is nnU-Net's splits_final.json or an Auto3DSeg datalist"
        ) from error
    if len(split.folds) < 2 or not all(split.folds):
        count, empty = len(split.folds), split.folds.count(())
        raise HnsegError(f"{path}: {count} folds, {empty} of them empty; give two or more, none empty")
    counts = Counter(chain(*split.folds, split.test_cases))
    if twice := sorted(case_id for case_id, count in counts.items() if count > 1):
        raise HnsegError(f"{path}: listed twice: {', '.join(twice)}; keep each case in one fold")
    return split


def _parse(content: Any, path: Path) -> Split:
    match content:
        case {"folds": [*folds]}:
            return Split(tuple(map(_ids, folds)), _ids(content.get("names", [])))
        case {"training": [*entries]}:
            numbered: dict[int, list[str]] = defaultdict(list)
            for entry in entries:
                numbered[entry["fold"]].append(_case_id(entry["image"]))
            if sorted(numbered) != list(range(len(numbered))):
                raise ValueError(f"folds {sorted(numbered)} are not numbered from 0")
            others = [*content.get("validation", []), *content.get("testing", [])]
            images = [entry["image"] if isinstance(entry, dict) else entry for entry in others]
            test_cases = tuple(dict.fromkeys(map(_case_id, images)))
            return Split(tuple(tuple(numbered[k]) for k in sorted(numbered)), test_cases=test_cases)
        case [*entries]:
            split = Split(tuple(_ids(entry["val"]) for entry in entries))
            _check_training(path, split.folds, [_ids(entry["train"]) for entry in entries])
            return split
    raise TypeError("no list of folds")


def _check_training(path: Path, folds: Folds, trained: Sequence[tuple[str, ...]]) -> None:
    """Refuses nnU-Net's train lists where hnseg, which trains on all other folds, would differ."""
    for k, (held, train) in enumerate(zip(folds, trained, strict=True)):
        if different := sorted((set(chain(*folds)) - set(held)) ^ set(train)):
            raise HnsegError(
                f'{path}: "train" of fold {k} differs from what the other folds hold out in '
                f"{', '.join(different)}; give each case one fold and train on all the others"
            )


def _case_id(image: str | Sequence[str]) -> str:
    """The case that an image (a path, or one path a channel) belongs to, by its file name."""
    name = PurePosixPath(image if isinstance(image, str) else image[0]).name
    for extension in EXTENSIONS:
        name = name.removesuffix(extension)
    return _CHANNEL.sub("", name)


def _ids(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.60} is not a list of cases")
    return tuple(map(str, values))


def _by_center(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Sorted case ids of each centre."""
    centers: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):
        centers[case.center].append(case.case_id)
    return dict(centers)
