"""Training steps, validation scores, checkpoints, and going on where a run stopped."""

import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from members import TINY
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from volumes import lesions, write_volume

from hnseg.card import InputSpec
from hnseg.data.dataset import EpochSampler, PatchDataset, VolumeDataset
from hnseg.inference.predictor import Predictor
from hnseg.metrics.official import aggregate, count_case
from hnseg.models.checkpoint import CARD, FORMAT
from hnseg.models.losses import DeepSupervision, DiceCELoss
from hnseg.models.module import SegmentationModule
from hnseg.models.nets import build
from hnseg.processes import silence_libraries
from hnseg.training.checkpoints import checkpoint_callbacks, validation_scores

EPOCHS, STEPS, LR = 4, 2, 0.01
NETWORK = {"in_channels": 2, "out_channels": 3, **TINY["plainconv"]}
PLAIN_CARD = {"name": "fine_plainconv_fold_0", "network": NETWORK, "patch": [8, 8, 8]}


class Numbers(PatchDataset):
    """Remembers the numbers of the samples it was asked for."""

    seen: list[int]

    def __getitem__(self, number: int) -> dict[str, Any]:
        self.seen.append(number)
        return super().__getitem__(number)


class Diary(L.Callback):
    """Writes down the learning rate before each step, and the weights after it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.weights.append({k: v.clone() for k, v in pl_module.state_dict().items()})


def make_module(seed: int = 0, epochs: int = EPOCHS, **options: Any) -> SegmentationModule:
    torch.manual_seed(seed)
    usual = {
        "network": build(**NETWORK),
        "loss": DeepSupervision(DiceCELoss()),
        "predict": Predictor((8, 8, 8)),
        "optimizer": partial(SGD, lr=LR, momentum=0.9, nesterov=True),
        "scheduler": partial(PolynomialLR, total_iters=epochs, power=0.9),
        "classes": ("GTVp", "GTVn"),
        "spacing": (1.0, 2.0, 3.0),
        "card": PLAIN_CARD,
    }
    return SegmentationModule(**usual | options)


@dataclass
class Run:
    """A training that has ended."""

    module: SegmentationModule
    trainer: L.Trainer
    diary: Diary
    numbers: list[int]


@pytest.fixture
def train(tmp_path):
    """Return a training into tmp_path / `folder`: `train(folder, epochs, resume=…, ema=…, seed=…)`."""
    silence_libraries()
    labels = [lesions((12, 12, 12), n) for n in range(3)]
    volumes = [write_volume(tmp_path / "cache", f"A-{n}", labels[n], seed=n) for n in range(3)]

    def train(
        name: str,
        epochs: int,
        *,
        resume: bool = False,
        ema: float | None = None,
        seed: int = 0,
        accumulate: int = 1,
        module: dict[str, Any] | None = None,
        **choice: Any,
    ) -> Run:
        data, diary, folder = (
            Numbers(volumes[:2], InputSpec(), (8, 8, 8), 2, None, 0),
            Diary(),
            tmp_path / name,
        )
        data.seen = []
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            gradient_clip_val=12.0,
            accumulate_grad_batches=accumulate,
            logger=CSVLogger(folder, name="", version=""),
            callbacks=[*checkpoint_callbacks(folder, ema, **choice), diary],
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = make_module(seed, **module or {})
        patches = DataLoader(data, batch_size=2 // accumulate, sampler=EpochSampler(2 * STEPS))
        rois = DataLoader(VolumeDataset(volumes[2:], InputSpec(), 2), batch_size=1)
        trainer.fit(module, patches, rois, ckpt_path=folder / "last.ckpt" if resume else None)
        return Run(module, trainer, diary, data.seen)

    return train


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Equal tensors, numbers and texts, however nested."""
    if isinstance(a, dict | list):
        keys = range(max(len(a), len(b))) if isinstance(a, list) else a.keys() | b.keys()
        for key in keys:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b)
    else:
        assert a == b


def test_two_steps_train_and_validate(train):
    run = train("run", 1)
    assert run.trainer.global_step == STEPS
    assert run.numbers == [0, 1, 2, 3]
    before, after = make_module().state_dict(), run.diary.weights[-1]
    assert all(not torch.equal(after[name], before[name]) for name in before if name.endswith("conv.weight"))
    scores = {name: float(value) for name, value in run.trainer.callback_metrics.items()}
    classes = {"val/dice_GTVp", "val/dice_GTVn"}
    official = {"val/gtvp_dsc", "val/gtvn_dsc_agg", "val/gtvn_f1_agg"}
    assert {"train/loss", "val/loss", "val/dice"} | classes | official <= scores.keys()
    assert all(np.isfinite(value) for value in scores.values())
    assert scores["val/dice"] == pytest.approx(np.mean([scores[name] for name in classes]))
    assert scores["train/loss"] == pytest.approx(scores["train/dice_loss"] + scores["train/ce_loss"])
    assert scores["train/loss"] == pytest.approx(scores["train/loss_depth_0"])
    kernels = [p for p in run.module.network.parameters() if p.ndim == 5]
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)


