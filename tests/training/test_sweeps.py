"""The sweep files: what they train, that nothing is trained twice, and the same grids for W&B."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import yaml
from entry import ROOT, hnseg, refused
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hnseg.config import compose_job
from hnseg.errors import HnsegError
from hnseg.training.sweeps import wandb_sweep

SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))


def job(*overrides: str) -> DictConfig:
    """A job as Hydra runs it, which knows Hydra's own choices."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def grid(sweep: str) -> list[list[str]]:
    """Every job of a sweep for its first fold, as overrides."""
    compose_job([])  # which makes the sweeps known to Hydra
    values = hydras_grid(sweep) | {"fold": ["0"]}
    jobs = product(*values.values())
    return [[f"{key}={value}" for key, value in zip(values, row, strict=True)] for row in jobs]


def hydras_grid(sweep: str) -> dict[str, list[str]]:
    """The grid as Hydra's sweeper reads it from the file, ranges of folds spelt out by hand."""
    params = yaml.safe_load((ROOT / "sweeps" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert params.pop("fold") == "range(5)"
    return {key: value.split(",") for key, value in params.items()} | {"fold": list("01234")}


def test_the_ablation_is_what_tables_5_and_6_and_the_cascade_need() -> None:
    trained = {}
    for overrides in grid("ablation"):
        cfg = job("sweeps=ablation", *overrides)
        trained[cfg.arm] = (cfg.stage.name, cfg.model.name, cfg.cte)
    assert trained == {
        "localiser_plainconv": ("localiser", "plainconv", False),
        "coarse_plainconv": ("coarse", "plainconv", False),
        "fine_resenc": ("fine", "resenc", False),
        "fine_resenc_cte": ("fine", "resenc", True),
        "fine_segresnet": ("fine", "segresnet", False),
        "fine_segresnet_cte": ("fine", "segresnet", True),
    }


@pytest.mark.parametrize(
    "experiment", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("demo", "reproduce"))]
)
@pytest.mark.parametrize("sweep", SWEEPS)
def test_no_two_jobs_of_a_sweep_share_a_run_folder(sweep: str, experiment: str) -> None:
    jobs = grid(sweep)
    folders = {job(f"sweeps={sweep}", f"experiment={experiment}", *overrides).run_dir for overrides in jobs}
    assert len(folders) == len(jobs)


def test_the_channels_sweep_shows_the_network_what_it_says() -> None:
    jobs = [compose_job(["sweeps=channels", "model=segresnet", *overrides]) for overrides in grid("channels")]
    assert [" ".join(job.input_spec.channel_names) for job in jobs] == [
        "CT PET",
        "CT CT² PET",
        "CT CT^(1/3) PET",
        "CT CT² CT^(1/3) PET",
        "CT CT² CT^(1/3) PET PET² PET^(1/3)",
    ]


def test_the_sweep_over_class_weights_weighs_gtvn() -> None:
    weights = [job("sweeps=class_weights", *one).loss.loss.class_weights for one in grid("class_weights")]
    assert weights == [[1, 1, gtvn] for gtvn in (0.5, 1, 2, 4)]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_wandb_has_the_grid_that_hydra_has(sweep: str) -> None:
    made = wandb_sweep(sweep)
    shown = {key: [str(value) for value in one["values"]] for key, one in made["parameters"].items()}
    assert shown == hydras_grid(sweep)
    assert made["method"] == "grid"


def agents_commands(path: Path) -> Sequence[str]:
    """The command of the sweep's first job, put together by W&B's own code."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    config = utils.load_sweep_config(str(path))
    first = {key: {"value": one["values"][0]} for key, one in config["parameters"].items()}
    variables = utils.create_sweep_command_args({"args": first})
    variables |= {"env": ["/usr/bin/env"]}
    command = []
    for chunk in utils.create_sweep_command(config["command"]):
        name = chunk.removeprefix("${").removesuffix("}")
        command += variables[name] if chunk.startswith("${") else [chunk]
    return command


@pytest.mark.slow
def test_wandbs_agent_runs_the_sweeps_job(tmp_path: Path) -> None:
    made = hnseg("sweep", "loss", "job=segresnet", "fold=1,2", "logger.mode=online", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    (tmp_path / "sweep.yaml").write_text(made.stdout)
    env, hnseg_, train, *overrides = agents_commands(tmp_path / "sweep.yaml")
    assert (env, hnseg_, train) == ("/usr/bin/env", "hnseg", "train")
    compose_job([])
    cfg = job(*overrides)
    assert cfg.run_dir == "runs/loss/fine_segresnet_dice_ce/fold_1"
    assert cfg.hydra.mode.name == "RUN"  # one job a call: the agent is the sweeper
    assert cfg.logger.mode == "online"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainings.epochs=3"], "trainings"),
        (["fold=4-0"], "backwards"),
    ],
)
def test_a_wandb_sweep_whose_jobs_would_all_fail_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(HnsegError, match=message):
        wandb_sweep("folds", overrides)


def test_a_typo_in_a_sweeps_name_is_one_line(tmp_path: Path) -> None:
    line = refused(hnseg("sweep", "ablaton", cwd=tmp_path))
    assert "sweeps/ablaton" in line
    assert "ablation" in line
