"""Segment a case list with a bundle of trained members.

    python infer.py cases=PATH bundle=DIR out=DIR

Writes OUT/CASE.nii.gz (uint8: 0 background, 1 GTVp, 2 GTVn) on each CT's grid, OUT/cases.csv and
OUT/lesions.csv. The same command again goes on where it was stopped, and skips what it has finished.
A case that cannot be segmented is reported and the others still finish; the exit status is then 1.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from hnseg.app import run
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, mask_file, read_cases
from hnseg.inference.options import check_options

if TYPE_CHECKING:
    from hnseg.inference.case_list import Engine


def main(cfg: DictConfig) -> None:
    """Checks the case list and the bundle, then segments case by case."""
    for key, what in (("cases", "a folder or CSV"), ("bundle", "made by hnseg export"), ("out", "a folder")):
        if OmegaConf.is_missing(cfg, key):
            raise HnsegError(f"{key} is not set ({what}): python infer.py cases=PATH bundle=DIR out=DIR")
    check_options(cfg)
    cases = read_case_list(cfg)
    if not (Path(cfg.bundle) / "bundle.yaml").exists():
        raise HnsegError(
            f"bundle={cfg.bundle}: no bundle.yaml there; make a bundle with hnseg export RUNS --out DIR"
        )

    from hnseg.inference.case_list import segment_cases
    from hnseg.processes import silence_libraries

    silence_libraries()
    with make_engine(cfg) as engine:
        outcomes = segment_cases(
            cases, engine, Path(cfg.out), extension=f".{cfg.format}", overwrite=cfg.overwrite
        )
    failed = [outcome.case_id for outcome in outcomes if outcome.status == "error"]
    skipped = sum(outcome.status == "skipped" for outcome in outcomes)
    before = f" ({skipped} skipped, finished before; overwrite=true segments all)" if skipped else ""
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} cases segmented: {cfg.out}{before}")
    if failed:
        print(f"not segmented: {', '.join(failed)} (reasons in {cfg.out}/cases.csv)", file=sys.stderr)
        sys.exit(1)


def make_engine(cfg: DictConfig) -> AbstractContextManager[Engine]:
    """What runs the networks, loaded."""
    from hnseg.devices import pick_devices
    from hnseg.inference.local_engine import LocalEngine
    from hnseg.inference.ray_engine import ray_engine
    from hnseg.inference.setup import Setup

    options: Any = OmegaConf.to_container(cfg)
    setup, device = Setup.from_config(options), cfg.trainer.device
    if cfg.engine.name == "ray":
        return ray_engine(setup, device, cfg.engine.workers, cfg.engine.address)
    return nullcontext(LocalEngine(setup.load(pick_devices(device)), cfg.engine.at_once))


def read_case_list(cfg: DictConfig) -> list[Case]:
    """The cases to segment; with until=head those that have no head mask yet.

    Raises:
        HnsegError: No case list, no folder of head masks, or a mask for every case.
    """
    cases = read_cases(Path(cfg.cases), strict=False)
    if cfg.heads is None:
        return cases
    heads = Path(cfg.heads)
    if not heads.is_dir():
        raise HnsegError(f"heads={heads}: no such folder; give one that holds CASE.nii.gz")
    if cfg.until != "head":
        return cases
    left = [case for case in cases if not mask_file(heads, case.case_id).exists()]
    if not left:
        raise HnsegError(f"heads={heads} until=head: each of the {len(cases)} cases has a mask; name others")
    return left


if __name__ == "__main__":
    run(main, config_name="infer")