def test_a_batch_in_parts_trains_as_a_whole_one(train):
    whole, parts = train("whole", 1), train("parts", 1, accumulate=2)
    assert parts.numbers == whole.numbers
    assert parts.trainer.global_step == whole.trainer.global_step == STEPS
    for name, weights in whole.diary.weights[-1].items():
        torch.testing.assert_close(parts.diary.weights[-1][name], weights, rtol=1e-3, atol=1e-5)


def test_no_step_waits_for_a_number(train, monkeypatch):
    """Reading a number from a tensor is what makes the processor wait for a GPU."""
    module = make_module()
    read_from = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default:
                read_from.append(traceback.format_stack())
            return function(*args, **kwargs or {})

    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    batch = {"image": torch.randn(2, 2, 8, 8, 8), "label": torch.ones(2, 8, 8, 8, dtype=torch.long)}
    with Watch():
        module.training_step(batch, 0).backward()
        module.configure_gradient_clipping(None, 12.0)
        assert not read_from, "".join(read_from[0])
        float(batch["image"].sum())
    assert len(read_from) == 1  # the watch sees what it should see


def one_hot(labels: np.ndarray) -> torch.Tensor:
    """Logits (K, z, y, x) that decide for `labels`."""
    return torch.from_numpy(np.stack([labels == c for c in range(3)]).astype(np.float32))


def echo(**options: Any) -> SegmentationModule:
    """A module whose network gives back its input."""
    return make_module(network=nn.Identity(), predict=lambda network, image: network(image), **options)


