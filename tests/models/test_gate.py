"""A gate in front of a network: the identity until it learns, and then its channels' weights."""

import pytest
import torch
from members import TINY, card, make_bundle
from torch import Tensor

from hnseg.inference.backends import Networks
from hnseg.inference.predictor import Predictor
from hnseg.models.nets import ChannelGate, build


def image(channels: int, *sides: int) -> Tensor:
    return torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(1))


def test_weights_worked_by_hand() -> None:
    gate = ChannelGate(2)
    gate.logits.data = torch.tensor([2.0, 1.0]).log()
    torch.testing.assert_close(gate.weights, torch.tensor([4 / 3, 2 / 3]))
    shown = image(2, 3, 4, 5)
    expected = torch.stack([shown[:, 0] * 4 / 3, shown[:, 1] * 2 / 3], dim=1)
    torch.testing.assert_close(gate(shown), expected)


@pytest.mark.parametrize("architecture", TINY)
def test_an_untrained_gate_changes_nothing_and_learns(architecture: str) -> None:
    torch.manual_seed(0)
    plain = build(in_channels=3, out_channels=3, **TINY[architecture])
    gated = build(in_channels=3, out_channels=3, gate=True, **TINY[architecture])
    missing, unexpected = gated.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["gate.logits"], [])
    shown = image(3, 8, 8, 8)
    assert torch.equal(gated.eval()(shown), plain.eval()(shown))
    finest = gated.train()(shown)[0]
    (finest.square() * torch.arange(8.0)).mean().backward()
    assert gated.gate.logits.grad.abs().min() > 0


@pytest.mark.parametrize("architecture", TINY)
def test_a_gated_member_is_a_plain_one_that_sees_weighted_channels_window_by_window(
    architecture: str, tmp_path
) -> None:
    described = card("fine", architecture, patch=[8, 8, 16])
    described["network"]["gate"] = True
    (member,) = make_bundle(tmp_path, described).members
    gated = Networks(torch.device("cpu"), "float32")(member)
    assert isinstance(gated.gate, ChannelGate)  # type: ignore[attr-defined]
    gated.gate.logits.data = torch.tensor([0.4, -0.3])  # type: ignore[attr-defined]
    plain = build(in_channels=2, out_channels=3, **TINY[architecture]).eval()
    weights = {name: w for name, w in gated.state_dict().items() if not name.startswith("gate.")}  # type: ignore[attr-defined]
    plain.load_state_dict(weights)
    shown, predict = image(2, 12, 8, 20), Predictor.of(member.card, mirror=True)
    share = torch.tensor([0.4, -0.3]).exp() / torch.tensor([0.4, -0.3]).exp().sum()
    weighted = shown * (2 * share)[:, None, None, None]
    torch.testing.assert_close(predict(gated, shown), predict(plain, weighted))
    assert not torch.allclose(predict(gated, shown), predict(plain, shown))
