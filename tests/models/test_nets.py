"""The contract that every network keeps in both modes; tests/parity holds them against their makers' own."""

from pathlib import Path

import pytest
import torch
from entry import MODELS, compose_job, load, small, write_cohort
from entry import tiny as overrides
from hydra.utils import get_class
from members import TARGETS, TINY
from torch.autograd.graph import saved_tensors_hooks

from hnseg.errors import HnsegError
from hnseg.inference.backends import Networks
from hnseg.inference.predictor import Predictor
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.nets import InstanceNorm, Network, build, checkpoint_blocks, stride_product

pytestmark = pytest.mark.parametrize("name", TINY)


def tiny(name: str, **changes: object) -> Network:
    torch.manual_seed(0)
    return build(in_channels=2, out_channels=3, **TINY[name] | changes)  # type: ignore[arg-type]


def image(*sides: int) -> torch.Tensor:
    return torch.randn(1, 2, *sides, generator=torch.Generator().manual_seed(1))


def test_training_gives_all_depths_finest_first_and_evaluation_the_finest(name: str) -> None:
    network = tiny(name)
    depths = network.train()(image(8, 12, 16))
    assert isinstance(depths, list)
    assert [tuple(depth.shape) for depth in depths] == [(1, 3, 8, 12, 16), (1, 3, 4, 6, 8)]
    logits = network.eval()(image(8, 12, 16))
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, depths[0])
    assert isinstance(network.train()(image(8, 12, 16)), list)  # and back again


def test_every_weight_learns(name: str) -> None:
    network = tiny(name).train()
    sum(depth.square().mean() for depth in network(image(8, 8, 8))).backward()  # type: ignore[union-attr]
    # nnU-Net builds a head at every resolution, and Lightning runs without find_unused_parameters.
    assert [weight for weight, p in network.named_parameters() if p.grad is None] == []


def test_each_head_makes_one_depth_finest_first(name: str) -> None:
    network = tiny(name).train()
    before = network(image(8, 8, 8))
    for depth, head in enumerate(network.heads()):
        with torch.no_grad():
            head.bias += 1  # type: ignore[operator]
        after = network(image(8, 8, 8))
        moved = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
        assert moved == [depth == n for n in range(len(before))]
        before = after


def test_sides_are_multiples_of_the_stride_product(name: str) -> None:
    network, (z, y, x) = tiny(name).eval(), stride_product(TINY[name])
    assert (z, y, x) == (4, 4, 4)
    assert network(image(2 * z, y, 3 * x)).shape[2:] == (2 * z, y, 3 * x)
    with pytest.raises((RuntimeError, ValueError)):
        network(image(2 * z + 2, y, 3 * x))


def test_its_instance_norms_are_hnsegs(name: str) -> None:
    kinds = {type(m) for m in tiny(name).modules() if isinstance(m, torch.nn.InstanceNorm3d)}
    assert kinds == {InstanceNorm}


def step(network: Network) -> tuple[torch.Tensor, dict[str, torch.Tensor | None], int]:
    """The loss, its gradients, and how many numbers the forward pass keeps for the backward pass."""
    target = torch.randint(3, (1, 16, 16, 16), generator=torch.Generator().manual_seed(2))
    kept = {}
    weights = {parameter.data_ptr() for parameter in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = DeepSupervision(DiceCELoss())(network(image(16, 16, 16)), target)
    loss.backward()
    return loss, {name: parameter.grad for name, parameter in network.named_parameters()}, sum(kept.values())


def test_checkpointing_keeps_less_and_changes_neither_gradients_nor_predictions(name: str) -> None:
    full_depth = {key: small(value, 3) for key, value in MODELS[name].items()}
    plain, saving = tiny(name, **full_depth), tiny(name, **full_depth)
    names = list(saving.state_dict())
    checkpoint_blocks(saving)
    assert list(saving.state_dict()) == names
    (loss, gradients, kept), (same_loss, same_gradients, fewer) = step(plain), step(saving)
    assert same_loss == loss
    for weight, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[weight], gradient, rtol=0, atol=0, equal_nan=True)
    assert fewer < kept / 1.5
    with torch.no_grad():
        assert torch.equal(saving.eval()(image(16, 16, 16)), plain.eval()(image(16, 16, 16)))


def test_settings_that_it_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(HnsegError, match=r"model\.settings cannot be built: .*'width'"):
        tiny(name, width=3)


@pytest.mark.parametrize(
    "target", ["hnseg.models.nets.UNETR", "no.such.Network", "torch.nn.Conv3d", "os.system"]
)
def test_what_is_no_network_is_refused_by_its_name(target: str, name: str) -> None:
    with pytest.raises(HnsegError, match=rf"_target_={target}: "):
        tiny(name, _target_=target)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


def test_it_trains_by_its_configuration_and_segments_from_a_bundle(
    name: str, cohort: Path, tmp_path: Path
) -> None:
    load("train").main(
        compose_job("train", "stage=fine", *overrides(name, cohort, tmp_path), "cte=false", "logger=csv")
    )
    export_bundle([tmp_path], tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    network = Networks(torch.device("cpu"), "float32")(member)
    logits = Predictor.of(member.card, mirror=True)(network, image(20, 16, 24))
    assert logits.shape == (1, 3, 20, 16, 24)
    assert logits.isfinite().all()


def test_an_unknown_framework_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_class(TARGETS[name]), "framework", "nnU-Net")
    with pytest.raises(HnsegError, match=r"framework=nnU-Net; choose nnunet or auto3dseg"):
        tiny(name)
