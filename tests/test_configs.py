"""Every choice composes and builds, the supported pairs train, and the paper's numbers are in their place."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from entry import ROOT, compose_job, load, tiny, write_cohort
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from hnseg.errors import HnsegError
from hnseg.imaging.stage import Stage
from hnseg.models.nets import build
from hnseg.preflight import check_patch

PAIRS = [
    ("head", "plainconv"),
    ("coarse", "plainconv"),
    ("fine", "resenc"),
    ("fine", "segresnet"),
    ("fine", "plainconv"),
]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def assert_builds(cfg: DictConfig) -> None:
    """Everything the configuration names can be made of it; networks without memory for their weights."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    stage = Stage.from_dict(config["stage"])
    with torch.device("meta"):
        build(in_channels=2, out_channels=len(stage.classes) + 1, **config["model"]["settings"])
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = instantiate(cfg.optimizer.schedule)(instantiate(cfg.optimizer.step)([parameter]))
    assert schedule.get_last_lr()[0] >= 0
    loss = instantiate(cfg.loss)(
        [torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 2, 2, 2)], torch.zeros(1, 4, 4, 4).long()
    )
    assert torch.isfinite(loss)
    instantiate(cfg.augment)
    for transform in cfg.scan_augment.values():
        instantiate(transform)


@pytest.mark.parametrize("experiment", choices("experiment"))
@pytest.mark.parametrize(("stage", "model"), list(product(choices("stage"), choices("model"))))
def test_every_choice_composes(stage: str, model: str, experiment: str) -> None:
    """Each stage, model, scale and experiment with one another; the other groups take turns."""
    turn = choices("stage").index(stage) + 2 * choices("model").index(model)
    others = ("optimizer", "loss", "augment", "scan_augment", "recipe", "logger", "data", "trainer")
    for scale in choices("scale"):
        turn += 1
        turns = [f"{group}={choices(group)[turn % len(choices(group))]}" for group in others]
        cfg = compose_job(
            "train", f"stage={stage}", f"model={model}", f"scale={scale}", f"experiment={experiment}", *turns
        )
        assert (cfg.stage.name, cfg.model.name) == (stage, model)
        if OmegaConf.is_missing(cfg.training, "patch"):
            with pytest.raises(HnsegError, match=f"stage={stage} model={model}"):
                check_patch(None, cfg.model, cfg.stage.name)
        elif experiment != "open_data" or model == "plainconv":  # that experiment sizes one network
            check_patch(cfg.training.patch, cfg.model, cfg.stage.name)
            assert_builds(cfg)


@pytest.mark.parametrize(
    "group", ["optimizer", "loss", "augment", "recipe", "logger", "data", "trainer", "channels"]
)
def test_every_option_builds_for_every_supported_pair(group: str) -> None:
    for n, option in enumerate(choices(group)):
        stage, model = PAIRS[n % len(PAIRS)]
        assert_builds(compose_job("train", f"stage={stage}", f"model={model}", f"{group}={option}"))


@pytest.mark.parametrize(("stage", "model"), PAIRS)
def test_supported_pairs_are_complete_at_full_scale(stage: str, model: str) -> None:
    cfg = compose_job("train", f"stage={stage}", f"model={model}")
    assert not OmegaConf.missing_keys(cfg)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "scans")


@pytest.mark.parametrize(("n", "stage", "model"), [(n, *pair) for n, pair in enumerate(PAIRS)])
def test_supported_pairs_train(cohort: Path, tmp_path: Path, n: int, stage: str, model: str) -> None:
    """One step and one validation each, the other groups taking turns."""
    groups = ("optimizer", "loss", "augment", "recipe")
    turns = [f"{group}={choices(group)[n % len(choices(group))]}" for group in groups]
    ema = f"training.ema={['null', 0.9, 0.9][n % 3]}"
    cfg = compose_job("train", f"stage={stage}", *tiny(model, cohort, tmp_path), *turns, ema, "logger=csv")
    dice = load("train").main(cfg)
    assert 0 <= dice <= 1
    assert (Path(cfg.run_dir) / "best.ckpt").exists()


