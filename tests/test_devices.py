"""What the machine is asked for, and what is refused."""

import pytest
import torch

from hnseg.devices import LIGHTNING, autocast, pick_device, pick_devices, pick_precision
from hnseg.errors import HnsegError

CPU = torch.device("cpu")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HnsegError, match=r"trainer\.device=cuda, but"):
        pick_device("cuda")


@pytest.mark.parametrize(("count", "devices"), [(1, ["cuda"]), (3, ["cuda:0", "cuda:1", "cuda:2"])])
def test_every_gpu_is_used(monkeypatch: pytest.MonkeyPatch, count: int, devices: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert pick_devices() == pick_devices("cuda") == [torch.device(name) for name in devices]
    assert pick_devices("cpu") == [CPU]


@pytest.mark.parametrize(
    ("features", "precision"),
    [({}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16")],
)
def test_bfloat16_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, features: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert pick_precision(CPU) == precision


@pytest.mark.parametrize("precision", list(LIGHTNING))
def test_autocast_computes_in_the_precision_asked_for(precision: str) -> None:
    wanted = pick_precision(CPU, precision)
    with autocast(CPU, wanted):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)
