"""What infer.py does: checks case list and bundle, segments case by case, says what became of them."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from hnseg.config import Inference, read_inference
from hnseg.errors import HnsegError
from hnseg.imaging.case import Case, mask_file, read_cases, take_shard


def main(cfg: DictConfig) -> None:
    """Checks the case list and the bundle, then segments case by case."""
    call = read_inference(cfg)
    cases = read_case_list(call)
    if not (call.bundle / "bundle.yaml").exists():
        raise HnsegError(
            f"bundle={call.bundle}: no bundle.yaml there; make a bundle with hnseg export RUNS --out DIR"
        )

    from hnseg.devices import pick_devices
    from hnseg.inference.cascade import load_cascades
    from hnseg.inference.predict_cases import Options, predict_cases
    from hnseg.inference.ray_engine import predict_on_ray
    from hnseg.inference.records import summary
    from hnseg.processes import silence_libraries

    silence_libraries()
    out, options = call.out, Options(f".{call.format}", call.overwrite)
    if call.engine.name == "ray":
        outcomes = predict_on_ray(cases, call, options)
    else:
        cascades = load_cascades(call, pick_devices(call.trainer.device))
        outcomes = predict_cases(cases, [{out: cascade} for cascade in cascades], options)
    print(summary(outcomes, out))
    if failed := [outcome.case_id for outcome in outcomes if outcome.status == "error"]:
        print(f"not segmented: {', '.join(sorted(failed))} (reasons in {out}/cases.csv)", file=sys.stderr)
        sys.exit(1)


def read_case_list(call: Inference) -> list[Case]:
    """The cases of this process's shard; with last_stage=localiser those that have no head mask yet.

    Raises:
        HnsegError: No case list, no folder of head masks, a mask for every case, or an impossible shard.
    """
    cases, heads = take_shard(read_cases(call.cases, strict=False), call.shard), call.head_masks
    if heads is None:
        return cases
    if not heads.is_dir():
        raise HnsegError(f"head_masks={heads}: no such folder; give one that holds CASE.nii.gz")
    if call.last_stage != "localiser":
        return cases
    left = [case for case in cases if not mask_file(heads, case.case_id).exists()]
    if not left:
        raise HnsegError(
            f"head_masks={heads} last_stage=localiser: each of the {len(cases)} cases has a mask; name others"
        )
    return left