def validate(module: SegmentationModule, cases: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Validation scores of predictions against truths."""
    missed = torch.zeros(2)
    batches = [
        {"image": one_hot(p), "label": torch.from_numpy(t).long(), "voxels_outside_roi": missed}
        for p, t in cases
    ]
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", **silent)
    (scores,) = trainer.validate(module, DataLoader(batches, batch_size=1), verbose=False)
    return scores


def test_validation_scores_are_those_of_the_cases():
    silence_libraries()
    rng = np.random.default_rng(0)
    truths = [rng.choice(3, (6, 7, 8), p=(0.8, 0.1, 0.1)).astype(np.uint8) for _ in range(3)]
    cases = [(np.where(rng.uniform(size=t.shape) < 0.7, t, 0).astype(np.uint8), t) for t in truths]
    cases[1][1][cases[1][1] == 1] = 0  # a patient without GTVp, but with some predicted
    cases[2] = tuple(np.where(a == 1, 0, a) for a in cases[2])  # and one without on either side: Dice 1
    scores = validate(echo(), cases)
    dice = {}
    for label, name in ((1, "GTVp"), (2, "GTVn")):
        each = []
        for predicted, truth in cases:
            a, b = predicted == label, truth == label
            each.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0)
        dice[name] = np.mean(each)
        assert scores[f"val/dice_{name}"] == pytest.approx(dice[name], rel=1e-5)
    assert scores["val/dice"] == pytest.approx(np.mean(list(dice.values())), rel=1e-5)
    official = aggregate([count_case(p, t, (1.0, 2.0, 3.0)) for p, t in cases])
    assert scores["val/gtvp_dsc"] == pytest.approx(official["gtvp_dsc"])
    assert scores["val/gtvp_dsc"] == pytest.approx(dice["GTVp"])
    assert scores["val/gtvn_dsc_agg"] == pytest.approx(official["gtvn_dsc_agg"])
    assert scores["val/gtvn_f1_agg"] == pytest.approx(official["gtvn_f1_agg"])
    losses = [DiceCELoss()(one_hot(p)[None], torch.from_numpy(t)[None].long()).item() for p, t in cases]
    assert scores["val/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_validation_forgets_the_one_before():
    right, wrong = np.zeros((2, 4, 4, 4), np.uint8)
    right[0], right[2] = 1, 2
    module = echo()
    assert validate(module, [(wrong, right)])["val/gtvn_dsc_agg"] == 0
    scores = validate(module, [(right, right)])
    assert [scores[f"val/{name}"] for name in ("dice", "gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg")] == [1] * 4


def test_the_head_stage_has_no_official_scores():
    head = np.zeros((4, 4, 4), np.uint8)
    head[:2] = 1
    scores = validate(echo(classes=("head",)), [(head, head)])
    assert scores["val/dice"] == scores["val/dice_head"] == 1
    assert not any("gtv" in name for name in scores)


def test_a_checkpoint_says_what_it_is_and_holds_no_code(train, tmp_path):
    run = train("run", 1)
    stored = read(tmp_path / "run" / "best.ckpt")
    scores = stored[CARD].pop("scores")
    assert stored[CARD] == PLAIN_CARD | {"format": FORMAT}
    assert scores["val/dice"] == pytest.approx(float(run.trainer.callback_metrics["val/dice"]))
    assert scores == validation_scores(tmp_path / "run" / "best.ckpt")
    assert all(name.startswith("network.") for name in stored["state_dict"])
    again = build(**stored[CARD]["network"])
    again.load_state_dict({k.removeprefix("network."): v for k, v in stored["state_dict"].items()})
    image = torch.randn(1, 2, 8, 8, 8)
    torch.testing.assert_close(again.eval()(image), run.module.network.eval()(image))


@pytest.mark.parametrize(
    ("ema", "compare", "first"), [(None, False, 2), (0.5, False, 2), (0.5, True, 1), (0.5, True, 2)]
)
def test_a_run_taken_up_again_ends_where_an_unbroken_one_does(train, tmp_path, ema, compare, first):
    averaging = {"ema": ema, "compare": compare}
    whole = train("whole", EPOCHS, **averaging)
    train("broken", first, **averaging)
    rest = train("broken", EPOCHS, resume=True, **averaging, seed=9)
    assert whole.numbers == list(range(EPOCHS * 2 * STEPS))
    assert rest.numbers == whole.numbers[first * 2 * STEPS :]
    assert rest.trainer.global_step == EPOCHS * STEPS
    assert_same(rest.diary.weights[-1], whole.diary.weights[-1])
    assert rest.diary.rates == pytest.approx(whole.diary.rates[first * STEPS :])
    first, second = (read(tmp_path / name / "last.ckpt") for name in ("whole", "broken"))
    for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(first[key], second[key])
    best = [validation_scores(tmp_path / name / "best.ckpt")["val/dice"] for name in ("whole", "broken")]
    assert best[0] == pytest.approx(best[1])


def test_the_schedule_steps_once_an_epoch(train):
    # nnU-Net's polynomial: lr (1 - epoch / epochs)^0.9, the same for all steps of an epoch.
    expected = [LR * (1 - epoch / EPOCHS) ** 0.9 for epoch in range(EPOCHS) for _ in range(STEPS)]
    assert train("run", EPOCHS).diary.rates == pytest.approx(expected)


def test_averaged_weights_are_what_is_validated_and_saved(train, tmp_path):
    run = train("run", 2, ema=0.5)
    average = run.diary.weights[0]
    for weights in run.diary.weights[1:]:
        average = {name: 0.5 * average[name] + 0.5 * value for name, value in weights.items()}
    assert_same(read(tmp_path / "run" / "last.ckpt")["state_dict"], average)
    assert any(not torch.allclose(average[name], value) for name, value in weights.items())
    # The validation that picks the best checkpoint has seen the averaged network.
    network = build(**NETWORK).eval()
    network.load_state_dict({k.removeprefix("network."): v for k, v in average.items()})
    (batch,) = run.trainer.val_dataloaders
    loss = DiceCELoss()(Predictor((8, 8, 8))(network, batch["image"]), batch["label"].long())
    assert float(run.trainer.callback_metrics["val/loss"]) == pytest.approx(loss.item(), rel=1e-4)


def test_own_and_averaged_weights_take_turns_and_the_best_is_what_was_validated(train, monkeypatch):
    ours: list[torch.Tensor] = []

    def watch(self: SegmentationModule) -> None:
        ours.append(next(self.network.parameters()).detach().clone())

    monkeypatch.setattr(SegmentationModule, "on_validation_epoch_start", watch, raising=False)
    run = train("compared", 2, ema=0.9, compare=True)
    last = read(run.trainer.checkpoint_callbacks[1].best_model_path)
    name = next(name for name, _ in run.module.named_parameters())
    # The last validation was the average's turn, and last.ckpt holds both.
    torch.testing.assert_close(ours[1], last["state_dict"][name], rtol=0, atol=0)
    assert not torch.equal(last["current_model_state"][name], last["state_dict"][name])
    best = read(run.trainer.checkpoint_callbacks[0].best_model_path)
    turn = int(best["epoch"])
    torch.testing.assert_close(best["state_dict"][name], ours[turn], rtol=0, atol=0)
    only_own = train("own", 1, ema=0.9, compare=True)
    best = read(only_own.trainer.checkpoint_callbacks[0].best_model_path)
    torch.testing.assert_close(best["state_dict"][name], ours[2], rtol=0, atol=0)
    assert "averaging_state" not in best


def test_voxels_outside_the_roi_count_as_missed():
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0, 0, :2] = 1
    truth[3, 3, :2] = 2
    batch = {"image": one_hot(truth), "label": torch.from_numpy(truth).long()}
    batch["voxels_outside_roi"] = torch.tensor([0.0, 4.0])
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    loader = DataLoader([batch], batch_size=1)
    scores = L.Trainer(accelerator="cpu", **silent).validate(echo(), [loader, loader], verbose=False)
    merged = {name: value for one in scores for name, value in one.items()}
    for where in ("val", "val_coarse"):
        assert merged[f"{where}/dice_GTVp"] == 1
        assert merged[f"{where}/dice_GTVn"] == pytest.approx(2 * 2 / (2 + 2 + 4))
        assert merged[f"{where}/dice"] == pytest.approx(0.75)
    assert not any(name.startswith("val_coarse/GTV") for name in merged)  # official scores: once
