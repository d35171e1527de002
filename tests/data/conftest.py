"""A cohort of small cases on disk, written once."""

from pathlib import Path

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
