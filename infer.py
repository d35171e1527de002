"""Segment a case list with a bundle of trained members.

    python infer.py cases=PATH bundle=DIR out=DIR

Writes OUT/CASE.nii.gz (uint8: 0 background, 1 GTVp, 2 GTVn) on each CT's grid, OUT/cases.csv and
OUT/lesions.csv. The same command again goes on where it was stopped, and skips what it has finished.
A case that cannot be segmented is reported and the others still finish; the exit status is then 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hnseg.app import run
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, mask_file, read_cases, take_shard
from hnseg.inference.options import check_options


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

    from hnseg.devices import pick_devices
    from hnseg.inference.predict_cases import Options, predict_cases, summary
    from hnseg.inference.ray_engine import predict_on_ray
    from hnseg.inference.setup import Setup
    from hnseg.processes import silence_libraries

    silence_libraries()
    config: Any = OmegaConf.to_container(cfg)
    setup, device, out = Setup.from_config(config), cfg.trainer.device, Path(cfg.out)
    options = Options(f".{cfg.format}", cfg.overwrite)
    if cfg.engine.name == "ray":
        resources = {"device": device, "workers": cfg.engine.workers, "address": cfg.engine.address}
        outcomes = predict_on_ray(cases, setup, out, options, **resources)
    else:
        devices = [{out: cascade} for cascade in setup.load(pick_devices(device))]
        outcomes = predict_cases(cases, devices, options)
    print(summary(outcomes, out))
    if failed := [outcome.case_id for outcome in outcomes if outcome.status == "error"]:
        print(f"not segmented: {', '.join(sorted(failed))} (reasons in {out}/cases.csv)", file=sys.stderr)
        sys.exit(1)


def read_case_list(cfg: DictConfig) -> list[Case]:
    """The cases of this process's shard; with until=head those that have no head mask yet.

    Raises:
        HnsegError: No case list, no folder of head masks, a mask for every case, or an impossible shard.
    """
    cases = take_shard(read_cases(Path(cfg.cases), strict=False), cfg.shard)
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
