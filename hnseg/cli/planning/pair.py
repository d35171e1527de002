"""One stage and network of the resolved configuration, built but not trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hnseg.app import compose_job
from hnseg.construct import construct
from hnseg.data.intensity import InputSpec
from hnseg.imaging.stage import Stage
from hnseg.job import Config, describe, make_input, make_stage
from hnseg.job_keys import read_job
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build
from hnseg.preflight import check_job


@dataclass(frozen=True)
class Pair:
    """What train.py would train.

    Args:
        config: The composed configuration, resolved.
        stage: The stage.
        spec: The input chain, without the constants of a training fold.
        module: Network, loss, optimiser and schedule; the parameters have shapes and no values.
    """

    config: Config
    stage: Stage
    spec: InputSpec
    module: SegmentationModule

    @classmethod
    def compose(cls, overrides: Sequence[str]) -> Pair:
        """Builds what a command line of train.py names.

        Raises:
            HnsegError: What train.py would refuse too.
        """
        config = read_job(compose_job(overrides))
        check_job(config)
        stage = make_stage(config)
        spec = make_input(config, stage)
        return cls(config, stage, spec, _module(config, stage, spec))


def _module(config: Config, stage: Stage, spec: InputSpec) -> SegmentationModule:
    card = describe(config, stage, spec)
    with torch.device("meta"):
        network = build(**card["network"])
    return SegmentationModule(
        network,
        construct(config["loss"], "loss"),
        lambda network, image: network(image),
        construct(config["optimizer"]["step"], "optimizer.step"),
        construct(config["optimizer"]["schedule"], "optimizer.schedule"),
        classes=stage.classes,
        spacing=stage.spacing,
        card=card,
    )
