"""Segment a case list with a bundle of trained members.

    python infer.py cases=PATH bundle=DIR out=DIR

Writes OUT/CASE.nii.gz (uint8: 0 background, 1 GTVp, 2 GTVn) on each CT's grid, and OUT/cases.csv.
A case that cannot be segmented is reported and the others still finish; the exit status is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from hnseg.cases import Case, read_cases
from hnseg.errors import HnsegError
from hnseg.hydra_app import run

if TYPE_CHECKING:
    from hnseg.models.bundle import Member


def main(cfg: DictConfig) -> None:
    """Checks the case list and the bundle, then segments case by case."""
    for key, what in (("cases", "a folder or CSV"), ("bundle", "made by hnseg export"), ("out", "a folder")):
        if OmegaConf.is_missing(cfg, key):
            raise HnsegError(f"{key} is not set ({what}): python infer.py cases=PATH bundle=DIR out=DIR")
    if cfg.until not in ("head", "coarse", "fine"):
        raise HnsegError(f"until={cfg.until} is no stage; choose head, coarse or fine")
    cases = read_cases(Path(cfg.cases), strict=False)
    if not (Path(cfg.bundle) / "bundle.yaml").exists():
        raise HnsegError(
            f"bundle={cfg.bundle}: no bundle.yaml there; make a bundle with hnseg export RUNS --out DIR"
        )

    import torch

    from hnseg.hardware import pick_device, pick_precision
    from hnseg.inference.cascade import Cascade
    from hnseg.inference.case_list import segment_cases
    from hnseg.models.bundle import Bundle
    from hnseg.training import quiet

    quiet()
    if cfg.trainer.threads:
        torch.set_num_threads(cfg.trainer.threads)
    device = pick_device(cfg.trainer.device)
    precision = pick_precision(device, cfg.trainer.precision)
    bundle = Bundle.load(Path(cfg.bundle))
    cascade = Cascade(bundle, device, precision, until=cfg.until, mirror=cfg.mirror)
    if cfg.unseen:
        cases = without_training_cases(cases, bundle.members)
    outcomes = segment_cases(cases, cascade, Path(cfg.out))
    failed = [outcome.case_id for outcome in outcomes if outcome.status == "error"]
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} cases segmented: {cfg.out}")
    if failed:
        print(f"not segmented: {', '.join(failed)} (reasons in {cfg.out}/cases.csv)", file=sys.stderr)
        sys.exit(1)


def without_training_cases(cases: list[Case], members: tuple[Member, ...]) -> list[Case]:
    """The cases that no member was trained on."""
    seen = {case_id for member in members for case_id in member.card["trained_on"]}
    unseen = [case for case in cases if case.case_id not in seen]
    if not unseen:
        raise HnsegError(
            f"unseen=true: some member was trained on each of the {len(cases)} cases; name others"
        )
    return unseen


if __name__ == "__main__":
    run(main, config_name="infer")
