"""A long case list in one process: its memory stays where the first cases have taken it."""

import csv
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from members import card, make_bundle

# A CT of 6.5 MB as float32: the process has about 1.1 GB, so that one kept in ten would show.
SHAPE = (100, 128, 128)
PAIRS, CASES, SETTLED = 4, 100, 10

CHILD = """
import json, sys
from pathlib import Path
import torch
from hnseg.app import compose
from hnseg.config import read_inference
from hnseg.imaging.case import read_cases
from hnseg.inference.cascade import load_cascades
from hnseg.inference.predict_cases import Options, run
from hnseg.inference.records import reporting

def resident():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0])

cases, bundle, out, backend = sys.argv[1:]
asked = [f"cases={cases}", f"bundle={bundle}", f"out={out}", f"backend={backend}"]
asked += ["trainer.threads=1", "trainer.device=cpu", "uncertainty=true"]
call = read_inference(compose(asked, "infer"))
cases, out, sizes = read_cases(call.cases), call.out, []
(cascade,) = load_cascades(call, [torch.device("cpu")])
with reporting(cases, [out]) as (report, outcomes):
    def watch(outcome):
        report(outcome)
        sizes.append(resident())
    run(cases, [{out: cascade}], Options(), watch)
print(json.dumps([sizes, [outcome.status for outcome in outcomes]]))
"""


@pytest.fixture
def case_list(tmp_path: Path) -> Path:
    """A CSV of many cases that share few images."""
    rng = np.random.default_rng(0)
    for n in range(PAIRS):
        hu = np.full(SHAPE, -1000, np.float32)
        hu[:, 20:108, 20:108] = rng.normal(40, 20, (SHAPE[0], 88, 88))
        hu[:, 60:66, 60:66] = 900  # a spine
        sitk.WriteImage(volume(hu, (2, 2, 3)), str(tmp_path / f"ct{n}.mha"))
        suv = rng.gamma(1, 1, (60, 64, 64)).astype(np.float32)
        sitk.WriteImage(volume(suv, (4, 4, 5), (1, 1, 1)), str(tmp_path / f"pet{n}.mha"))
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "ct", "pet"])
        for n in range(CASES):
            images = (tmp_path / f"{part}{n % PAIRS}.mha" for part in ("ct", "pet"))
            writer.writerow([f"A-{n:03}", *images])
    return tmp_path / "cases.csv"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_hundred_cases_grow_the_process_by_less_than_a_twentieth(
    tmp_path: Path, case_list: Path, backend: str
) -> None:
    if backend == "openvino":
        try:
            distribution("openvino")
        except PackageNotFoundError:
            pytest.skip("the extra openvino is not installed")
    stages = [card("localiser", "plainconv"), card("coarse", "plainconv"), card("fine", "resenc")]
    bundle = make_bundle(tmp_path, *stages, card("fine", "segresnet")).path
    command = [sys.executable, "-c", CHILD, case_list, bundle, tmp_path / "out", backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr
    sizes, statuses = json.loads(done.stdout)
    assert statuses == ["ok"] * CASES
    # The very last has no case read ahead beside it.
    assert max(sizes[-SETTLED:]) < 1.05 * sizes[SETTLED - 1], sizes
