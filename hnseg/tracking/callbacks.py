"""What watches a training for the loggers, beside the module's own scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L

from hnseg.tracking.pictures import Pictures
from hnseg.tracking.settings import LoggerSettings
from hnseg.tracking.throughput import Throughput


def callbacks(folder: Path, settings: LoggerSettings, channels: Sequence[str]) -> list[L.Callback]:
    """Throughput, and pictures where they are asked for.

    Args:
        folder: The run's folder.
        settings: The configuration's `logger`.
        channels: Names of the network's input channels.
    """
    painted = [Pictures(folder, channels, settings.pictures_every)] if settings.paints else []
    return [Throughput(), *painted]
