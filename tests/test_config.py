"""The typed configuration: whatever conf/ ships is accepted, a bad value is refused with its dotted key."""

from dataclasses import fields
from itertools import product
from typing import Any

import pytest
from entry import ROOT

from hnseg.app import compose, read_grid
from hnseg.card import Decision, Normalise, Sampling, plain
from hnseg.config import Job, compose_job, read_inference
from hnseg.errors import HnsegError

PAIRS = {
    "localiser": ["stage=localiser", "model=plainconv"],
    "coarse": ["stage=coarse", "model=plainconv"],
    "fine": ["stage=fine", "model=resenc"],
    "segresnet": ["stage=fine", "model=segresnet"],
}
PLACES = ["cases=scans", "bundle=bundle", "out=out"]


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "experiment",
    [
        name if name == "none" else pytest.param(name, marks=pytest.mark.slow)
        for name in choices("experiment")
    ],
)
@pytest.mark.parametrize(("stage", "model"), list(product(choices("stage"), choices("model"))))
def test_every_choice_is_accepted(stage: str, model: str, experiment: str) -> None:
    """Each stage, model, scale and experiment with one another; the other groups take turns."""
    turn = choices("stage").index(stage) + 2 * choices("model").index(model)
    others = ("optimizer", "loss", "augment", "scan_augment", "recipe", "logger", "data", "trainer")
    for scale in choices("scale"):
        turn += 1
        turns = [f"{group}={choices(group)[turn % len(choices(group))]}" for group in others]
        pair = [f"stage={stage}", f"model={model}", f"scale={scale}", f"experiment={experiment}"]
        known = (ROOT / "conf" / "stage_model" / scale / f"{stage}_{model}.yaml").exists()
        if not known and experiment != "open_data":
            with pytest.raises(HnsegError, match=r"^training\.patch: a value is needed"):
                compose_job([*pair, *turns])
        else:
            job = compose_job([*pair, *turns, "training.ema=0.9"])
            assert (job.stage.name, job.model.name) == (stage, model)


# tests/test_configs.py builds those of the others.
@pytest.mark.parametrize("group", ["logger", "data", "trainer", "channels", "job"])
def test_every_option_is_accepted(group: str) -> None:
    for option in choices(group):
        compose_job([f"{group}={option}"])


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml")))
def test_the_first_job_of_every_sweep_is_accepted(sweep: str) -> None:
    first = [
        f"{key}={values.split(',')[0]}" for key, values in (text.split("=", 1) for text in read_grid(sweep))
    ]
    compose_job([f"sweeps={sweep}", *(text.replace("range(5)", "0") for text in first)])


@pytest.mark.parametrize("arm", choices("arms"))
@pytest.mark.parametrize("engine", choices("engine"))
def test_every_arm_and_engine_is_accepted(arm: str, engine: str) -> None:
    job = read_inference(compose([*PLACES, f"arms={arm}", f"engine={engine}"], "infer"))
    assert (job.arms.name, job.engine.name) == (arm, engine)


