"""Run folders as train.py leaves them, without training: random networks, and one right by construction."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from entry import MODELS, small_settings
from torch import nn

from hnseg.card import Decision
from hnseg.devices import Precision
from hnseg.imaging.grid import Grid
from hnseg.inference.backends import Networks
from hnseg.inference.cascade import Cascade
from hnseg.inference.ensemble import Clock, Disagreement, StageEnsemble
from hnseg.models import nets
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import FORMAT, Member

DECISION = {"rule": "half", "min_component_ml": 0.0, "mirror": False}
# Absolute scales, so that a threshold in HU or SUV is a threshold of the network's input.
INPUT = {"ct_window": [-200.0, 200.0], "pet": "suv", "pet_upper": 20.0, "sampling": {}}
INPUT |= {"ct_powers": ["square", "cube_root"], "pet_powers": [], "coordinates": False}
# Settings of a pointwise network that takes SUV above 4 for a tumour, and the grid that shows it whole scans.
HOT = {"weights": [[0.0, 0.0], [0.0, 400.0], [0.0, 0.0]], "biases": [0.0, -80.0, -500.0]}
WHOLE = {"placement": "scan", "size": [32] * 3, "spacing": [3.0] * 3}
TINY = {model: small_settings(model, 3) for model in MODELS}
TARGETS = {name: str(settings["_target_"]) for name, settings in TINY.items()}
TARGETS["pointwise"] = "members.Pointwise"
STAGES: dict[str, dict[str, Any]] = {
    "localiser": {
        "size": [24, 24, 16],
        "spacing": [10.0, 10.0, 12.0],
        "placement": "top_of_scan",
        "classes": ["head"],
    },
    "coarse": {"size": [24, 24, 24], "spacing": [6.0, 6.0, 6.0], "placement": "below_head"},
    "fine": {"size": [24, 24, 24], "spacing": [3.0, 3.0, 3.0], "placement": "lesions"},
}


class Pointwise(nets.Network):
    """Logits that are weighted sums of the voxel's own input channels; its weights are its settings."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        weights: Sequence[Sequence[float]],
        biases: Sequence[float],
    ) -> None:
        super().__init__()
        self.sum = nn.Conv3d(in_channels, out_channels, 1)
        self.sum.weight.data = torch.tensor(weights).reshape(self.sum.weight.shape)
        self.sum.bias.data = torch.tensor(biases)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.sum(image)


def never(classes: int = 2, channels: int = 2) -> dict[str, Any]:
    """Settings of a pointwise network that finds background everywhere."""
    return {"weights": [[0.0] * channels] * (classes + 1), "biases": [10.0] + [-10.0] * classes}


def card(
    stage: str, architecture: str, settings: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A member's description; `changes` go to the card, `input` is merged and `grid` goes to the stage."""
    fields = {"name": stage, "classes": ["GTVp", "GTVn"], **STAGES[stage], **changes.pop("grid", {})}
    modalities = ["ct"] if stage == "localiser" else ["ct", "pet"]
    spec = {"modalities": modalities, "cte": False, **INPUT, **changes.pop("input", {})}
    spec.setdefault("normalise", [{"scheme": "none"}] * ((3 if spec["cte"] else 1) + len(modalities) - 1))
    size = fields["size"]
    network = {
        "in_channels": (3 if spec["cte"] else 1) + len(modalities) - 1,
        "out_channels": len(fields["classes"]) + 1,
        **(TINY[architecture] if settings is None else {"_target_": TARGETS[architecture], **settings}),
    }
    patch = spec.get("pad_to") or size[::-1]
    usual = {"name": f"{stage}_{architecture}_fold_0", "model": architecture, "fold": 0, "stage": fields}
    usual |= {"input": spec, "network": network, "patch": patch, "decision": DECISION, "trained_on": []}
    return usual | changes


def write_run(root: Path, card: dict[str, Any], *, seed: int = 0, finished: bool = True) -> Path:
    """A run folder whose best checkpoint holds the network of `card` with seeded weights."""
    torch.manual_seed(seed)
    network = nets.build(**card["network"])
    folder = root / card["name"]
    folder.mkdir(parents=True)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    described = {"format": FORMAT, **card, "scores": {"val/dice": 0.5}}
    torch.save({"state_dict": weights, "hnseg": described}, folder / "best.ckpt")
    (folder / "config.json").write_text("{}")
    if finished:
        (folder / "score.json").write_text(json.dumps({"val/dice": 0.5}))
    return folder


def make_bundle(folder: Path, *cards: dict[str, Any]) -> Bundle:
    """Run folders of all cards, exported and loaded."""
    for seed, one in enumerate(cards):
        write_run(folder / "runs", one, seed=seed)
    export_bundle([folder / "runs"], folder / "bundle")
    return Bundle.load(folder / "bundle")


def make_cascade(bundle: Bundle, precision: Precision = "float32", **settings: Any) -> Cascade:
    """The cascade of a bundle in PyTorch on the CPU."""
    return Cascade(bundle, Networks(torch.device("cpu"), precision), **settings)


class Ensemble(StageEnsemble):
    """Members of a stage in PyTorch on the CPU, of equal weight and not mirrored unless a test says so."""

    def __init__(
        self,
        members: Sequence[Member],
        decision: Decision | None = None,
        *,
        mirror: bool = False,
        networks: Networks | None = None,
    ) -> None:
        networks = networks or Networks(torch.device("cpu"), "float32")
        super().__init__(members, networks, decision or Decision(), mirror=mirror)

    def __call__(
        self, ct: sitk.Image, pet: sitk.Image, grid: Grid, disagreement: Disagreement | None = None
    ) -> np.ndarray:
        """Probabilities (K, z, y, x) on the grid."""
        return self.probabilities(ct, pet, grid, Clock(), disagreement)


def rotation(degrees: float, axis: int) -> np.ndarray:
    """Direction matrix of a turn about x, y or z."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    a, b = (i for i in range(3) if i != axis)
    turn[a, a] = turn[b, b] = cosine
    turn[a, b], turn[b, a] = -sine, sine
    return turn
