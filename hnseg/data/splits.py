"""Folds: stratified by centre and seeded, one a centre, or read from a split file; saved and hashed."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hnseg.errors import HnsegError
from hnseg.files import digest, replacing
from hnseg.imaging.case import EXTENSIONS, Case

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
    return digest(folds)


def _ids(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.60} is not a list of cases")
    return tuple(map(str, values))


CENTRES = "centres"  # the value of data.split that leaves one centre out


@dataclass(frozen=True)
class Split:
    """Disjoint folds of case ids; fold k validates on `folds[k]` and trains on the rest.

    Args:
        folds: Case ids of each fold.
        names: What each fold holds out, where that has a name: a centre.
    """

    folds: Folds
    names: tuple[str, ...] = ()

    @classmethod
    def make(cls, cases: Sequence[Case], folds: int, seed: int) -> Split:
        """Deals each centre's cases out in seeded order, going on where the centre before stopped.

        No two folds differ by more than one case, in all or of any centre.

        Raises:
            HnsegError: Fewer than two folds, or more than there are cases.
        """
        if not 2 <= folds <= len(cases):
            raise HnsegError(f"data.folds={folds} with {len(cases)} cases; choose 2 to {len(cases)}")
        centers = _by_center(cases)
        rng = np.random.default_rng(seed)
        dealt = [case_id for name in sorted(centers) for case_id in rng.permutation(centers[name])]
        return cls(tuple(tuple(sorted(map(str, dealt[k::folds]))) for k in range(folds)))

    @classmethod
    def leave_one_center_out(cls, cases: Sequence[Case]) -> Split:
        """One fold a centre, in the order of their names.

        Raises:
            HnsegError: Cases without a centre, by name, or one centre alone.
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
        """Reads a split file (see `read_split_file`) and holds it against the cases on disk.

        Args:
            path: The file.
            cases: Those to deal.
            excluded: Cases that the file may list and that are left out of the folds.

        Raises:
            HnsegError: A bad file, or cases that only one of the two knows, by name.
        """
        on_disk = {case.case_id for case in cases}
        known = on_disk.union(excluded)
        given = read_split_file(path, known)
        listed = {case_id for fold in given.folds for case_id in fold}
        if absent := sorted(listed - known):
            raise HnsegError(
                f"{path}: cases that are not there: {', '.join(absent)}; check data.root, or take them out "
                "of the file"
            )
        if unlisted := sorted(on_disk - listed - set(given.aside)):
            raise HnsegError(
                f"{path}: cases on disk that stand in no fold; add them, or leave them out with "
                f"data.exclude=[{','.join(unlisted)}]"
            )
        return cls(given.folds, given.names).only(cases)

    def write(self, path: Path) -> None:
        """Saves the folds as JSON."""
        content = {"folds": self.folds, **({"names": self.names} if self.names else {}), "hash": self.hash}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")

    @property
    def hash(self) -> str:
        """Of the folds' content; checkpoints carry it."""
        return hash_folds(self.folds)

    def only(self, cases: Iterable[Case]) -> Split:
        """The same folds without other cases, which a stage cannot learn from; the numbers of folds stay."""
        kept = {case.case_id for case in cases}
        folds = tuple(tuple(case_id for case_id in fold if case_id in kept) for fold in self.folds)
        return Split(folds, self.names)

    def title(self, fold: int | str) -> str:
        """A fold as it is printed: `fold 3`, or `fold 3 (CHUS)` where folds have names."""
        named = isinstance(fold, int) and fold < len(self.names)
        return f"fold {fold} ({self.names[int(fold)]})" if named else f"fold {fold}"

    def assign(self, cases: Sequence[Case], fold: int | str) -> tuple[list[Case], list[Case]]:
        """Training and validation cases of one fold; `all` trains on every fold and validates on fold 0.

        Cases that stand in no fold, such as a datalist's test cases, are in neither.

        Raises:
            HnsegError: No such fold, or one with nothing to validate or to train on.
        """
        # type(): True is an int, and no fold.
        if fold != "all" and (type(fold) is not int or not 0 <= fold < len(self.folds)):
            raise HnsegError(f"fold={fold}: this split has folds {self._numbers()}, or fold=all")
        held = set(self.folds[0 if fold == "all" else int(fold)])
        listed = {case_id for ids in self.folds for case_id in ids}
        trained = listed if fold == "all" else listed - held
        train = [case for case in cases if case.case_id in trained]
        validation = [case for case in cases if case.case_id in held]
        if not train or not validation:
            what = "train" if validation else "validate"
            raise HnsegError(
                f"fold={fold}: no case to {what} on, for those that the split gives it are excluded or lack "
                "what this stage needs (data.heads for stage=head); choose another fold or label some"
            )
        return train, validation

    def _numbers(self) -> str:
        last = len(self.folds) - 1
        named = ", ".join(f"{k} {name}" for k, name in enumerate(self.names))
        return f"0 to {last} ({named})" if named else f"0 to {last}"


def _by_center(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Sorted case ids of each centre."""
    centers: dict[str, list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):
        centers[case.center].append(case.case_id)
    return dict(centers)
