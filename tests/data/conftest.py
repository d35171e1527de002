"""A cohort of small cases on disk, written once."""

from pathlib import Path
from typing import Any

import pytest
from fabricate import write_case

from hnseg.imaging.case import Case, read_cases


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Three cases of two centres in the HECKTOR layout; tests must not change them."""
    root: Path = tmp_path_factory.mktemp("cohort")
    for seed, name in enumerate(("CHUM-001", "CHUM-002", "MDA-001")):
        write_case(root, name, seed=seed)
    return read_cases(root)


class InThisProcess:
    """Stands in for a pool of processes, whose start costs seconds."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnseg.data.prepare.make_pool", InThisProcess)