# Paper Tables 1 to 4, with what the authors' released configuration adds.
PAPER = {
    ("head", "plainconv"): {
        "stage.size": [256, 256, 128],
        "stage.spacing": [2, 2, 3],
        "stage.classes": ["head"],
        "training": {"patch": [96, 160, 160], "batch_size": 2, "epochs": 500, "iterations": 250},
        "model.settings.features": [32, 64, 128, 256, 320, 320],
        "model.settings.strides": [1, 2, 2, 2, 2, [1, 2, 2]],
        "model.settings.convolutions": 2,
        "model.settings.decoder_convolutions": 2,
        "cte": False,
    },
    ("coarse", "plainconv"): {
        "stage.size": [144] * 3,
        "stage.spacing": [2] * 3,
        "stage.top": 0.7,
        "training": {"patch": [128] * 3, "batch_size": 2, "epochs": 1000, "iterations": 250},
        "model.settings.features": [32, 64, 128, 256, 320, 320],
        "model.settings.strides": [1, 2, 2, 2, 2, 2],
        "cte": False,
    },
    ("fine", "resenc"): {
        "stage.size": [144] * 3,
        "stage.spacing": [1] * 3,
        "training": {"patch": [160] * 3, "batch_size": 4, "epochs": 1000, "iterations": 250},
        "model.settings.features": [32, 64, 128, 256, 320, 320],
        "model.settings.strides": [1, 2, 2, 2, 2, 2],
        "model.settings.blocks": [1, 3, 4, 6, 6, 6],
        "model.settings.decoder_convolutions": 1,
        "cte": True,
        "optimizer.step": {
            "_target_": "torch.optim.SGD",
            "lr": 0.01,
            "momentum": 0.99,
            "nesterov": True,
            "weight_decay": 3e-5,
        },
        "optimizer.schedule": {
            "_target_": "torch.optim.lr_scheduler.PolynomialLR",
            "power": 0.9,
            "total_iters": 1000,
        },
        "optimizer.clip": 12,
        "loss.weights": "nnunet",
        "loss.loss": {"squared": True, "background": True},
    },
    ("fine", "segresnet"): {
        "stage.size": [144] * 3,
        "stage.spacing": [1] * 3,
        "training": {"patch": [144] * 3, "batch_size": 1, "epochs": 300, "iterations": None},
        "model.settings": {"init_filters": 32, "blocks_down": [1, 2, 2, 4, 4], "depths": 4},
        "cte": False,
        "optimizer.step": {"_target_": "torch.optim.AdamW", "lr": 2e-4, "weight_decay": 1e-5},
        "optimizer.schedule": {"warmup_steps": 3, "warmup_multiplier": 0.1, "t_total": 300},
        "optimizer.clip": None,
        "loss.weights": "monai",
        "loss.loss": {"squared": True, "background": True, "smooth_top": 0, "smooth_bottom": 1e-5},
    },
}


@pytest.mark.parametrize(("stage", "model"), PAPER)
def test_full_scale_is_the_papers(stage: str, model: str) -> None:
    cfg = compose_job("train", f"stage={stage}", f"model={model}")
    for key, expected in PAPER[stage, model].items():
        value = OmegaConf.select(cfg, key, throw_on_missing=True)
        if isinstance(expected, dict):
            value = {name: value[name] for name in expected}
        plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        assert plain == expected, key
    assert cfg.recipe.name == "paper"
    assert list(cfg.recipe.ct_window) == [-110, 190]
    assert cfg.data.folds == 5


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["model=segresnet", "optimizer=nnunet"], "optimizer.step.lr", 0.01),  # the model brings AdamW
        (["model=segresnet", "loss=dice_ce"], "loss.weights", "nnunet"),
        (["scale=demo", "optimizer=nnunet"], "optimizer.step.momentum", 0.99),  # the scale brings `short`
        (["scale=demo", "augment=none"], "augment.transforms", []),
        (["experiment=demo", "scale=full"], "training.epochs", 1000),  # the experiment brings scale=demo
        (["experiment=demo", "training.epochs=3"], "training.epochs", 3),
        (["experiment=demo", "stage.spacing=[4,4,4]"], "stage.spacing", [4, 4, 4]),
        (["experiment=open_data", "data=hecktor"], "data.split", None),
        (["model=resenc", "cte=false"], "arm", "fine_resenc"),
        (["model=resenc"], "arm", "fine_resenc_cte"),
        (["model=segresnet", "cte=true"], "arm", "fine_segresnet_cte"),
        (
            ["stage=coarse", "model=plainconv", "fold=all"],
            "run_dir",
            "runs/hecktor/coarse_plainconv/fold_all",
        ),
    ],
)
def test_the_command_line_has_the_last_word(overrides: list[str], key: str, value: object) -> None:
    assert OmegaConf.select(compose_job("train", *overrides), key) == value


def test_every_sweep_file_names_keys_that_exist() -> None:
    for path in (ROOT / "sweeps").glob("*.yaml"):
        sweep = OmegaConf.load(path)
        params = sweep.pop("hydra").sweeper.params
        known = OmegaConf.merge(
            OmegaConf.to_container(compose_job("train")), sweep
        )  # which may bring its own
        for key in params:
            group, _, name = key.lstrip("+").rpartition(".")
            node = OmegaConf.select(known, group) if group else known
            assert name in node or (ROOT / "conf" / key).is_dir(), f"{path.name}: {key}"


def test_infer_composes() -> None:
    assert OmegaConf.missing_keys(compose_job("infer")) == {"cases", "bundle", "out"}
