"""How a network's output becomes part of a mask."""

from __future__ import annotations

from typing import Any

from hnseg.cli.planning.pair import Pair

Properties = dict[str, Any]

_FUSIONS = {
    "flat": "flat mean of the members' probabilities",
    "authors": "mean of softmax(mean of nnU-Net's logits) and the others' mean softmax",
}
_RULES = {"half": "at least 0.5, class by class", "argmax": "the largest of all classes"}


def read_decision(pair: Pair) -> Properties:
    """Properties of the paper's text."""
    decision = pair.config["recipe"]["decision"]
    weights = f", weighted {decision['weights']}" if decision["weights"] else ""
    return {
        "Probability Maps": f"softmax over {len(pair.stage.classes) + 1} classes",
        "Fusion": _FUSIONS[decision["fusion"]] + weights,
        "Decision": _RULES[decision["rule"]],
        "Small Components": {
            "removed": decision["min_component_ml"] > 0,
            "below ml": decision["min_component_ml"],
        },
        "Mirroring at Test Time": decision["mirror"],
        "Sliding Window Overlap": pair.config["model"]["window"]["overlap"],
    }
