"""What a case's time is counted towards."""

import pytest

from hnseg.inference import ensemble
from hnseg.inference.ensemble import Clock


def test_time_goes_to_the_step_that_was_named_last(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(ensemble, "perf_counter", lambda: next(moments))
    watch = Clock()  # at 0: no step yet
    for step in ("resample", "fine", "resample", "back"):
        watch.begin(step)
    assert watch.stop() == {"resample": 2.0 + 4.0, "fine": 3.0, "back": 5.0}
    assert list(watch.seconds) == ["resample", "fine", "back"]
