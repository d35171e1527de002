"""What all tests share: helpers to import, one thread for arithmetic, the same random examples every time."""

import os
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

# A failure must mean a change of the code. To search further: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None)
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture
def pointwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the architecture `pointwise` known, whose networks are right by construction."""
    from members import Pointwise

    from hnseg.models import nets

    def build(in_channels: int, out_channels: int, **settings: list) -> Pointwise:
        return Pointwise(**settings)

    monkeypatch.setitem(nets.ARCHITECTURES, "pointwise", build)


def pytest_configure(config: pytest.Config) -> None:
    """Keeps OpenVINO out of the process that runs all else: with it, that process ends in a crash."""
    wanted = config.option.markexpr
    if "openvino" not in wanted or "not openvino" in wanted:
        sys.modules["openvino"] = None  # type: ignore[assignment]