SWITCHES = (
    *("overwrite", "cte", "stage.antialias", "model.gating", "recipe.coordinates", "trainer.deterministic"),
    *("trainer.checkpointing", "trainer.compile", "logger.pictures"),
)
BAD_VALUES = [
    *(f"{key}=no" for key in SWITCHES),
    *(
        "+recipe.colour=red",
        "+colour=red",
        "~data.folds",
        "cte=null",
        "seed=-1",
        "seed=null",
    ),
    *("stage.placement=foo", "stage.size=[16,16]", "stage.size=[16,16,0]", "stage.spacing=[0,6,6]"),
    *("stage.classes=GTVp", "stage.classes=[]", "model.window.tiling=foo", "model.window.overlap=1"),
    *("model.normalise.ct=zscor", "model.settings=null", "training.patch=16", "training.patch=[16.5,16,16]"),
    *("training.patch=[160,160]", "training.epochs=0", "training.epochs=true", "training.batch_size=0"),
    *(
        "training.iterations=-1",
        "training.ema=1",
        "training.ema=abc",
        "trainer.threads=-1",
        "trainer.device=gpu",
    ),
    *("trainer.precision=fp16", "trainer.processes=two", "trainer.accumulate=0", "trainer.accumulate=1.5"),
    *("run_dir=null", "data.root=3.5", "data.folds=null", "data.split_seed=x", "data.exclude=HGJ-001"),
    *("data.workers=-1", "data.prepare_workers=0", "optimizer.clip=-1", "optimizer.schedule=null"),
    *(
        "augment.device=gpu",
        "augment.transforms=[]",
        "recipe.ct_window=[190,-110]",
        "recipe.ct_window=[-110]",
    ),
    *(
        "recipe.pet_upper=0",
        "recipe.roi.jitter_mm=abc",
        "recipe.coarse.margin_mm=-400",
        "recipe.head_truncation=2",
    ),
    *(
        "recipe.head_truncation=2",
        "recipe.pet=sum",
        "recipe.source=crop",
        "recipe.roi.train=corse",
        "recipe.enhance.ct=[cube]",
    ),
    *("recipe.decision.rule=max", "recipe.decision.min_component_ml=-1", "recipe.decision.node_suv_peak=low"),
    *("+recipe.decision.thresholds.GTV=0.3", "recipe.decision.thresholds={GTVp:2}", "fold=first", "fold=-1"),
    *("logger.kind=tensorbord", "+logger.mode=on", "logger.pictures_every=0"),
]


@pytest.mark.parametrize("override", BAD_VALUES)
def test_a_bad_value_is_refused_in_one_line_with_its_key(override: str) -> None:
    key = override.lstrip("+~").partition("=")[0]
    with pytest.raises(HnsegError) as refusal:
        compose_job(["logger=csv", override] if "logger" in key else [override])
    line = str(refusal.value)
    assert key.removeprefix("model.") in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("training.validate_every=4 training.epochs=3", ("training.validate_every=4", "training.epochs=3")),
        ("trainer.accumulate=3", ("trainer.accumulate=3", "training.batch_size=4")),
        ("recipe.checkpoint=compare", ("recipe.checkpoint=compare", "training.ema=null")),
        ("recipe.ct_window=null", ("recipe.ct_window=null", "cte=true")),
        ("recipe.ct_window=null recipe.source=head_crop cte=false", ("recipe.ct_window=null", "head crop")),
        ("recipe.enhance.pet=[square] recipe.pet=raw", ("recipe.enhance.pet", "stage=fine")),
    ],
)
def test_keys_that_do_not_go_together_are_named(override: str, keys: tuple[str, ...]) -> None:
    with pytest.raises(HnsegError) as refusal:
        compose_job(override.split())
    for key in keys:
        assert key in str(refusal.value)


def test_hu_are_accepted_where_a_network_wants_them_or_they_are_rescaled() -> None:
    compose_job(["recipe.ct_window=null", "cte=false"])
    compose_job(["recipe.ct_window=null", "recipe.roi_minmax=[fine]"])
    compose_job([*PAIRS["localiser"], "recipe.ct_window=null", "recipe.source=head_crop"])


@pytest.mark.parametrize(
    "override",
    [
        *(
            "last_stage=middle",
            "overwrite=no",
            "mirror=off",
            "format=nii",
            "windows=all",
            "trainer.threads=two",
        ),
        *("trainer.device=gpu", "trainer.precision=fp16", "decision.weights=2", "decision.rule=max"),
        *("decision.thresholds={GTV:0.5}", "arms.members=[{model:resenc}]", "+engine.name=dask"),
        *("cases=???", "+colour=red"),
    ],
)
def test_a_bad_value_of_infer_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(HnsegError) as refusal:
        read_inference(compose([*PLACES, override], "infer"))
    assert override.lstrip("+").partition("=")[0] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_rules_of_fine_masks_need_the_fine_stage() -> None:
    with pytest.raises(HnsegError, match=r"last_stage=coarse with decision\.node_suv_peak"):
        read_inference(compose([*PLACES, "last_stage=coarse", "decision.node_suv_peak=0"], "infer"))


