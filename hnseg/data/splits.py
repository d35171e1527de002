"""Folds: stratified by centre, seeded, saved, hashed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hnseg.cases import Case
from hnseg.errors import HnsegError
from hnseg.files import replacing


@dataclass(frozen=True)
class Split:
    """Disjoint folds of case ids; fold k validates on `folds[k]` and trains on the rest."""

    folds: tuple[tuple[str, ...], ...]

    @classmethod
    def make(cls, cases: Sequence[Case], folds: int, seed: int) -> Split:
        """Deals each centre's cases out in seeded order, going on where the centre before stopped."""
        if not 2 <= folds <= len(cases):
            raise HnsegError(f"data.folds={folds} with {len(cases)} cases; choose 2 to {len(cases)}")
        centers: dict[str, list[str]] = defaultdict(list)
        for case in cases:
            centers[case.center].append(case.case_id)
        rng = np.random.default_rng(seed)
        dealt = [case_id for name in sorted(centers) for case_id in rng.permutation(sorted(centers[name]))]
        return cls(tuple(tuple(sorted(map(str, dealt[k::folds]))) for k in range(folds)))

    @classmethod
    def read(cls, path: Path, cases: Sequence[Case]) -> Split:
        """Reads a saved split and holds it against the cases on disk.

        Raises:
            HnsegError: The file is missing or malformed, has fewer than two folds or an empty one, a
                case stands in two folds, or a case of the split is not on disk; each by name.
        """
        try:
            folds = tuple(tuple(map(str, fold)) for fold in json.loads(path.read_text())["folds"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HnsegError(
                f'{path}: not a split file ({error}); it holds {{"folds": [[CASE, ...], ...]}}'
            ) from error
        if len(folds) < 2 or not all(folds):
            raise HnsegError(
                f"{path}: {len(folds)} folds, {folds.count(())} of them empty; give two or more, none empty"
            )
        listed = [case_id for fold in folds for case_id in fold]
        twice = sorted({c for c in listed if listed.count(c) > 1})
        absent = sorted(set(listed) - {case.case_id for case in cases})
        if twice:
            raise HnsegError(f"{path}: in two folds: {', '.join(twice)}; keep each case in one")
        if absent:
            raise HnsegError(
                f"{path}: cases that are not there: {', '.join(absent)}; check data.root and data.exclude"
            )
        return cls(folds)

    def write(self, path: Path) -> None:
        """Saves the folds as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"folds": self.folds, "hash": self.hash}, indent=1) + "\n")

    @property
    def hash(self) -> str:
        """Of the folds' content; checkpoints carry it."""
        return hashlib.sha256(json.dumps(self.folds).encode()).hexdigest()[:12]

    def assign(self, cases: Sequence[Case], fold: int | str) -> tuple[list[Case], list[Case]]:
        """Training and validation cases of one fold; `all` trains on everything and validates on fold 0.

        Raises:
            HnsegError: No such fold.
        """
        if fold == "all":
            held = set(self.folds[0])
            return list(cases), [case for case in cases if case.case_id in held]
        if type(fold) is not int or not 0 <= fold < len(self.folds):  # True is an int, and no fold
            raise HnsegError(f"fold={fold}: this split has folds 0 to {len(self.folds) - 1}, or fold=all")
        held = set(self.folds[fold])
        listed = {case_id for ids in self.folds for case_id in ids}
        train = [case for case in cases if case.case_id in listed - held]
        return train, [case for case in cases if case.case_id in held]
