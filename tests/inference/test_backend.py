"""OpenVINO beside PyTorch: the same probabilities, converted once, and PyTorch where it cannot be had."""

import json
import logging
import os
import signal
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from members import TINY, card, make_bundle
from safetensors.torch import load_file, save_file
from spoiled import must_fail
from torch import Tensor
from typer.testing import CliRunner

from hnseg.cli import app
from hnseg.errors import HnsegError
from hnseg.inference import backends
from hnseg.inference.backends import CompiledNetwork, Networks, OpenVinoNetworks, make_networks
from hnseg.inference.predictor import Predictor
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed"),
]
CPU = torch.device("cpu")
FOLDS = count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def confident(networks: Networks, member: Member, image: Tensor) -> Tensor:
    """Probabilities of a member whose random logits are made as far apart as trained ones."""
    with torch.no_grad():
        logits = Predictor.of(member.card)(networks(member), image)
    probabilities = (20 * logits / logits.std()).softmax(1)
    assert probabilities.amax(1).mean() > 0.9
    return probabilities


def pytorch(member: Member, image: Tensor) -> Tensor:
    return confident(Networks(CPU, "float32"), member, image)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def image(member: Member, *sides: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, member.card.network["in_channels"], *sides, generator=generator)


def folders(path: Path) -> set[str]:
    return {folder.name for folder in path.iterdir()} if path.exists() else set()


@pytest.fixture
def member(tmp_path: Path) -> Member:
    name = f"fine_plainconv_fold_{next(FOLDS)}"
    return make_bundle(tmp_path, card("fine", "plainconv", patch=[16, 16, 16], name=name)).members[0]


@pytest.mark.parametrize("architecture", TINY)
def test_float32_is_pytorchs_float32(tmp_path: Path, architecture: str) -> None:
    """Also beyond the few voxels that the network is traced on, in windows, and turned."""
    turned = {"order": [2, 0, 1], "flip": [1]}
    settings = TINY[architecture] | ({"features": [8, 16, 16]} if "features" in TINY[architecture] else {})
    cte = {"cte": architecture == "resenc"}
    described = card("fine", architecture, settings, patch=[24, 16, 32], axes=turned, input=cte)
    (member,) = make_bundle(tmp_path, described).members
    volume, networks = image(member, 24, 20, 32), OpenVinoNetworks("float32")
    theirs = pytorch(member, volume)
    assert_same(confident(networks, member, volume), theirs)
    assert networks.note(member) == ""
    unflipped = replace(member, card=replace(member.card, axes=replace(member.card.axes, flip=())))
    with must_fail():
        assert_same(confident(networks, unflipped, volume), theirs)


def test_a_learned_gate_is_converted_with_its_network(tmp_path: Path) -> None:
    described = card("fine", "resenc", patch=[16, 16, 16])
    described["network"]["gate"] = True
    (member,) = make_bundle(tmp_path, described).members
    weights, volume = load_file(member.weights), image(member, 16, 16, 16)
    save_file(weights | {"gate.logits": torch.tensor([1.0, -1.0])}, member.weights)
    theirs = pytorch(member, volume)
    assert_same(confident(OpenVinoNetworks("float32"), member, volume), theirs)
    save_file(weights, member.weights)  # the gate as it begins, all channels alike
    with must_fail():
        assert_same(pytorch(member, volume), theirs)