def test_numbers_that_are_names_are_taken_as_text() -> None:
    data = compose_job(["data.root=2025", "data.cache=5", "data.exclude=[12]"]).data
    assert (str(data.root), str(data.cache), str(data.head_labels), data.exclude) == (
        "2025",
        "5",
        "2025/heads",
        ("12",),
    )


def test_a_stage_overrides_and_extends_the_mix() -> None:
    noise = "{_target_: hnseg.data.augment.RandomNoise, p: 1, std: [0, 1]}"
    job = compose_job(
        [f"+augment.stages.fine={{gamma: null, more: {noise}}}", "augment.transforms.noise.p=0"]
    )
    mix = job.augment.of("fine")
    assert list(job.augment.of("coarse")) == list(job.augment.transforms)
    assert list(mix) == [name for name in job.augment.transforms if name != "gamma"] + ["more"]
    assert mix["noise"].arguments["p"] == 0


def test_plain_settings_are_read_back_as_the_same() -> None:
    for recipe in choices("recipe"):
        job = compose_job([f"recipe={recipe}", "training.ema=0.9"])
        assert Job.model_validate(plain(job)) == job


# What the three recipes make of each stage.
SCHEMES = {
    ("paper", "localiser"): ["zscore"],
    ("paper", "coarse"): ["zscore", "zscore"],
    ("paper", "fine"): ["ct", "ct", "ct", "zscore"],
    ("paper", "segresnet"): ["range", "sigmoid"],
    ("authors", "localiser"): ["zscore"],
    ("authors", "coarse"): ["zscore", "zscore"],
    ("authors", "fine"): ["ct", "zscore"],  # the container's ResEnc has two channels
    ("authors", "segresnet"): ["range", "sigmoid"],
    ("best", "localiser"): ["cohort"],
    ("best", "coarse"): ["cohort", "cohort"],
    ("best", "fine"): ["cohort"] * 4,
    ("best", "segresnet"): ["cohort", "cohort"],
}


@pytest.mark.parametrize(("recipe", "pair"), SCHEMES)
def test_each_channel_is_normalised_as_the_recipe_has_it(recipe: str, pair: str) -> None:
    spec = compose_job([f"recipe={recipe}", *PAIRS[pair]]).input_spec
    assert [one.scheme for one in spec.normalise] == SCHEMES[recipe, pair]
    assert all(one == Normalise(one.scheme) for one in spec.normalise)


def test_paper_samples_the_study_and_windows_it() -> None:
    spec = compose_job(["recipe=paper"]).input_spec
    assert (spec.ct_window, spec.ct_range, spec.pet) == ((-110, 190), (-1, 1), "minmax")
    assert spec.sampling == Sampling("study", "air")
    assert spec.pad_to == (160, 160, 160)
    assert not spec.roi_minmax


@pytest.mark.parametrize("pair", PAIRS)
def test_authors_cut_from_the_head_crop_and_scale_the_fine_roi_twice(pair: str) -> None:
    job = compose_job(["recipe=authors", *PAIRS[pair]])
    spec = job.input_spec
    assert (spec.sampling.outside, spec.ct_range) == ("minus_one", (0, 1))
    if pair == "localiser":
        assert (job.placed_stage.lateral, spec.sampling.source) == ("corner", "study")
        assert spec.ct_window == (-105, 195)
    else:
        assert (spec.sampling.source, spec.sampling.ct_window) == ("head_crop", (-105, 195))
        assert (spec.ct_window, spec.pet) == (None, "raw")
    assert spec.roi_minmax is (pair in ("fine", "segresnet"))


def test_best_keeps_suv_an_absolute_scale() -> None:
    spec = compose_job(["recipe=best"]).input_spec
    assert (spec.pet, spec.roi_minmax, spec.sampling.source) == ("suv", False, "study")


