"""The paper's tables beside the configuration: no difference without a reason, and the reverse."""

import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from omegaconf import OmegaConf
from scipy.ndimage import map_coordinates
from torch import nn

from hnseg.app import compose_job
from hnseg.cli import main
from hnseg.cli.planning.network import read_network
from hnseg.cli.planning.pair import Pair
from hnseg.cli.planning.report import choose, read
from hnseg.cli.planning.table import Erratum, Table, compare, read_errata, read_tables
from hnseg.cli.planning.training import read_training
from hnseg.cli.planning.volume import interpolation_order
from hnseg.models.losses import DiceCELoss
from hnseg.models.nets import UNet

PAIRS = [("head", "plainconv"), ("coarse", "plainconv"), ("fine", "resenc"), ("fine", "segresnet")]


def plan(stage: str, model: str, *overrides: str):
    """Name of the table → its rows, of all tables that describe a pair."""
    used = read(Pair.compose([f"stage={stage}", f"model={model}", *overrides]))
    tables, _ = choose([f"stage={stage}", f"model={model}"])
    return {table.name: compare(table, used, read_errata()) for table in tables}


@pytest.fixture(scope="module")
def paper():
    """All tables under the defaults, which are the paper's."""
    return {name: rows for pair in PAIRS for name, rows in plan(*pair).items()}


def test_nothing_differs_without_a_reason(paper):
    assert [(name, row.name) for name, rows in paper.items() for row in rows if not row.explained] == []


def test_every_erratum_explains_a_difference(paper):
    used = [row.erratum for rows in paper.values() for row in rows if row.erratum]
    assert [erratum for erratum in read_errata() if erratum not in used] == []
    assert len(used) == len(read_errata())


def test_the_tables_hold_every_row_that_the_paper_prints():
    printed = {table.name: len(table.rows) for table in read_tables() if table.name.startswith("Table")}
    assert printed == {"Table 1": 19, "Table 2": 19, "Table 3": 19, "Table 4": 21}


def test_every_erratum_names_its_rows_once():
    assert set(Counter((one.table, one.row) for one in read_errata()).values()) == {1}
    assert all(len(one.reason) > 30 for one in read_errata())


ERRATUM = Erratum("Table 9", "Depth", 5, 6, "Five entries for six stages.")


@pytest.mark.parametrize(
    ("printed", "used", "erratum", "explained", "cited"),
    [
        (6, 6, None, True, False),
        (5, 6, None, False, False),
        (5, 6, ERRATUM, True, True),
        (4, 6, ERRATUM, False, False),  # the table was corrected, the erratum was not
        (5, 7, ERRATUM, False, False),  # the code uses something else by now
        (6, 6, replace(ERRATUM, printed=6), True, False),  # nothing to explain
        (5, 6, replace(ERRATUM, table="Table 8"), False, False),
        (5, 6, replace(ERRATUM, row="Width"), False, False),
    ],
)
def test_an_erratum_counts_only_where_it_names_both_values(printed, used, erratum, explained, cited):
    table = Table("Table 9", "", "fine", "resenc", {"Depth": printed})
    (row,) = compare(table, {"Depth": used}, [erratum] if erratum else [])
    assert (row.explained, row.erratum is not None) == (explained, cited)


def test_a_mapping_speaks_of_what_it_names_alone():
    table = Table("Table 9", "", "fine", "resenc", {"Norm": {"layer": "A", "eps": 1e-5}})
    (same,) = compare(table, {"Norm": {"layer": "A", "eps": 1e-5, "affine": False}}, [])
    (other,) = compare(table, {"Norm": {"layer": "A", "affine": False}}, [])
    assert same.explained
    assert not other.explained


HEAD, COARSE, RESENC, SEGRESNET = PAIRS


@pytest.fixture(scope="module")
def composed():
    """The configuration of each pair; composing takes longer than all that is read from it."""
    return {pair: compose_job([f"stage={pair[0]}", f"model={pair[1]}"]) for pair in PAIRS}


