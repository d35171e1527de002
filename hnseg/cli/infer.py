"""Commands that segment: infer checks case list and bundle, and says what became of the cases; challenge."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hnseg import __version__
from hnseg.cli.app import HYDRA, INFER, app, say, suggest
from hnseg.errors import HnsegError, few
from hnseg.files import digest, write_text

if TYPE_CHECKING:
    from hnseg.config import Inference
    from hnseg.imaging.case import Case
LAST = ".last"  # in a folder of masks: the state of the last call that segmented all of its cases
_OPTIONS = {f"--{key.replace('_', '-')}": key for key in ("cases", "bundle", "out", "ct", "pet", "case_id")}


@app.command(context_settings=HYDRA, rich_help_panel=INFER)
def infer(context: typer.Context) -> None:
    """Segment one study (--ct, --pet, --out, --bundle) or a list of cases."""
    from hnseg.app import run

    run(main, "infer", translate(context.args))


def translate(arguments: Sequence[str]) -> list[str]:
    """The options of hnseg infer as keys: `--ct FILE` is `ct=FILE`.

    Raises:
        HnsegError: nnU-Net's -i or -o, answered with the call that was meant.
    """
    translated, given = [], iter(arguments)
    habits = {"-i": "cases=PATH", "-o": "out=DIR"}
    for argument in given:
        name, sign, value = argument.partition("=")
        if argument in habits:
            habits[argument] = habits[argument].partition("=")[0] + "=" + next(given, "PATH")
        elif name in _OPTIONS:
            translated.append(f"{_OPTIONS[name]}={value if sign else next(given, '')}")
        else:
            translated.append(argument)
    if set(habits) & set(arguments):
        call = " ".join(dict.fromkeys([*habits.values(), "bundle=DIR", *translated]))
        raise HnsegError(f"{' '.join(arguments)}: -i and -o are nnU-Net's; type hnseg infer {call}")
    return translated


def main(cfg: Any) -> None:
    """Checks the case list and the bundle, then segments case by case."""
    from hnseg.config import read_inference

    call = read_inference(cfg)
    cases = read_case_list(call)
    if not (call.bundle / "bundle.yaml").exists():
        raise HnsegError(
            f"bundle={call.bundle}: no bundle.yaml there; make a bundle with hnseg export RUNS --out DIR"
        )
    say(f"segmenting {few([case.case_id for case in cases])} with {call.bundle} → {call.out}")
    state, last = _state(call, cases), call.out / LAST
    if not call.overwrite and last.is_file() and last.read_text() == state and _has_masks(call, cases):
        count = f"{len(cases)} of {len(cases)} cases segmented: {call.out}"
        print(f"{count} ({len(cases)} skipped, finished before; overwrite=true segments all)")
        return

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
        cascades[0].require_out_of_fold([case.case_id for case in cases])
        outcomes = predict_cases(cases, [{out: cascade} for cascade in cascades], options)
    print(summary(outcomes, out))
    if failed := [outcome.case_id for outcome in outcomes if outcome.status == "error"]:
        print(f"not segmented: {', '.join(sorted(failed))} (reasons in {out}/cases.csv)", file=sys.stderr)
        sys.exit(1)
    if all(outcome.status in ("ok", "skipped") for outcome in outcomes):
        write_text(state, last)
    if call.cases is not None:
        labelled = any(case.label for case in cases)
        suggest(
            f"hnseg evaluate {call.cases} {out}" if labelled else f"hnseg report {out} --data {call.cases}"
        )


def _state(call: Inference, cases: Sequence[Case]) -> str:
    """Digest of what a call's masks depend on: its settings, and names, sizes and times of its files.

    It stands for the digests in the records, for which a bundle's gigabytes are read.
    """
    from hnseg.imaging.case import mask_file
    from hnseg.imaging.suv import sidecar

    files = sorted(call.bundle.rglob("*"))
    for case in cases:
        files += [case.ct, case.pet, sidecar(case.pet)]
        files += [mask_file(call.head_masks, case.case_id)] if call.head_masks else []
    stats = [(str(path), stat) for path in files if (stat := _stat(path)) is not None]
    machine = [__version__, version("torch"), platform.node()]  # which choose precision and device
    settings = call.model_dump(mode="json", exclude={"overwrite"})
    return digest([machine, settings, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]], 32)


def _stat(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None


def _has_masks(call: Inference, cases: Sequence[Case]) -> bool:
    """Whether each case has its record and its mask."""
    return all(
        (call.out / f"{case.case_id}{ending}").is_file()
        for case in cases
        for ending in (".json", f".{call.format}")
    )


def read_case_list(call: Inference) -> list[Case]:
    """The case of ct= and pet=, or those of this shard; last_stage=localiser leaves out those with a mask.

    Raises:
        HnsegError: No case list, no folder of head masks, a mask for every case, or an impossible shard.
    """
    from hnseg.imaging.case import Case, center_of, mask_file, read_cases, take_shard

    if call.ct is not None and call.pet is not None:
        for path in (call.ct, call.pet):
            if not path.exists():
                raise HnsegError(f"{path}: no such file; check the path")
        name = call.case_id or re.sub(r"(__CT|_0000)?(\.nii|\.nii\.gz|\.mha)?$", "", call.ct.name)
        return [Case(name, call.ct, call.pet, center=center_of(name))]
    assert call.cases is not None  # Inference has either
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


@app.command(rich_help_panel=INFER)
def challenge(
    model: Annotated[Path, typer.Option(metavar="BUNDLE", help="The trained members; only read.")],
    source: Annotated[Path, typer.Option("--input", metavar="DIR", help="Holds images/ct and images/pet.")],
    out: Annotated[Path, typer.Option("--output", metavar="DIR", help="The mask goes below it.")],
    interface: Annotated[Literal["2025", "2026"], typer.Option(help="The edition of HECKTOR.")] = "2025",
) -> None:
    """Segment the one study of a grand-challenge container."""
    say(f"segmenting the study in {source}")
    from hnseg.inference.grand_challenge import INTERFACES, segment_study
    from hnseg.processes import silence_libraries

    silence_libraries()
    target, result = segment_study(source, out, model, INTERFACES[interface])
    for fallback in result.fallbacks:
        print(fallback)
    print(f"{target}: {sum(result.seconds.values()):.0f} s")