@pytest.mark.parametrize("kept", [0, 2**30])
def test_members_of_one_kind_keep_their_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Whether they stay compiled or come and go, case after case."""
    monkeypatch.setattr(backends, "KEPT", kept)
    cards = [card("fine", "resenc", name=f"fold_{fold}", patch=[16, 16, 16]) for fold in range(2)]
    members = make_bundle(tmp_path, *cards).members
    volume, networks = image(members[0], 16, 16, 16), OpenVinoNetworks("float32")
    expected = [pytorch(each, volume) for each in members]
    assert (expected[0] - expected[1]).abs().max() > 0.5
    for each, theirs in [*zip(members, expected, strict=True)] * 2:
        assert_same(confident(networks, each, volume), theirs)


def test_a_converted_network_is_used_again_without_building_the_pytorch_network(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = image(member, 16, 16, 16)
    theirs = pytorch(member, volume)
    OpenVinoNetworks("float32")(member)
    monkeypatch.setattr(Member, "network", None)
    (reloaded,) = Bundle.load(member.weights.parents[1]).members
    assert_same(confident(OpenVinoNetworks("float32"), reloaded, volume), theirs)


@pytest.mark.parametrize("change", ["weights", "network", "patch", "openvino"])
def test_what_is_made_of_something_else_is_converted_anew(
    member: Member, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = backends.converted(member)
    if change == "weights":
        member = replace(member, sha256="other")
    elif change == "network":
        member.card.network["slope"] = 0.5
    elif change == "patch":
        member = replace(member, card=replace(member.card, patch=(24, 24, 24)))
    else:
        monkeypatch.setattr(backends.load_openvino(), "__version__", "2999.1")
    assert backends.converted(member).parent != before.parent
    volume = image(member, *member.card.patch)
    assert_same(confident(OpenVinoNetworks("float32"), member, volume), pytorch(member, volume))


def test_a_conversion_that_was_killed_is_made_again(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object, path: Path, **__: object) -> None:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    cache = member.weights.parents[1] / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(backends.load_openvino(), "save_model", stop)
        if (child := os.fork()) == 0:
            backends.converted(member)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    network = backends.converted(member)
    assert network.read_bytes() != b"half"
    assert {name for name in folders(cache) if not name.endswith(".lock")} == {network.parent.name}


def test_beside_a_bundle_that_cannot_be_written_the_users_cache_serves(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder's place stops root as well, whom permissions do not."""
    cache = member.weights.parents[1] / "cache"
    cache.write_text("")
    assert backends.converted(member).is_relative_to(tmp_path / "home" / "hnseg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    volume, networks = image(member, 16, 16, 16), OpenVinoNetworks("float32")
    assert torch.equal(confident(networks, member, volume), pytorch(member, volume))
    assert networks.note(member) == f"{member.card.name}: OpenVINO cannot run it, PyTorch did"


class Broken(CompiledNetwork):
    """A processor whose bfloat16 products are wrong."""

    runs: ClassVar[list[str]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.runs.append(self.precision)
        return super().__call__(image).flip(1) if self.precision == "bfloat16" else super().__call__(image)


def test_where_bfloat16_is_wrong_a_member_runs_in_float32_and_its_note_says_so(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = image(member, 20, 16, 16)
    theirs = pytorch(member, volume)
    monkeypatch.setattr(backends, "CompiledNetwork", Broken)
    for compared in (["bfloat16"], []):  # the verdict is kept for the next process
        networks = OpenVinoNetworks("bfloat16")
        Broken.runs.clear()
        assert_same(confident(networks, member, volume), theirs)
        assert [*compared, "float32", "float32"] == Broken.runs
        note = f"{member.card.name}: bfloat16 is wrong on this processor, float32 was taken"
        assert networks.note(member) == note


def test_where_bfloat16_is_right_a_single_window_is_compared(member: Member) -> None:
    volume = image(member, 16, 16, 16)
    for networks in (OpenVinoNetworks("bfloat16"), OpenVinoNetworks("bfloat16")):
        confident(networks, member, volume)
        assert networks.note(member) == ""
    (error,) = json.loads(backends.converted(member).with_name(backends.BFLOAT16).read_text()).values()
    assert 0 <= error < backends.MAX_BFLOAT16_ERROR


def test_a_failed_conversion_leaves_nothing_and_runs_in_pytorch(
    member: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation\nand forty lines more")

    monkeypatch.setattr(backends.load_openvino(), "convert_model", fail)
    volume, networks = image(member, 16, 16, 16), OpenVinoNetworks("float32")
    with caplog.at_level(logging.WARNING):
        ours = [confident(networks, member, volume) for _ in range(2)]
    assert torch.equal(ours[0], pytorch(member, volume))
    (line,) = caplog.messages
    assert line == f"{member.card.name}: OpenVINO cannot run it (no such operation); it runs in PyTorch"
    assert folders(member.weights.parents[1] / "cache") == set()


def test_damaged_weights_are_an_error_and_no_reason_to_fall_back(member: Member) -> None:
    member.weights.write_bytes(member.weights.read_bytes()[:50])
    with pytest.raises(HnsegError, match="cannot be loaded"):
        OpenVinoNetworks("float32")(member)


def test_telemetry_stays_off() -> None:
    """Nothing leaves the machine: OpenVINO's reporter is never loaded."""
    backends.load_openvino()
    from openvino.tools.ovc import telemetry_stub, telemetry_utils

    assert telemetry_utils.tm is telemetry_stub


def test_auto_is_openvino_on_a_cpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_networks(CPU), OpenVinoNetworks)
    assert not isinstance(make_networks(CPU, "torch"), OpenVinoNetworks)
    assert not isinstance(make_networks(torch.device("cuda"), precision="float16"), OpenVinoNetworks)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert not isinstance(make_networks(CPU), OpenVinoNetworks)
    with pytest.raises(HnsegError, match=r"pip install 'hnseg\[openvino\]', or set backend=torch"):
        make_networks(CPU, "openvino")


def test_export_converts_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, card("fine", "plainconv", patch=[16, 16, 16])).path
    done = CliRunner().invoke(app, ["export", str(tmp_path / "runs"), "--out", str(bundle), "--convert"])
    assert done.exit_code == 0, done.output
    (cached,) = folders(bundle / "cache")
    assert backends.converted(Bundle.load(bundle).members[0]).parent.name == cached
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["export", str(tmp_path), "--out", str(tmp_path / "new"), "--convert"])
    assert "hnseg[openvino]', or export without it" in str(done.exception)
    assert not (tmp_path / "new").exists()
