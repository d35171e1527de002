"""What watches a training for the loggers, beside the module's own scores."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from hnseg.data.intensity import InputSpec
from hnseg.tracking.gate_weights import GateWeights
from hnseg.tracking.pictures import Pictures
from hnseg.tracking.settings import LoggerSettings
from hnseg.tracking.throughput import Throughput


def callbacks(folder: Path, settings: LoggerSettings, spec: InputSpec) -> list[L.Callback]:
    """Throughput, weights of a learned gate, and pictures where they are asked for.

    Args:
        folder: The run's folder.
        settings: The configuration's `logger`.
        spec: The network's input chain.
    """
    painted = [Pictures(folder, spec.channel_names, settings.pictures_every)] if settings.paints else []
    return [Throughput(), GateWeights(spec.channel_keys), *painted]
