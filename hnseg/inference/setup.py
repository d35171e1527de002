"""What a command asks of a cascade, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hnseg.card import plain
from hnseg.config import Inference
from hnseg.devices import pick_precision
from hnseg.errors import HnsegError
from hnseg.inference.backends import Networks, make_networks, pick_backend
from hnseg.inference.cascade import Cascade
from hnseg.models.bundle import Bundle


@dataclass(frozen=True)
class Setup:
    """Which members of a bundle run, how, and by which rules; plain values, which any process can load.

    Args:
        bundle: Its folder.
        arm: Name of the arm.
        kinds: Its members, as `Bundle.arm` takes them; None is all.
        rules: Decision rules in the place of the bundle's.
        windows: `trained` shows a volume as members were trained, `whole` in one piece.
        backend: auto, torch or openvino.
        precision: auto, or the networks' arithmetic.
        threads: Of the CPU; None leaves them.
        cascade: Further settings of `Cascade`, by name.
    """

    bundle: Path
    arm: str = "all"
    kinds: Sequence[Mapping[str, Any]] | None = None
    rules: Mapping[str, Any] = field(default_factory=dict)
    windows: str = "trained"
    backend: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    cascade: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, call: Inference) -> Setup:
        """What a call of infer.py asks for."""
        names = ("last_stage", "mirror", "out_of_fold", "probabilities", "uncertainty", "head_masks")
        return cls(
            call.bundle,
            arm=call.arms.name,
            kinds=plain(call.arms.members),
            rules=call.decision.given,
            windows=call.windows,
            backend=call.backend,
            precision=call.trainer.precision,
            threads=call.trainer.threads,
            cascade={name: getattr(call, name) for name in names},
        )

    def load(self, devices: Sequence[torch.device]) -> list[Cascade]:
        """One cascade on each device, with networks of its own.

        Raises:
            HnsegError: As `Bundle.load` and `make`.
        """
        bundle = Bundle.load(self.bundle)
        return [self.make(bundle, self.networks(device)) for device in devices]

    def networks(self, device: torch.device) -> Networks:
        """What runs the networks on a device.

        Raises:
            HnsegError: As `pick_backend` and `pick_precision`.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        precision = pick_precision(device, self.precision)
        backend = pick_backend(device, self.backend)
        return make_networks(backend, device, precision)

    def make(self, bundle: Bundle, networks: Networks, **shared: Any) -> Cascade:
        """A cascade of the members that are asked for.

        Args:
            bundle: The loaded bundle.
            networks: What runs them.
            shared: What `Cascade` shares with others: its cache of logits.

        Raises:
            HnsegError: A rule for this call that would decide nothing, or as `Bundle.arm` and `Cascade`.
        """
        _require_effect(self.rules, bundle)
        bundle = bundle.arm(self.arm, self.kinds)
        bundle = replace(bundle, decision=bundle.decision | dict(self.rules))
        bundle = bundle.whole() if self.windows == "whole" else bundle
        precision = pick_precision(networks.device, self.precision)
        return Cascade(bundle, networks.device, precision, networks=networks, **self.cascade, **shared)


def _require_effect(rules: Mapping[str, Any], bundle: Bundle) -> None:
    """Refuses rules for one call that the others, or the members, leave without effect."""
    models = sorted({member.card["model"] for member in bundle.members})
    decision = bundle.decision | dict(rules)
    weights, thresholds = rules.get("weights"), rules.get("thresholds")
    if unknown := [name for name in weights or () if name not in models]:
        raise HnsegError(
            f"decision.weights: no model {unknown[0]} in {bundle.path}; choose among {', '.join(models)}"
        )
    if weights and decision.get("fusion", "flat") != "flat":
        raise HnsegError(
            f"decision.weights={dict(weights)}: fusion=authors knows none; set decision.fusion=flat"
        )
    if thresholds and any(thresholds.values()) and decision.get("rule", "half") != "argmax":
        raise HnsegError(
            f"decision.thresholds={dict(thresholds)}: rule=half knows none; set decision.rule=argmax"
        )
