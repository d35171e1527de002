"""OpenVINO beside PyTorch: the same probabilities, converted once, and PyTorch where it cannot be had."""

import json
import logging
import shutil
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from entry import compose_job, load
from fabricate import write_case
from members import TINY, card, make_bundle
from safetensors.torch import load_file, save_file
from spoiled import must_fail
from torch import Tensor, nn
from typer.testing import CliRunner

from hnseg.cli import app
from hnseg.errors import HnsegError
from hnseg.inference import backends
from hnseg.inference.backends import CompiledNetwork, Networks, OpenVinoNetworks, make_networks, pick_backend
from hnseg.inference.predictor import Predictor
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member

pytestmark = [
    pytest.mark.openvino,
    pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed"),
]
CPU = torch.device("cpu")
FOLDS = count()  # a process finds what it has converted by the member's name and weights


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


def image(member: Member, *sides: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, member.card["network"]["in_channels"], *sides, generator=generator)


def folders(path: Path) -> set[str]:
    return {folder.name for folder in path.iterdir()} if path.exists() else set()


@pytest.fixture
def member(tmp_path: Path) -> Member:
    name = f"fine_plainconv_fold_{next(FOLDS)}"
    return make_bundle(tmp_path, card("fine", "plainconv", patch=[16, 16, 16], name=name)).members[0]


