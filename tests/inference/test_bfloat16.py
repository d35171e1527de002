"""What bfloat16 and float16 cost: masks of a trained network, beside those of PyTorch in float32."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from members import TINY, card
from torch import Tensor

from hnseg.card import Card
from hnseg.devices import Precision
from hnseg.inference.backends import Networks, make_networks
from hnseg.inference.predictor import Predictor
from hnseg.models import nets
from hnseg.models.bundle import Bundle, write_bundle
from hnseg.models.checkpoint import Member
from hnseg.models.losses import DiceCELoss

CPU = torch.device("cpu")
SIDE = 24


def patient(seed: int) -> tuple[Tensor, Tensor]:
    """Noise with two bright blobs, one of which shows in both channels: (1, 2, z, y, x) and labels."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"))
    image, label = 0.3 * torch.randn(2, SIDE, SIDE, SIDE, generator=generator), torch.zeros(SIDE, SIDE, SIDE)
    for number in (1, 2):
        centre = torch.randint(6, SIDE - 6, (3,), generator=generator)
        inside = (axes - centre[:, None, None, None]).square().sum(0) < 20
        image[:number, inside] += 2
        label[inside] = number
    return image[None], label[None, None].long()


@pytest.fixture(scope="module", params=TINY)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    torch.manual_seed(0)
    one = card("fine", request.param, patch=[SIDE] * 3)
    network, loss = nets.build(**one["network"]), DiceCELoss()
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.9, nesterov=True)
    for step in range(150):
        image, label = patient(step)
        optimizer.zero_grad()
        loss(network(image)[0], label[:, 0]).backward()
        optimizer.step()
    out = tmp_path_factory.mktemp("trained") / "bundle"
    write_bundle([(Card(**one), network.eval())], out)
    return Bundle.load(out).members[0]


def probabilities(networks: Networks, member: Member, image: Tensor, precision: Precision) -> Tensor:
    predictor = Predictor.of(member.card, precision=precision)
    return predictor(networks(member), image).softmax(1)


@pytest.mark.slow
@pytest.mark.openvino
@pytest.mark.parametrize(
    ("backend", "precision", "bound"),
    [("openvino", "bfloat16", 0.08), ("torch", "bfloat16", 0.08), ("torch", "float16", 0.01)],
)
def test_masks_of_a_trained_network_agree_with_float32s(
    trained: Member, backend: str, precision: Precision, bound: float
) -> None:
    """Dice of at least 0.995 in each class over twelve unseen patients, on a network that knows its task.

    The bounds of the softmax are as far apart as the roundings: float16 keeps three bits more.
    """
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("the extra openvino is not installed")
    fast, exact = make_networks(CPU, backend, precision), Networks(CPU, "float32")
    both, sums, right, difference = torch.zeros(3), torch.zeros(3), torch.zeros(2), 0.0
    for seed in range(1000, 1012):
        image, label = patient(seed)
        theirs = probabilities(exact, trained, image, "float32")
        ours = probabilities(fast, trained, image, precision)
        assert theirs.amax(1).mean() > 0.9
        difference = max(difference, float((ours - theirs).abs().max()))
        ours, theirs, truth = (
            F.one_hot(x.long().flatten(), 3) for x in (ours.argmax(1), theirs.argmax(1), label)
        )
        both, sums = both + 2 * (ours * theirs).sum(0), sums + (ours + theirs).sum(0)
        right = right + torch.stack([2 * (theirs * truth)[:, 1:].sum(), (theirs + truth)[:, 1:].sum()])
    assert right[0] / right[1] > 0.8
    assert 0 < difference < bound
    assert (both / sums >= 0.995).all(), both / sums
