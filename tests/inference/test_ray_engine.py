"""A case list over Ray, on one machine: what engine=local leaves, whatever becomes of the actors."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
import torch
from entry import ROOT, compose_job, run
from fabricate import pet_image, write_case
from members import DECISION, HOT, WHOLE, card, make_bundle
from processes import all_end, descendants, listening
from results import contents, table

from hnseg.config import Inference, read_inference
from hnseg.errors import HnsegError
from hnseg.imaging.case import read_cases
from hnseg.inference.cascade import load_cascades
from hnseg.inference.predict_cases import Options, predict_cases
from hnseg.inference.ray_engine import Actor, Share, predict_on_ray, share

DESKTOP = [{"CPU": 16.0, "memory": 3e10}]
MIXED = [{"CPU": 8.0}, {"CPU": 6.0}, {"CPU": 4.0}]
GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        (DESKTOP, "auto", None, Share(1, "cpu", gpus=0, cpus=16, threads=16)),
        (DESKTOP, "auto", 3, Share(3, "cpu", gpus=0, cpus=5, threads=5)),
        (MIXED, "auto", None, Share(3, "cpu", gpus=0, cpus=4, threads=4)),  # 2 + 1 + 1 find room
        (MIXED, "cpu", 7, Share(7, "cpu", gpus=0, cpus=2, threads=2)),  # 3 would hold 2 + 2 + 1
        (GPUS, "auto", None, Share(4, "cuda", gpus=1, cpus=0, threads=4)),
        (GPUS, "cuda", 3, Share(3, "cuda", gpus=1, cpus=0, threads=4)),
        (GPUS, "cpu", None, Share(3, "cpu", gpus=0, cpus=21, threads=21)),  # 64 holds three of 21
    ],
)
def test_gpus_go_one_each_and_cpus_in_equal_parts(
    nodes: list[dict[str, float]], device: str, workers: int | None, expected: Share
) -> None:
    assert share(nodes, device, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "message"),
    [
        (DESKTOP, "auto", 17, r"engine\.workers=17: the Ray cluster has 16 CPUs"),
        (GPUS, "auto", 5, r"engine\.workers=5: the Ray cluster has 4 GPUs"),
        (DESKTOP, "cuda", None, r"trainer\.device=cuda, but no node"),
    ],
)
def test_more_than_a_cluster_holds_is_refused(
    nodes: list[dict[str, float]], device: str, workers: int, message: str
) -> None:
    with pytest.raises(HnsegError, match=message):
        share(nodes, device, workers)


NAMES = [f"A-{seed}" for seed in range(6)]
PLACES = ["cases=scans", "bundle=bundle"]
MACHINE = ["backend=torch", "trainer.device=cpu", "trainer.precision=float32", "trainer.threads=1"]
RAY = ["engine=ray", f"engine.workers={min(2, os.cpu_count() or 1)}"]
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def call(scans: Path, bundle: Path, out: Path, *more: str) -> Inference:
    places = [f"cases={scans}", f"bundle={bundle}", f"out={out}"]
    return read_inference(compose_job("infer", *places, *MACHINE, *more))


def test_a_node_that_does_not_reach_the_bundle_says_so(tmp_path: Path) -> None:
    asked = call(tmp_path, tmp_path / "elsewhere", tmp_path)
    with pytest.raises(HnsegError, match=r"bundle=.*elsewhere: not there on .*each node .*must reach"):
        Actor(asked, tmp_path).load()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans, one of them bad, a bundle, and `local`: what one process makes of them."""
    if find_spec("ray") is None:  # it is not imported here: Ray reads its environment when it is
        pytest.skip("Ray is not installed")
    root = tmp_path_factory.mktemp("ray")
    for seed, name in enumerate(NAMES):
        write_case(root / "scans", name, seed=seed)
    write_case(root / "scans", "B-bad", pet=None)
    rules = DECISION | {"rule": "argmax", "min_component_ml": 2.0}  # a random network's speckle takes long
    whole = {"placement": "scan", "size": [32] * 3, "spacing": [3.0] * 3}
    make_bundle(root, card("fine", "plainconv", grid=whole, decision=rules))
    assert run("infer.py", *PLACES, *MACHINE, "probabilities=true", "out=local", cwd=root).returncode == 1
    masks = [(root / "local" / f"{name}.nii.gz").read_bytes() for name in NAMES]
    assert len(set(masks)) == len(NAMES)
    return root