def test_what_a_killed_conversion_left_is_removed(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill -9 runs nothing that would: the folder being written is put back."""
    written: list[Path] = []

    def stop(_: object, path: Path, **__: object) -> None:
        written.append(path.parent)
        raise KeyboardInterrupt

    cache = member.weights.parents[1] / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(backends.load_openvino(), "save_model", stop)
        with pytest.raises(KeyboardInterrupt):
            backends.converted(member)
    written[0].mkdir(parents=True)
    (cache / "mine").mkdir()
    network = backends.converted(member)
    assert folders(cache) == {network.parent.name, "mine"}


@pytest.mark.parametrize("architecture", TINY)
def test_float32_is_pytorchs_float32(tmp_path: Path, architecture: str) -> None:
    """Also beyond the few voxels that the network is traced on, in windows, and turned."""
    turned = {"order": [2, 0, 1], "flip": [1]}
    settings = TINY[architecture] | ({"features": [8, 16, 16]} if "features" in TINY[architecture] else {})
    cte = {"cte": architecture == "resenc"}
    one = card("fine", architecture, settings, patch=[24, 16, 32], axes=turned, input=cte)
    (member,) = make_bundle(tmp_path, one).members
    volume = image(member, 24, 20, 32)
    networks = OpenVinoNetworks("float32")
    assert isinstance(networks(member), CompiledNetwork)
    ours, theirs = (confident(each, member, volume) for each in (networks, Networks(CPU)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    unflipped = replace(member, card=member.card | {"axes": turned | {"flip": []}})
    with must_fail():
        torch.testing.assert_close(confident(networks, unflipped, volume), theirs, rtol=0, atol=1e-4)


def test_a_learned_gate_is_converted_with_its_network(tmp_path: Path) -> None:
    one = card("fine", "resenc", patch=[16, 16, 16])
    one["network"]["gate"] = True
    (member,) = make_bundle(tmp_path, one).members
    weights = load_file(member.weights)
    save_file(weights | {"gate.logits": torch.tensor([1.0, -1.0])}, member.weights)
    shown = image(member, 16, 16, 16)
    networks = OpenVinoNetworks("float32")
    assert isinstance(networks(member), CompiledNetwork)
    ours, theirs = (confident(each, member, shown) for each in (networks, Networks(CPU)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    save_file(weights, member.weights)  # the gate as it begins, all channels alike
    with must_fail():
        torch.testing.assert_close(confident(Networks(CPU), member, shown), theirs, rtol=0, atol=1e-4)


def test_members_of_one_kind_keep_their_own_weights(tmp_path: Path) -> None:
    """Whether they stay compiled or come and go, case after case."""
    cards = [card("fine", "resenc", name=f"fold_{fold}", patch=[16, 16, 16]) for fold in range(2)]
    members = make_bundle(tmp_path, *cards).members
    volume = image(members[0], 16, 16, 16)
    expected = [confident(Networks(CPU), one, volume) for one in members]
    assert (expected[0] - expected[1]).abs().max() > 0.5
    size = members[0].weights.stat().st_size
    for kept in (0, size, 2 * size):
        networks = OpenVinoNetworks("float32", kept=kept)
        compiled = []
        for _ in range(2):
            for one, theirs in zip(members, expected, strict=True):
                torch.testing.assert_close(confident(networks, one, volume), theirs, rtol=0, atol=1e-4)
                compiled.append(networks(one))
        again = [compiled[n] is compiled[n + 2] for n in range(2)]
        assert again == [kept >= size, kept >= 2 * size]


def test_a_converted_network_is_used_again_without_building_the_pytorch_one(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = image(member, 16, 16, 16)
    theirs = confident(Networks(CPU), member, volume)
    OpenVinoNetworks("float32")(member)

    def fail(_: Member) -> nn.Module:
        raise AssertionError("built")

    monkeypatch.setattr(Member, "network", fail)
    (reloaded,) = Bundle.load(member.weights.parents[1]).members
    ours = confident(OpenVinoNetworks("float32"), reloaded, volume)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("change", ["weights", "network", "patch", "openvino"])
def test_what_is_made_of_something_else_is_converted_anew(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = backends.converted(member)
    new = replace(member, card=member.card | {"patch": [24, 24, 24]} if change == "patch" else member.card)
    if change == "network":
        new = replace(member, card=member.card | {"network": member.card["network"] | {"slope": 0.5}})
    if change == "weights":
        # make_bundle draws the second one's weights from another seed.
        cards = [card("fine", "plainconv", name="a"), member.card]
        new = make_bundle(tmp_path / "new", *cards).members[-1]
        shutil.copytree(before.parents[1], new.weights.parents[1] / "cache")
    if change == "openvino":
        monkeypatch.setattr(backends.load_openvino(), "__version__", "2999.1")
    after = backends.converted(new)
    assert after.parent.name != before.parent.name
    volume = image(new, *new.card["patch"])
    theirs = confident(Networks(CPU), new, volume)
    torch.testing.assert_close(confident(OpenVinoNetworks("float32"), new, volume), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("damage", ["altered", "gone", "unlisted"])
def test_a_damaged_cache_is_made_anew(member: Member, damage: str) -> None:
    graph = backends.converted(member)
    weights, hashes = graph.with_suffix(".bin"), graph.with_name(backends.HASHES)
    whole = weights.read_bytes()
    if damage == "unlisted":
        hashes.write_text(json.dumps([1]))
    elif damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert backends.converted(member) == graph
    assert weights.read_bytes() == whole
    assert folders(graph.parents[1]) == {graph.parent.name}


def test_a_bundle_that_cannot_be_written_leaves_its_cache_to_the_user_or_to_the_process(
    tmp_path: Path, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder's place stops root as well, whom permissions do not."""
    bundle = member.weights.parents[1]
    (bundle / "cache").write_text("")
    listed = folders(bundle)
    assert backends.converted(member).is_relative_to(tmp_path / "home" / "hnseg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle / "cache"))
    temporary = backends.converted(member)
    assert not temporary.is_relative_to(bundle)
    assert temporary == backends.converted(member)
    assert folders(bundle) == listed


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
    theirs = confident(Networks(CPU), member, volume)
    monkeypatch.setattr(backends, "CompiledNetwork", Broken)
    for compared in (["bfloat16"], []):  # the verdict is kept for the next process
        networks = OpenVinoNetworks("bfloat16")
        Broken.runs.clear()
        torch.testing.assert_close(confident(networks, member, volume), theirs, rtol=0, atol=1e-4)
        assert [*compared, "float32", "float32"] == Broken.runs
        note = f"{member.card['name']}: bfloat16 is wrong on this processor, float32 was taken"
        assert networks.note(member) == note


def test_where_bfloat16_is_right_one_window_is_compared_in_all(member: Member) -> None:
    volume = image(member, 16, 16, 16)
    for networks in (OpenVinoNetworks("bfloat16"), OpenVinoNetworks("bfloat16")):
        confident(networks, member, volume)
        assert networks.note(member) == ""
    (error,) = json.loads(backends.converted(member).with_name(backends.BFLOAT16).read_text()).values()
    assert 0 <= error < backends.MAX_BFLOAT16_ERROR
    assert isinstance(networks(member), CompiledNetwork)


def test_a_failed_conversion_leaves_nothing_and_runs_in_pytorch(
    member: Member, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation\nand forty lines more")

    monkeypatch.setattr(backends.load_openvino(), "convert_model", fail)
    volume = image(member, 16, 16, 16)
    networks = OpenVinoNetworks("float32")
    with caplog.at_level(logging.WARNING):
        ours = [confident(networks, member, volume) for _ in range(2)]
    assert torch.equal(ours[0], confident(Networks(CPU), member, volume))
    (line,) = caplog.messages
    assert line == f"{member.card['name']}: OpenVINO cannot run it (no such operation); it runs in PyTorch"
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


@pytest.mark.parametrize(
    ("device", "wanted", "expected"),
    [("cpu", "auto", "openvino"), ("cuda", "auto", "torch"), ("cpu", "torch", "torch")],
)
def test_auto_is_openvino_on_a_cpu(device: str, wanted: str, expected: str) -> None:
    chosen = pick_backend(torch.device(device), wanted)
    assert chosen == expected
    networks = make_networks(chosen, torch.device(device), "float32")
    assert isinstance(networks, OpenVinoNetworks) == (expected == "openvino")


def test_where_it_is_not_installed_auto_is_pytorch_and_asking_for_it_tells_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert pick_backend(CPU) == "torch"
    with pytest.raises(
        HnsegError, match=r"not installed; pip install 'hnseg\[openvino\]', or set backend=torch"
    ):
        pick_backend(CPU, "openvino")


def test_export_converts_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path, card("fine", "plainconv", patch=[16, 16, 16])).path
    done = CliRunner().invoke(app, ["export", str(tmp_path / "runs"), "--out", str(bundle), "--convert"])
    assert done.exit_code == 0, done.output
    (cached,) = folders(bundle / "cache")
    assert backends.converted(Bundle.load(bundle).members[0]).parent.name == cached
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["export", "runs", "--out", str(tmp_path / "new"), "--convert"])
    assert isinstance(done.exception, HnsegError)
    assert "hnseg[openvino]', or export without it" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_infer_follows_the_backend(tmp_path: Path) -> None:
    whole = {"placement": "scan", "size": [16] * 3, "spacing": [6.0] * 3}
    bundle = make_bundle(tmp_path, card("fine", "plainconv", grid=whole)).path
    write_case(tmp_path / "scans", "A-1")
    places = [f"cases={tmp_path / 'scans'}", f"bundle={bundle}", "trainer.device=cpu"]
    for wanted, cached in (("torch", 0), ("auto", 1)):
        out = tmp_path / wanted
        load("infer").main(compose_job("infer", *places, f"out={out}", f"backend={wanted}"))
        assert (out / "A-1.nii.gz").exists()
        assert len(folders(bundle / "cache")) == cached
