"""Networks of the configuration against nnU-Net's planner and MONAI's SegResNetDS as Auto3DSeg sets it.

Ours are the libraries' own classes, so what is compared is what stands around them: the settings that
the configuration resolves to, channels and classes, order and switch of deep supervision, initialisation.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jobs import job
from monai.bundle import ConfigParser
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from spoiled import must_fail
from torch import Tensor, nn

from hnseg.config import read_job
from hnseg.devices import autocast
from hnseg.models.nets import build

PAIRS = [("localiser", "plainconv"), ("coarse", "plainconv"), ("fine", "resenc"), ("fine", "segresnet")]
# (z, y, x): the least that leaves the deepest stage more than one voxel, and no cube.
SIDES = (32, 64, 32)
# How Auto3DSeg's segresnet template sets MONAI's network.
AUTO3DSEG = {
    "_target_": "SegResNetDS",
    "init_filters": 32,
    "blocks_down": [1, 2, 2, 4, 4],
    "norm": "INSTANCE",
    "in_channels": 2,
    "out_channels": 3,
    "dsdepth": 4,
}
Trainers = Callable[[str], nnUNetTrainer]


def configured(stage: str, model: str, **changes: Any) -> dict[str, Any]:
    """The network that the configuration stands for, as a checkpoint's card holds it."""
    composed = read_job(job(f"stage={stage}", f"model={model}"))
    return composed.card(composed.input_spec).network | changes


def original(stage: str, model: str, nnunet: Trainers, **changes: Any) -> nn.Module:
    """The same network by its maker's own tools; `changes` go to the architecture's arguments."""
    if model == "segresnet":
        return ConfigParser(AUTO3DSEG | changes).get_parsed_content()
    trainer = nnunet(stage)
    planned = trainer.configuration_manager
    return get_network_from_plans(
        planned.network_arch_class_name,
        planned.network_arch_init_kwargs | changes,
        planned.network_arch_init_kwargs_req_import,
        len(trainer.dataset_json["channel_names"]),
        trainer.label_manager.num_segmentation_heads,
        deep_supervision=True,
    )


def few(model: str, *, ours: bool) -> dict[str, Any]:
    """The change that makes a network small."""
    if model == "segresnet":
        return {"init_filters": 8}
    return {"features" if ours else "features_per_stage": [8] * 6}


def drawn(stage: str, model: str, nnunet: Trainers, **changes: Any) -> nn.Module:
    """The original with random weights throughout: as made, biases and whole residual branches are 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        theirs = original(stage, model, nnunet, **changes)
    for weights in theirs.to_empty(device="cpu").state_dict().values():
        if weights.ndim > 1:
            weights.uniform_(-1, 1, generator=generator).mul_((6 / weights[0].numel()) ** 0.5)
        else:
            weights.uniform_(0.5, 1.5, generator=generator)
    return theirs


def adopt(theirs: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """Our network, with the weights of the original."""
    with torch.device("meta"):
        ours = build(**settings)
    ours.network.load_state_dict(theirs.state_dict(), assign=True)
    return ours


def picture(settings: dict[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((1, settings["in_channels"], *SIDES), generator=generator)


def sharpen(theirs: nn.Module, image: Tensor) -> None:
    """Scales the last layers until the softmax is far from flat, which would agree with anything."""
    factor = 30 / theirs.train()(image)[0].std()
    for name, weights in theirs.state_dict().items():
        if "seg_layers" in name or ".head." in name:
            weights.mul_(factor)
    assert theirs(image)[0].softmax(1).amax(1).mean() > 0.9


def assert_same_logits(ours: nn.Module, theirs: nn.Module, image: Tensor) -> None:
    """All depths in training, and the finest alone in evaluation."""
    depths, expected = ours.train()(image), theirs.train()(image)
    assert isinstance(depths, list)
    torch.testing.assert_close(depths, list(expected))
    torch.testing.assert_close(ours.eval()(image), expected[0])


@pytest.mark.parametrize(("stage", "model"), PAIRS[:3])
def test_nnunet_s_own_planner_plans_what_the_configuration_says(stage, model, nnunet):
    training = read_job(job(f"stage={stage}", f"model={model}")).training
    planned = nnunet(stage).configuration_manager
    assert list(training.patch) == planned.patch_size
    assert training.batch_size == planned.batch_size


@pytest.mark.parametrize(("stage", "model"), PAIRS)
def test_the_original_s_weights_load_and_give_its_logits(stage, model, nnunet):
    settings = configured(stage, model)
    image, theirs = picture(settings), drawn(stage, model, nnunet)
    sharpen(theirs, image)
    ours = adopt(theirs, settings)
    assert {name.split(".")[0] for name in ours.state_dict()} == {"network"}  # no gate was asked for
    with torch.no_grad():
        assert_same_logits(ours, theirs, image)
        for layer in ours.modules():
            if isinstance(layer, nn.InstanceNorm3d):
                layer.eps = 1e-3
        with must_fail():
            assert_same_logits(ours, theirs, image)


def assert_same_law(ours: nn.Module, theirs: nn.Module) -> None:
    """Weights with the same constants, and the same spread where they are random."""
    drawn = dict(ours.named_parameters())
    assert drawn.keys() == dict(theirs.named_parameters()).keys()
    for name, expected in theirs.named_parameters():
        if expected.std() == 0 or expected.numel() == 1:
            torch.testing.assert_close(drawn[name], expected)
        elif expected.numel() > 1000:
            torch.testing.assert_close(drawn[name].std(), expected.std(), rtol=0.12, atol=0)


@pytest.mark.parametrize(("stage", "model"), PAIRS[1:])
def test_weights_are_drawn_as_the_maker_draws_them(stage, model, nnunet):
    # He's normal law for the slope 0.01, biases 0, the last norm of a residual block 0; MONAI: torch's own.
    torch.manual_seed(0)
    ours = build(**configured(stage, model, **few(model, ours=True))).network
    theirs = original(stage, model, nnunet, **few(model, ours=False))
    assert_same_law(ours, theirs)
    for layer in ours.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, a=1.0)  # the slope of a linear unit
    with must_fail():
        assert_same_law(ours, theirs)


@pytest.mark.parametrize(("stage", "model"), PAIRS[1:])
def test_memory_format_and_mixed_precision_change_no_prediction(stage, model, nnunet):
    settings = configured(stage, model, **few(model, ours=True))
    image, theirs = picture(settings), drawn(stage, model, nnunet, **few(model, ours=False))
    sharpen(theirs, image)
    ours = adopt(theirs, settings).eval()
    with torch.no_grad():
        expected = theirs.train()(image)[0].softmax(1)
        ours.to(memory_format=torch.channels_last_3d)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(ours(image).softmax(1), expected, atol=1e-3, rtol=0)
        with autocast(image.device, "bfloat16"):
            low = ours(image)
    assert low.dtype == torch.bfloat16
    assert (low.argmax(1) == expected.argmax(1)).float().mean() > 0.97
