"""Weights learned elsewhere: loaded where names and shapes match; the rest is listed."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from entry import compose_job, load, tiny, write_cohort
from members import TINY, card, make_bundle, write_run
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from safetensors.torch import save_file
from torch import Tensor, nn

from hnseg.errors import HnsegError
from hnseg.models.nets import build
from hnseg.training.pretrained import initialise, read_weights

RESENC = TINY["resenc"]


def network(channels: int = 2, seed: int = 1, architecture: str = "resenc", **changes) -> nn.Module:
    torch.manual_seed(seed)
    return build(in_channels=channels, out_channels=3, **(TINY[architecture] | changes))


def nnunets(channels: int = 2, seed: int = 0) -> nn.Module:
    """The same network as nnU-Net builds it."""
    torch.manual_seed(seed)
    arguments = {
        "n_stages": 3,
        "features_per_stage": RESENC["features"],
        "strides": RESENC["strides"],
        "n_blocks_per_stage": RESENC["blocks"],
        "n_conv_per_stage_decoder": [1, 1],
        "kernel_sizes": [3, 3, 3],
        "conv_op": "torch.nn.Conv3d",
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    imported = ["conv_op", "norm_op", "nonlin"]
    return get_network_from_plans(name, arguments, imported, channels, 3, deep_supervision=False)


def fill(target: nn.Module, path: Path) -> str:
    return initialise(target, read_weights(path), str(path))


def image() -> Tensor:
    return torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "student.backbone.", "a.b.c."])
@pytest.mark.parametrize("place", [None, "state_dict", "network_weights", "teacher"])
def test_an_nnunet_network_is_its_own_whatever_its_names_begin_with(tmp_path, prefix, place) -> None:
    theirs = nnunets().eval()
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    torch.save({place: state, "epoch": 3} if place else state, tmp_path / "weights.pth")
    ours = network().eval()
    before = ours(image())
    assert "\n" not in fill(ours, tmp_path / "weights.pth")  # nothing that did not fit
    assert torch.equal(ours(image()), theirs(image()))
    assert not torch.allclose(before, ours(image()))


def test_hnsegs_own_checkpoints_and_bundles(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", card("fine", "resenc"))
    bundle = make_bundle(tmp_path / "made", card("fine", "resenc"))
    for path in (run / "best.ckpt", bundle.members[0].weights):
        ours, trained = network().eval(), bundle.members[0].loaded()[1]
        assert "not in" not in fill(ours, path)
        assert torch.equal(ours(image()), trained(image()))


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.encoder."])
def test_an_encoder_alone_leaves_the_decoder_as_it_was_drawn(tmp_path: Path, prefix: str) -> None:
    """As self-supervised training leaves one, with a head of its own."""
    theirs = nnunets()
    state = {prefix + name: value for name, value in theirs.encoder.state_dict().items()}
    path = tmp_path / "encoder.safetensors"
    save_file({name: w.clone() for name, w in state.items()} | {"head.weight": torch.zeros(4)}, path)
    ours, drawn = network(), network()
    report = fill(ours, path)
    for name, value in theirs.encoder.state_dict().items():
        assert torch.equal(ours.network.encoder.state_dict()[name], value)
    head = "network.decoder.seg_layers.0.weight"
    assert torch.equal(ours.state_dict()[head], drawn.state_dict()[head])
    assert "not in the network (1): head.weight" in report
    (absent,) = (line for line in report.splitlines() if "not in the file" in line)
    assert "network.decoder." in absent
    assert "network.encoder." not in absent


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    torch.save(nnunets(channels=1).state_dict(), tmp_path / "one.pth")
    ours, drawn = network(channels=4), network(channels=4)
    report = fill(ours, tmp_path / "one.pth")
    first = "network.encoder.stem.convs.0.conv.weight"
    assert "other shape (" in report
    assert f"{first} [4, 1, 3, 3, 3], here [4, 4, 3, 3, 3]" in report
    assert torch.equal(ours.state_dict()[first], drawn.state_dict()[first])
    names = len(ours.state_dict())
    assert int(report.split()[0]) < names == int(report.split()[2])


class Trap:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["nothing.pt", "damaged.pt", "damaged.safetensors", "code.pt", "other.pt"])
def test_files_that_cannot_be_used_are_one_line_and_run_no_code(tmp_path: Path, name: str) -> None:
    path, trap = tmp_path / name, tmp_path / "trap"
    if name.startswith("damaged"):
        path.write_bytes(b"not weights")
    elif name == "nothing.pt":
        torch.save({"epoch": 3}, path)
    elif name == "other.pt":  # not one tensor of the network's
        torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    else:
        torch.save({"state_dict": {"w": torch.zeros(1)}, "more": Trap(trap)}, path)
    with pytest.raises(HnsegError, match=name) as refusal:
        fill(network(), path)
    assert "\n" not in str(refusal.value)
    assert not trap.exists()


def test_a_training_begins_with_them_once_and_records_them(tmp_path: Path, capsys) -> None:
    """Resumed, it goes on from its checkpoint; with another file, it is another run."""
    cohort, first = write_cohort(tmp_path / "scans"), tmp_path / "first.pt"
    settings = {"features": [4, 8], "strides": [1, 2], "blocks": [1, 1]}
    torch.save(network(channels=4, seed=7, **settings).state_dict(), first)
    still = ["optimizer.step.lr=0", "optimizer.step.weight_decay=0", "logger=csv", "stage=fine"]
    train = load("train").main
    command = [*tiny("resenc", cohort, tmp_path / "runs"), *still, f"init_from={first}"]
    train(compose_job("train", *command))
    (folder,) = (tmp_path / "runs").glob("hecktor/fine_resenc_cte/fold_0")
    recorded = json.loads((folder / "config.json").read_text())["init_from"]
    assert recorded == {"path": str(first), "sha256": hashlib.sha256(first.read_bytes()).hexdigest()}
    kept = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in torch.load(first, weights_only=True).items():
        assert torch.equal(kept[f"network.{name}"], value)
    assert "tensors loaded" in capsys.readouterr().out

    (folder / "score.json").unlink()
    stored = torch.load(folder / "last.ckpt", weights_only=True)
    changed = "network.network.decoder.seg_layers.0.bias"
    stored["state_dict"][changed] += 1
    torch.save(stored, folder / "last.ckpt")
    train(compose_job("train", *command, "trainer.threads=1"))
    assert "tensors loaded" not in capsys.readouterr().out
    torch.save(network(channels=4, seed=8, **settings).state_dict(), first)
    with pytest.raises(HnsegError, match=r"init_from\.sha256"):
        train(compose_job("train", *command))
    first.unlink()
    with pytest.raises(HnsegError, match=r"init_from=.*first\.pt: no such file"):
        train(compose_job("train", *command))