@pytest.mark.parametrize(
    ("pair", "override", "row"),
    [
        (HEAD, "training.patch=[96,128,160]", "Patch Size"),
        (HEAD, "stage.size=[256,256,160]", "Median Image Size"),
        (HEAD, "stage.spacing=[2,2,4]", "Spacing"),
        (HEAD, "model.settings.strides=[1,2,2,2,2,2]", "Strides"),
        (HEAD, "stage.classes=[head,neck]", "Output Channels"),
        (HEAD, "recipe.head_crop=corner", "Grid"),
        (HEAD, "training.iterations=100", "Iterations per Epoch"),
        (COARSE, "model.settings.features=[32,64,128,256,320,256]", "Features per Stage"),
        (COARSE, "model.settings.convolutions=3", "Convolutions per Stage (Encoder)"),
        (COARSE, "model.settings.decoder_convolutions=1", "Convolutions per Stage (Decoder)"),
        (COARSE, "training.batch_size=4", "Batch Size"),
        (COARSE, "training.epochs=999", "Epochs"),
        (COARSE, "training.ema=0.9", "Checkpoint"),
        (COARSE, "stage.top=0.6", "Grid"),
        (COARSE, "stage.antialias=true", "Sampled from"),
        (COARSE, "recipe.source=head_crop", "Sampled from"),
        (COARSE, "recipe.ct_window=[-100,190]", "CT Window"),
        (COARSE, "recipe.ct_range=[0,1]", "CT Window"),
        (COARSE, "recipe.minmax_again=[coarse]", "PET"),
        (COARSE, "recipe.pet=suv", "PET"),
        (COARSE, "model.normalise.pet=none", "Normalization"),
        (COARSE, "recipe.coarse.margin_mm=10", "Median Image Size"),
        (COARSE, "cte=true", "Input"),
        (COARSE, "optimizer.step.lr=0.02", "Optimizer"),
        (COARSE, "optimizer.step.nesterov=false", "Optimizer"),
        (COARSE, "optimizer.schedule.power=1", "Learning Rate"),
        (COARSE, "optimizer.clip=1", "Gradient Clipping"),
        (COARSE, "trainer.precision=float32", "AMP"),
        (RESENC, "model.settings.blocks=[1,3,4,6,6,5]", "Residual Blocks per Stage"),
        (RESENC, "loss.loss.squared=false", "Loss Function"),
        (RESENC, "loss.loss.background=false", "Loss Function"),
        (RESENC, "loss.weights=monai", "Deep Supervision Weights"),
        (RESENC, "model.normalise.ct=zscore", "Normalization"),
        (RESENC, "recipe.roi.train=coarse", "Grid"),
        (RESENC, "recipe.roi.jitter_mm=5", "Grid"),
        (RESENC, "data.folds=4", "Folds"),
        (RESENC, "recipe.decision.fusion=authors", "Fusion"),
        (RESENC, "recipe.decision.rule=argmax", "Decision"),
        (RESENC, "recipe.decision.mirror=true", "Mirroring at Test Time"),
        (SEGRESNET, "model.settings.init_filters=16", "Initial Filters"),
        (SEGRESNET, "model.settings.blocks_down=[1,2,2,4]", "Downsampling Blocks"),
        (SEGRESNET, "model.settings.depths=3", "Residual Depth"),
        (SEGRESNET, "model.normalise.ct=ct", "Normalization"),
        (SEGRESNET, "model.window.overlap=0.5", "Sliding Window Overlap"),
        (SEGRESNET, "optimizer.step.weight_decay=1.0e-4", "Optimizer"),
        (SEGRESNET, "optimizer.schedule.warmup_steps=5", "Learning Rate"),
        (SEGRESNET, "augment.transforms.0.p=0.3", "Data Augmentation"),
        (SEGRESNET, "recipe.checkpoint=compare training.ema=0.9", "Checkpoint"),
        (SEGRESNET, "recipe.decision.min_component_ml=0", "Small Components"),
    ],
)
def test_one_change_of_the_configuration_is_an_unexplained_difference(
    monkeypatch, composed, pair, override, row
):
    changed = deepcopy(composed[pair])
    for one in override.split():
        key, _, value = one.partition("=")
        OmegaConf.update(changed, key, yaml.safe_load(value), merge=False)
    monkeypatch.setattr("hnseg.cli.planning.pair.compose_job", lambda overrides: changed)
    assert row in {one.name for rows in plan(*pair).values() for one in rows if not one.explained}


