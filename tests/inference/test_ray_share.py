"""What each actor of a Ray cluster gets, worked out by hand for small clusters."""

import pytest

from hnseg.errors import HnsegError
from hnseg.inference.ray_engine import Share, share

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
        (DESKTOP, "auto", 0, r"engine\.workers=0: give a number"),
        (DESKTOP, "auto", "many", r"engine\.workers=many: give a number"),
        ([{"memory": 1.0}], "auto", None, r"the Ray cluster has 0 CPUs"),
    ],
)
def test_what_a_cluster_cannot_hold_is_told(
    nodes: list[dict[str, float]], device: str, workers: int, message: str
) -> None:
    with pytest.raises(HnsegError, match=message):
        share(nodes, device, workers)
