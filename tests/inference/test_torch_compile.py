"""torch.compile beside PyTorch as it is: the same logits, and a warning where it cannot be had."""

import logging
import re
from pathlib import Path

import pytest
import torch
from entry import compose_job, load
from fabricate import write_case
from members import card, make_bundle
from spoiled import must_fail
from torch import Tensor

from hnseg.devices import Precision
from hnseg.errors import HnsegError
from hnseg.inference.backends import Networks, make_networks
from hnseg.inference.predictor import Predictor
from hnseg.models.checkpoint import Member

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _afresh() -> None:
    """What PyTorch has translated before counts towards a limit of its own."""
    torch._dynamo.reset()


def has_compiler() -> bool:
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def logits(networks: Networks, member: Member, image: Tensor, precision: Precision = "float32") -> Tensor:
    return Predictor.of(member.card, precision=precision)(networks(member), image)


def folds(folder: Path, architecture: str) -> tuple[Member, ...]:
    cards = [card("fine", architecture, name=f"fold_{fold}", patch=[16, 16, 16]) for fold in range(2)]
    return make_bundle(folder, *cards).members


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours; PyTorch's compiler has some of its own."""
    ours = (record for record in caplog.records if record.name.startswith("hnseg"))
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def image() -> Tensor:
    """Larger than the window."""
    return torch.randn(1, 2, 16, 20, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("architecture", ["resenc", "segresnet"])
def test_members_of_one_kind_give_their_own_logits(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One translation serves both, whose weights come and go."""
    members = folds(tmp_path, architecture)
    compiled = make_networks("torch", CPU, "float32", compiled=True)
    expected = [logits(Networks(CPU), member, image()) for member in members]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for member, theirs in zip(members, expected, strict=True):
                torch.testing.assert_close(logits(compiled, member, image()), theirs, rtol=0, atol=1e-4)
    assert not warnings(caplog)
    with must_fail():
        torch.testing.assert_close(logits(compiled, members[0], image()), expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, real: bool
) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise RuntimeError("No working C++ compiler found\nand forty lines more")

    if real:
        from torch._inductor import config

        monkeypatch.setattr(config.cpp, "cxx", ("nonexistent",))
        monkeypatch.setattr(config, "force_disable_caches", True)
    else:
        monkeypatch.setattr(torch, "compile", lambda network, **_: refuse)
    members = folds(tmp_path, "resenc")
    compiled = make_networks("torch", CPU, "float32", compiled=True)
    with caplog.at_level(logging.WARNING):
        for member in [*members, *members]:
            assert torch.equal(logits(compiled, member, image()), logits(Networks(CPU), member, image()))
    (line,) = warnings(caplog)
    assert re.fullmatch(
        r"resenc: torch\.compile failed \(.*No working C\+\+ compiler found.*\); it runs as it is", line
    )


def test_an_error_of_the_network_itself_is_no_fault_of_the_compiler(tmp_path: Path) -> None:
    member, _ = folds(tmp_path, "plainconv")
    network = make_networks("torch", CPU, "float32", compiled=True)(member)
    with pytest.raises(RuntimeError, match="channels"):
        network(torch.zeros(1, 5, 16, 16, 16))


def test_openvino_is_not_asked_for_it() -> None:
    with pytest.raises(HnsegError, match=r"compile=true is PyTorch's.*backend=torch.*compile=false"):
        make_networks("openvino", CPU, "float32", compiled=True)


@pytest.mark.slow
def test_infer_compiles_on_request_and_a_rerun_without_it_segments_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
    bundle = make_bundle(tmp_path, card("fine", "plainconv", grid=whole)).path
    write_case(tmp_path / "scans", "A-1")
    places = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", f"out={tmp_path / 'out'}"]
    machine = ["trainer.device=cpu", "trainer.precision=float32", "backend=torch"]
    for asked, skipped in (("true", False), ("true", True), ("false", False)):
        load("infer").main(compose_job("infer", *places, *machine, f"compile={asked}"))
        assert ("skipped" in capsys.readouterr().out) == skipped