def test_a_network_is_read_from_its_modules():
    network = ResidualEncoderUNet(
        2,
        3,
        [4, 6, 8],
        conv_op=nn.Conv3d,
        kernel_sizes=[3, 5, 5],
        strides=[1, [1, 2, 2], 2],
        n_blocks_per_stage=[1, 2, 3],
        num_classes=4,
        n_conv_per_stage_decoder=[2, 3],
        conv_bias=False,
        norm_op=nn.BatchNorm3d,
        norm_op_kwargs={"eps": 1e-3, "affine": False},
        dropout_op=nn.Dropout3d,
        dropout_op_kwargs={"p": 0.25},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"negative_slope": 0.2},
        deep_supervision=True,
    )
    assert read_network(UNet(network)) == {
        "Network Class": "ResidualEncoderUNet (3D)",
        "Number of Stages": 3,
        "Features per Stage": [4, 6, 8],
        "Kernel Sizes": [[3, 3, 3], [5, 5, 5]],
        "Strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "Residual Blocks per Stage": [1, 2, 3],
        "Convolutions per Stage (Encoder)": [2, 4, 6],
        "Convolutions per Stage (Decoder)": [2, 3],
        "Convolution Bias": False,
        "Normalization Layer": {"layer": "BatchNorm3d", "eps": 1e-3, "affine": False},
        "Nonlinearity": {"layer": "LeakyReLU", "inplace": False},
        "LeakyReLU Slope": 0.2,
        "Dropout": 0.25,
        "Input Channels": 2,
        "Output Channels": 4,
        "Supervised Depths": 2,
    }


@pytest.mark.parametrize("order", [0, 1, 3])
def test_interpolation_is_known_by_the_polynomials_it_keeps(order):
    def sample(image, grid):
        index = image.TransformPhysicalPointToContinuousIndex(grid.origin)[::-1]
        array = sitk.GetArrayFromImage(image).astype(np.float64)
        return map_coordinates(array, np.array(index)[:, None], order=order, mode="mirror")

    assert interpolation_order(sample) == order


class BatchDice(DiceCELoss):
    """Dice over the voxels of a whole batch."""

    def dice(self, probabilities, target):
        joined = torch.cat(list(probabilities), dim=1)[None]
        return super().dice(joined, torch.cat(list(target))[None])


class SigmoidLoss(DiceCELoss):
    """Classes that know nothing of each other."""

    def forward(self, logits, target):
        return self.dice(logits.sigmoid(), target)


@pytest.mark.parametrize(
    ("kind", "aspects"),
    [(DiceCELoss, (False, True)), (BatchDice, (True, True)), (SigmoidLoss, (False, False))],
)
def test_the_loss_shows_what_it_makes_of_a_batch_and_of_logits(kind, aspects):
    pair = Pair.compose(["stage=fine", "model=segresnet"])
    pair.module.loss.loss = kind()
    loss = read_training(pair, 4)["Loss Function"]
    assert (loss["batch Dice"], loss["softmax"]) == aspects


@pytest.mark.parametrize(
    ("pair", "weights"), [(HEAD, "[1,2]"), (RESENC, "[1,1,2]"), (("fine", "plainconv"), "[1,1,2]")]
)
def test_class_weights_are_told_as_what_they_are(pair, weights):
    overrides = [f"stage={pair[0]}", f"model={pair[1]}", f"loss.loss.class_weights={weights}"]
    loss = read_training(Pair.compose(overrides), 4)["Loss Function"]
    assert loss["terms"] == ["weighted Dice", "weighted cross-entropy"]
    assert (loss["batch Dice"], loss["softmax"]) == (False, True)


def run(monkeypatch, capsys, *overrides):
    """Exit status, stdout and stderr of `hnseg plan`."""
    monkeypatch.setattr(sys, "argv", ["hnseg", "plan", *overrides])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0), *capsys.readouterr()


def test_the_command_shows_the_tables_and_marks_the_errata(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "stage=coarse")
    assert status == 0
    assert "Table 2:" in out
    assert "Table 1:" not in out
    assert "erratum: Five entries for the six" in out
    assert "explained by an erratum, 0 DIFFERENT" in out


def test_a_difference_is_marked_and_status_1(monkeypatch, capsys):
    status, out, _ = run(monkeypatch, capsys, "model=segresnet", "training.epochs=299", "optimizer.clip=1")
    assert status == 1
    marked = [line for line in out.splitlines() if "DIFFERENT" in line]
    assert [line.split("│")[1].strip() for line in marked[:-1]] == [
        "Epochs",
        "Learning Rate",
        "Gradient Clipping",
    ]
    assert marked[-1].endswith("3 DIFFERENT")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["recipe=papr"], "recipe=papr"),
        (["training.patches=3"], "training.patches"),
        (["stage=fine", "model=plainconv"], "stage=fine model=plainconv: no table of the paper"),
        (["stage=head", "training.patch=[96,160,161]"], "training.patch=[96, 160, 161]"),
    ],
)
def test_a_wrong_override_is_one_line_and_status_2(monkeypatch, capsys, overrides, told):
    status, out, err = run(monkeypatch, capsys, *overrides)
    assert (status, out) == (2, "")
    assert err.startswith("hnseg: error: ")
    assert told in err
    assert err.count("\n") == 1
