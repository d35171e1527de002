"""Folds: stratified by centre and seeded, one a centre, or given; saved and hashed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hnseg.cases import Case
from hnseg.data.split_files import Folds, hash_folds, read_split_file
from hnseg.errors import HnsegError
from hnseg.files import replacing

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
