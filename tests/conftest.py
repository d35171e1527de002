"""What all tests share: the helpers in this folder can be imported, and arithmetic keeps to one thread."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def pointwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the architecture `pointwise` known, whose networks are right by construction."""
    from members import Pointwise

    from hnseg.models import nets

    def build(in_channels: int, out_channels: int, **settings: list) -> Pointwise:
        return Pointwise(**settings)

    monkeypatch.setitem(nets.ARCHITECTURES, "pointwise", build)
