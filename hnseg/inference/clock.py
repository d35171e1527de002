"""How long each step of a case takes."""

from __future__ import annotations

from time import perf_counter


class Clock:
    """Counts the time that passes towards the step that was named last.

    Steps nest and come lazily, a cube when the way back asks for it: what has begun ends what ran before.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._step, self._since = "", perf_counter()

    def begin(self, step: str) -> None:
        """From now on it is this step's time."""
        now = perf_counter()
        if self._step:
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + now - self._since
        self._step, self._since = step, now

    def stop(self) -> dict[str, float]:
        """Seconds of each step, in the order in which they first ran."""
        self.begin("")
        return self.seconds