def test_a_study_prepared_once_serves_every_window() -> None:
    windows = [
        compose_job([f"recipe.ct_window={window}"]).input_spec for window in ([-110, 190], [-160, 240])
    ]
    assert windows[0].ct_window != windows[1].ct_window
    assert windows[0].sampling == windows[1].sampling


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        (PAIRS["fine"], ["CT", "CT²", "CT^(1/3)", "PET"]),
        (PAIRS["segresnet"], ["CT", "PET"]),
        (["recipe=authors", *PAIRS["fine"]], ["CT", "PET"]),
        (["recipe=authors", *PAIRS["fine"], "cte=true"], ["CT", "CT²", "CT^(1/3)", "PET"]),
        (["channels=both_pet"], ["CT", "CT²", "CT^(1/3)", "PET", "PET²", "PET^(1/3)"]),
        (["cte=false", "recipe.coordinates=true"], ["CT", "PET", "x", "y", "z"]),
    ],
)
def test_enhancement_is_one_switch_that_follows_recipe_and_model(
    overrides: list[str], channels: list[str]
) -> None:
    assert compose_job(overrides).input_spec.channel_names == channels


def test_jitter_and_margin_are_of_the_stage_they_name() -> None:
    assert compose_job(["recipe=best", "training.ema=0.9"]).jitter_mm == 12
    assert compose_job(["recipe=best", "training.ema=0.9", *PAIRS["localiser"]]).jitter_mm == 0
    coarse = compose_job([*PAIRS["coarse"], "recipe.coarse.margin_mm=12", "recipe.coarse.jitter_mm=8"])
    assert (coarse.placed_stage.size, coarse.jitter_mm) == ((156, 156, 156), 8)


def test_a_roi_is_padded_to_its_patch_and_never_cut() -> None:
    assert compose_job(PAIRS["segresnet"]).input_spec.pad_to is None
    assert compose_job(PAIRS["localiser"]).input_spec.pad_to is None
    assert compose_job([*PAIRS["localiser"], "stage.size=[150,200,80]"]).input_spec.pad_to == (96, 200, 160)


LOSS = {
    ("paper", "fine"): (True, True, "nnunet"),
    ("authors", "fine"): (False, False, "nnunet"),
    ("authors", "localiser"): (False, False, "nnunet"),
    ("paper", "segresnet"): (True, True, "monai"),
    ("authors", "segresnet"): (True, True, "monai"),
    ("best", "fine"): (True, True, "nnunet"),
}


@pytest.mark.parametrize(("recipe", "pair"), LOSS)
def test_the_dice_term(recipe: str, pair: str) -> None:
    arguments = compose_job([f"recipe={recipe}", *PAIRS[pair], "training.ema=0.9"]).loss.arguments
    loss = arguments["loss"]
    assert (loss["squared"], loss["background"], arguments["weights"]) == LOSS[recipe, pair]


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["model=segresnet", "optimizer=nnunet"], "optimizer.step.lr", 0.01),  # the model brings AdamW
        (["model=segresnet", "loss=dice_ce"], "loss.weights", "nnunet"),
        (["recipe=authors", "loss=dice_ce"], "loss.loss.squared", True),
        (["scale=demo", "optimizer=nnunet"], "optimizer.step.momentum", 0.99),  # the scale brings `short`
        (["scale=demo", "augment=none"], "augment.transforms", {}),
        (["experiment=demo", "scale=full"], "training.epochs", 1000),  # the experiment brings scale=demo
        (["experiment=demo", "training.epochs=3"], "training.epochs", 3),
        (["experiment=demo", "stage.spacing=[4,4,4]"], "stage.spacing", [4, 4, 4]),
        (["experiment=open_data", "data=hecktor"], "data.split", None),
        (["model=resenc", "cte=false"], "arm", "fine_resenc"),
        (["model=resenc"], "arm", "fine_resenc_cte"),
        (["model=segresnet", "cte=true"], "arm", "fine_segresnet_cte"),
        ([*PAIRS["coarse"], "fold=all"], "run_dir", "runs/hecktor/coarse_plainconv/fold_all"),
    ],
)
def test_the_command_line_has_the_last_word(overrides: list[str], key: str, value: Any) -> None:
    found = plain(compose_job(overrides))
    for part in key.split("."):
        found = found[part]
    assert found == value


def test_decisions_of_a_call_are_those_of_a_bundle() -> None:
    rules = read_inference(compose(PLACES, "infer")).decision
    assert set(type(rules).model_fields) == {field.name for field in fields(Decision)} - {"mirror"}
    assert rules.given == {}