@pytest.mark.slow
def test_ray_leaves_what_one_process_leaves_which_does_not_do_it_again(place: Path) -> None:
    def infer(out: str, *engine: str) -> subprocess.CompletedProcess[str]:
        return run(
            "infer.py",
            *PLACES,
            *MACHINE,
            "probabilities=true",
            f"out={out}",
            *engine,
            cwd=place,
            HOME="/none",
        )

    done = infer("ray", *RAY)
    assert (done.returncode, done.stdout) == (1, "6 of 7 cases segmented: ray\n")
    said = [line for line in done.stderr.splitlines() if not line.startswith("Segmenting")]
    assert len(said) == 3
    assert said[0].startswith("segmenting A-0, ")
    assert said[1].startswith("B-bad: error: scans/B-bad/B-bad__PT.nii.gz: ")
    assert said[2] == "not segmented: B-bad (reasons in ray/cases.csv)"
    assert contents(place / "ray") == contents(place / "local")
    assert "6 skipped" in infer("ray", "engine=local").stdout


@pytest.mark.slow
def test_killed_actors_are_started_again_and_the_list_finishes(place: Path, tmp_path: Path) -> None:
    """Nothing of the cluster can be reached from another machine."""
    out, sockets = tmp_path / "out", set[str]()

    def kill() -> None:
        while not list(out.glob("*.nii.gz")):
            time.sleep(0.01)
        sockets.update(listening(descendants(os.getpid())))
        for pid, command in descendants(os.getpid()).items():
            if command.startswith("ray::Actor"):
                os.kill(pid, signal.SIGKILL)

    killer = Thread(target=kill)
    killer.start()
    asked = call(place / "scans", place / "bundle", out, "probabilities=true", *RAY)
    predict_on_ray(read_cases(asked.cases, strict=False), asked, Options())
    killer.join()
    assert sockets <= LOOPBACK
    assert same_but_paths(out, place / "local")


@pytest.mark.slow
def test_a_case_that_twice_ended_its_actor_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # actors import `deadly` too
    for seed, name in enumerate(NAMES):
        hot = 2 * pet_image(seed) if name == "A-1" else pet_image(seed)
        write_case(tmp_path / "scans", name, seed=seed, pet=hot)
    deadly = HOT | {"_target_": "deadly.Deadly"}
    bundle = make_bundle(tmp_path, card("fine", "pointwise", deadly, grid=WHOLE)).path
    asked = call(tmp_path / "scans", bundle, tmp_path / "out", *RAY)
    cases = read_cases(tmp_path / "scans")
    outcomes = predict_on_ray(cases, asked, Options())
    assert {each.case_id for each in outcomes if each.status == "error"} == {"A-1"}
    assert "its process ended 2 times" in table(tmp_path / "out")["A-1"]["message"]
    (cascade,) = load_cascades(asked, [torch.device("cpu")])
    predict_cases([case for case in cases if case.case_id != "A-1"], [{tmp_path / "local": cascade}])
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "local")
    assert {name: found[name] for name in expected if not name.endswith("cases.csv")} == {
        name: values for name, values in expected.items() if not name.endswith("cases.csv")
    }


def same_but_paths(out: Path, expected: Path) -> bool:
    """Whether two folders hold the same but for how the bad case's path was given."""
    here, there = contents(out), contents(expected)
    for found in (here, there):
        for row in (found["cases.csv"]["B-bad"], found["B-bad.json"]):
            row["message"] = row["message"].partition("scans/")[2]
    return here == there


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_no_process_and_the_next_run_goes_on(
    place: Path, tmp_path: Path, ending: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = [str(ROOT / "infer.py"), *PLACES, *MACHINE, "probabilities=true", f"out={out}"]
    with subprocess.Popen(
        [sys.executable, *command, *RAY], cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not list(out.glob("*.nii.gz")):
            assert process.poll() is None
            time.sleep(0.01)
        below = descendants(process.pid)
        process.send_signal(ending)
        process.wait(120)
    assert process.returncode != 0
    actors = [pid for pid, name in below.items() if name.startswith("ray::Actor")]
    assert actors
    # Killed, it cannot end the cluster; Ray's own agents see after a minute that they are alone.
    assert all_end(below if ending is signal.SIGINT else actors)
    run("infer.py", *PLACES, *MACHINE, "probabilities=true", f"out={out}", cwd=place)
    assert contents(out) == contents(place / "local")
