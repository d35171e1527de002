"""The networks are their libraries' own, with the paper's numbers; the contract holds in both modes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from hydra import compose, initialize_config_dir
from members import TINY
from monai.networks.nets import SegResNetDS
from omegaconf import OmegaConf
from torch import nn

from hnseg.errors import HnsegError
from hnseg.models.nets import build

CONF = Path(__file__).parents[2] / "conf"
FEATURES = [32, 64, 128, 256, 320, 320]
# What nnU-Net passes for the paper's Tables 1 to 3, spelt out as its plans do.
NNUNET: dict[str, Any] = {
    "conv_op": nn.Conv3d,
    "kernel_sizes": [[3, 3, 3]] * 6,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
    "deep_supervision": True,
}
TWOS = [[1, 1, 1]] + [[2, 2, 2]] * 5


def paper_network(stage: str, model: str) -> nn.Module:
    """The paper's network built straight from its library."""
    if model == "segresnet":  # Table 4
        blocks = (1, 2, 2, 4, 4)
        return SegResNetDS(3, 32, 2, 3, norm="instance", blocks_down=blocks, dsdepth=4)
    if model == "resenc":  # Table 3
        return ResidualEncoderUNet(
            4, 6, FEATURES, strides=TWOS, n_blocks_per_stage=[1, 3, 4, 6, 6, 6],
            num_classes=3, n_conv_per_stage_decoder=[1] * 5, **NNUNET,
        )  # fmt: skip
    head = stage == "head"  # Tables 1 and 2
    return PlainConvUNet(
        1 if head else 2, 6, FEATURES, strides=[*TWOS[:5], [1, 2, 2]] if head else TWOS,
        n_conv_per_stage=[2] * 6, num_classes=2 if head else 3, n_conv_per_stage_decoder=[2] * 5, **NNUNET,
    )  # fmt: skip


def configured(stage: str, model: str) -> dict[str, Any]:
    """Architecture and settings of a pair, as train.py composes them."""
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[f"stage={stage}", f"model={model}"])
    return {"architecture": cfg.model.architecture, **OmegaConf.to_container(cfg.model.settings)}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in network.state_dict().items()}


def layers(network: nn.Module) -> list[tuple[Any, ...]]:
    """What weights' shapes do not tell: kinds of layers, strides and the norms' eps."""
    return [(type(m), getattr(m, "stride", None), getattr(m, "eps", None)) for m in network.modules()]


@pytest.mark.parametrize(
    ("stage", "model", "channels", "classes", "millions"),
    [
        ("head", "plainconv", 1, 2, 30.8),
        ("coarse", "plainconv", 2, 3, 31.2),
        ("fine", "resenc", 4, 3, 102.4),
        ("fine", "segresnet", 2, 3, 87.2),
    ],
)
def test_the_configured_networks_are_the_paper_s(stage, model, channels, classes, millions):
    with torch.device("meta"):  # shapes alone
        ours = build(**configured(stage, model), in_channels=channels, out_channels=classes)
        theirs = paper_network(stage, model)
    assert shapes(ours.network) == shapes(theirs)
    assert [name for name, _ in ours.named_children()] == ["network"]  # nothing beside the library's network
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    layers = [(type(m), getattr(m, "stride", None), getattr(m, "eps", None)) for m in ours.network.modules()]
    assert layers == [
        (type(m), getattr(m, "stride", None), getattr(m, "eps", None)) for m in theirs.modules()
    ]


def small_twin(architecture: str) -> nn.Module:
    """The library's network with the settings of TINY, two channels in and three classes out."""
    settings = TINY[architecture]
    if architecture == "segresnet":
        return SegResNetDS(in_channels=2, out_channels=3, init_filters=8, blocks_down=[1, 1, 1], dsdepth=2,
                           norm="INSTANCE")  # fmt: skip
    common = NNUNET | {"kernel_sizes": 3, "num_classes": 3, "strides": settings["strides"]}
    if architecture == "resenc":
        return ResidualEncoderUNet(
            2, 3, settings["features"], n_blocks_per_stage=[1, 1, 1], n_conv_per_stage_decoder=1, **common
        )
    return PlainConvUNet(2, 3, settings["features"], n_conv_per_stage=1, n_conv_per_stage_decoder=1, **common)


@pytest.mark.parametrize("architecture", TINY)
def test_the_wrapper_changes_no_logit(architecture):
    torch.manual_seed(0)
    ours, theirs = build(architecture, 2, 3, **TINY[architecture]), small_twin(architecture)
    theirs.load_state_dict(ours.network.state_dict())
    image = torch.randn(2, 2, 8, 12, 16)
    for ours_out, theirs_out in zip(ours.train()(image), theirs.train()(image), strict=True):
        torch.testing.assert_close(ours_out, theirs_out)
    finest = theirs(image)[0]
    torch.testing.assert_close(ours.eval()(image), finest)


@pytest.mark.parametrize("architecture", TINY)
def test_training_gives_all_depths_finest_first_and_evaluation_the_finest(architecture):
    network = build(architecture, 2, 3, **TINY[architecture])
    image = torch.randn(1, 2, 8, 12, 16)
    depths = network.train()(image)
    assert isinstance(depths, list)
    assert [tuple(d.shape) for d in depths] == [(1, 3, 8, 12, 16), (1, 3, 4, 6, 8)]
    logits = network.eval()(image)
    assert isinstance(logits, torch.Tensor)
    torch.testing.assert_close(logits, depths[0])
    assert isinstance(network.train()(image), list)  # and back again


@pytest.mark.parametrize("architecture", TINY)
def test_every_weight_learns(architecture):
    torch.manual_seed(0)
    network = build(architecture, 2, 3, **TINY[architecture]).train()
    sum(depth.square().mean() for depth in network(torch.randn(1, 2, 8, 8, 8))).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None]
    # nnU-Net builds a head at every resolution, and Lightning runs without find_unused_parameters.
    assert still == []


def test_nnunet_s_weights_are_drawn_as_nnunet_draws_them():
    # InitWeights_He(1e-2): Kaiming normal for the slope 0.01, biases 0.
    torch.manual_seed(0)
    network = build("plainconv", 2, 3, features=[64, 64], strides=[1, 2]).network
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv3d) and m.weight[0].numel() > 1000]
    assert convolutions
    for convolution in convolutions:
        expected = (2 / (1 + 0.01**2) / convolution.weight[0].numel()) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not convolution.bias.any()


def test_an_unknown_architecture_is_refused_with_those_there_are():
    with pytest.raises(HnsegError, match=r"architecture=unetr is unknown; choose one of plainconv, resenc"):
        build("unetr", 1, 2)
