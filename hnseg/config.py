"""Every setting of hnseg train and infer with its type, range and unit, checked before anything is loaded.

`read_job` and `read_inference` turn what Hydra composed from conf/ into these classes, and refuse in one line
the first value that does not fit. Below the entry points a setting is an attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    model_validator,
)

from hnseg.app import compose, explain
from hnseg.card import (
    Amount,
    Bounds,
    Card,
    Count,
    Decision,
    Fraction,
    InputSpec,
    LesionClass,
    Name,
    Normalise,
    Outside,
    PetRule,
    Positive,
    Power,
    Probability,
    Sampling,
    Scheme,
    Shape,
    Source,
    Stage,
    StageName,
    Window,
    Written,
    plain,
)
from hnseg.errors import HnsegError

Location = Annotated[Path, Written, BeforeValidator(lambda value: value or None)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # what NumPy takes
Roi = Literal["ground_truth", "coarse"]
T = TypeVar("T", bound=BaseModel)


class Settings(BaseModel):
    """Keys of conf/: others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Node(BaseModel):
    """A class of any library (`_target_`) and the arguments for its constructor, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    target: Name = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """Those for the constructor."""
        return {key: value for key, value in (self.model_extra or {}).items() if not key.startswith("_")}


class Schemes(Settings):
    """Normalisation of all channels of a modality."""

    ct: Scheme
    pet: Scheme


class Model(Settings):
    """A network, and what its makers' framework does with its input."""

    name: Name
    cte: StrictBool  # default of the job's
    normalise: Schemes  # default of the recipe's
    window: Window
    gating: StrictBool  # learn a weight for each input channel, logged as gate/CHANNEL
    settings: Node  # the network


class Training(Settings):
    """Length and batches of a training."""

    patch: Shape  # voxels (z, y, x)
    batch_size: Count  # patches
    epochs: Count
    iterations: Count | None  # of an epoch; null is one pass over the training cases
    validate_every: Count  # epochs
    ema: Fraction | None  # decay of averaged weights


class Machine(Settings):
    """Where networks run."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16", "float16"]  # auto is bfloat16 where the hardware has it
    threads: Count | None  # of the CPU; null is all cores


class Trainer(Machine):
    """Where and how a network is trained."""

    deterministic: StrictBool
    processes: Count | Literal["auto"]  # that train together; auto is one on each GPU
    accumulate: Count  # parts a batch is worked on in, one after another
    checkpointing: StrictBool  # compute activations twice instead of keeping them
    compile: StrictBool  # torch.compile


class Data(Settings):
    """The cohort, its folds, and where prepared volumes are kept."""

    root: Location | None  # a folder in the HECKTOR layout, or a CSV
    head_labels: Location  # head masks CASE.nii.gz, drawn or corrected
    head_masks: Location | None  # head masks of every case by hnseg infer; null takes head_labels
    coarse: Location | None  # out-of-fold coarse predictions CASE.nii.gz, which place the fine ROI
    cache: Location
    exclude: tuple[Name, ...]  # case ids
    folds: Count
    split: Name | None  # null draws folds, `centres`, or a file of folds
    split_seed: Seed
    workers: Annotated[int, Field(strict=True, ge=0)] | Literal["auto"]  # loader processes
    prepare_workers: Count | None  # processes; null is all cores


class Powers(Settings):
    """What enhancement adds to each modality, on [0, 1]."""

    ct: tuple[Power, ...]
    pet: tuple[Power, ...]


class FineRoi(Settings):
    """What places the fine ROI."""

    train: Roi
    validation: Roi  # whose score chooses the checkpoint
    jitter_mm: Amount  # random shift in training, at most, along each axis


class CoarseRoi(Settings):
    """The ROI below the head."""

    margin_mm: Amount  # added on every side
    jitter_mm: Amount  # random shift in training, at most, along each axis


class Recipe(Settings):
    """Everything that paper and release disagree on (conf/recipe)."""

    name: Name
    ct_window: Bounds | None  # HU
    ct_range: Bounds  # what the window becomes, each enhanced channel after its power
    cte: StrictBool
    enhance: Powers
    coordinates: StrictBool  # add where each voxel lies in the ROI: x, y, z
    pet: PetRule
    pet_upper: Positive  # SUV; read under pet=suv alone
    roi_minmax: tuple[StageName, ...]  # stages whose ROI is scaled by its extremes, CT too
    normalise: Schemes
    source: Source  # what ROIs are cut from
    outside: Outside  # what lies beyond the scan
    head_crop: Literal["body", "corner"]  # in x and y
    roi: FineRoi
    coarse: CoarseRoi
    head_truncation: Probability  # of the localiser's samples, those that lose part of the head
    checkpoint: Literal["best", "compare"]
    ema: Fraction | None
    decision: Decision

    @model_validator(mode="after")
    def _bounds_rise(self) -> Self:
        for name in ("ct_window", "ct_range"):
            if (pair := getattr(self, name)) and not pair[0] < pair[1]:
                raise ValueError(f"{name}={list(pair)}: give [LOWER,UPPER]")
        return self


class Optimizer(Settings):
    """Steps on the weights."""

    step: Node  # parameters → torch.optim.Optimizer
    schedule: Node  # optimizer → schedule, stepped once an epoch
    clip: Amount | None  # of the gradient's norm


class Augment(Settings):
    """What is done to patches in training."""

    device: Literal["cpu", "cuda"]  # cuda augments on the GPU that trains, not in the loaders
    transforms: dict[Name, Node | None]  # in their order; null leaves one out
    stages: dict[StageName, dict[Name, Node | None]]  # for one stage alone: in their place, or more

    def of(self, stage: str) -> dict[str, Node]:
        """The transforms of a stage, by name."""
        mix = self.transforms | self.stages.get(stage, {})  # type: ignore[call-overload]
        return {name: node for name, node in mix.items() if node is not None}


class LoggerSettings(Settings):
    """What is logged beside metrics.csv. These are patients' scans: nothing leaves the machine unasked."""

    kind: Literal["wandb", "tensorboard", "csv"]
    mode: Literal["offline", "online"] = "offline"  # of W&B
    project: Name = "hnseg"  # of W&B
    pictures: StrictBool | None = None  # of validation cases; null paints them where they stay on the machine
    pictures_every: Count = 25  # epochs

    @property
    def paints(self) -> bool:
        """Whether validation cases are painted."""
        return self.mode == "offline" if self.pictures is None else self.pictures


class Job(Settings):
    """One training: one stage x one model x one fold."""

    stage: Stage
    model: Model
    training: Training
    trainer: Trainer
    data: Data
    recipe: Recipe
    loss: Node
    optimizer: Optimizer
    augment: Augment
    scan_augment: dict[Name, Node]  # what is done to scans before they become channels
    logger: LoggerSettings
    fold: Annotated[int, Field(strict=True, ge=0)] | Literal["all"]
    seed: Seed
    cte: StrictBool  # CT enhancement
    name: Name  # runs of one name belong together
    runs: Location
    arm: Name
    arm_suffix: dict[Literal["True", "False"], str]  # of `arm`, by `cte`
    run_dir: Location
    init_from: Location | None  # weights to begin with
    overwrite: StrictBool
    variables: dict[Name, Any] = Field(default_factory=dict)  # a sweep's own, for other keys to refer to

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        training, parts = self.training, self.trainer.accumulate
        if training.validate_every > training.epochs:
            raise ValueError(
                f"training.validate_every={training.validate_every} with training.epochs={training.epochs} "
                "validates never; lower it"
            )
        if training.batch_size % parts:
            raise ValueError(
                f"trainer.accumulate={parts} with training.batch_size={training.batch_size}: give a number "
                "that divides it"
            )
        if self.recipe.checkpoint == "compare" and training.ema is None:
            raise ValueError(
                "recipe.checkpoint=compare with training.ema=null: no averaged weights to compare; set "
                "training.ema=0.999, or recipe.checkpoint=best"
            )
        return self

    @model_validator(mode="after")
    def _powers_of_fractions(self) -> Self:
        """Powers are of [0, 1], and the head crop is windowed."""
        recipe, stage = self.recipe, self.stage.name
        rescaled = stage in recipe.roi_minmax
        raw_pet = recipe.source == "head_crop" or recipe.pet == "raw"
        if self.cte and recipe.enhance.pet and raw_pet and stage != "localiser" and not rescaled:
            raise ValueError(
                f"recipe.enhance.pet={list(recipe.enhance.pet)}: PET is not in [0, 1] in stage={stage}; set "
                "recipe.enhance.pet=[]"
            )
        if recipe.ct_window is None and stage != "localiser" and recipe.source == "head_crop":
            raise ValueError(
                "recipe.ct_window=null: the head crop is windowed; set recipe.source=study for HU"
            )
        if recipe.ct_window is None and self.cte and not rescaled:
            raise ValueError(
                "recipe.ct_window=null with cte=true: the powers are of CT in [0, 1], not of HU; set a "
                "window, or cte=false"
            )
        return self

    @property
    def placed_stage(self) -> Stage:
        """The stage placed as the recipe has it: the head crop's corner, the coarse ROI's margin."""
        if self.stage.name == "localiser":
            return replace(self.stage, lateral=self.recipe.head_crop)
        return self.stage.widened(self.recipe.coarse.margin_mm if self.stage.name == "coarse" else 0.0)

    @property
    def jitter_mm(self) -> float:
        """How far the stage's ROI is shifted at random in training, along each axis."""
        recipe = self.recipe
        jitter = {"lesions": recipe.roi.jitter_mm, "below_head": recipe.coarse.jitter_mm}
        return jitter.get(self.stage.placement, 0.0)

    @property
    def input_spec(self) -> InputSpec:
        """The input chain of stage and model under the recipe, without the constants of a training fold."""
        recipe, stage = self.recipe, self.placed_stage
        # The localiser's own grid is the head crop: it is sampled from the study.
        source: Source = "study" if stage.name == "localiser" else recipe.source
        sampling = Sampling(source, recipe.outside)
        # The window belongs to it only where it is used, so that studies prepared once serve every window.
        if source == "head_crop" and recipe.ct_window:
            sampling = replace(sampling, ct_window=recipe.ct_window)
        z, y, x = (max(p, n) for p, n in zip(self.training.patch, stage.shape, strict=True))
        spec = InputSpec(
            modalities=("ct",) if stage.name == "localiser" else ("ct", "pet"),
            sampling=sampling,
            ct_window=recipe.ct_window if source == "study" else None,
            ct_range=recipe.ct_range,
            cte=self.cte,
            pet=recipe.pet if source == "study" else "raw",
            pet_upper=recipe.pet_upper,
            roi_minmax=stage.name in recipe.roi_minmax,
            pad_to=None if (z, y, x) == stage.shape else (z, y, x),
            ct_powers=recipe.enhance.ct,
            pet_powers=recipe.enhance.pet,
            coordinates=recipe.coordinates,
        )
        schemes = {"ct": recipe.normalise.ct, "pet": recipe.normalise.pet}
        return replace(spec, normalise=tuple(Normalise(schemes[name]) for name, _ in spec.intensities))

    def card(self, spec: InputSpec, **provenance: Any) -> Card:
        """What a checkpoint must say for its network to be run.

        Args:
            spec: The input chain with its constants.
            provenance: Where the network comes from: split, trained_on, fingerprint.
        """
        channels = {"in_channels": spec.channels, "out_channels": len(self.stage.classes) + 1}
        gate = {"gate": True} if self.model.gating else {}
        return Card(
            name=f"{self.arm}_fold_{self.fold}",
            model=self.model.name,
            fold=self.fold,
            stage=self.placed_stage,
            input=spec,
            network={**channels, **gate, **plain(self.model.settings)},
            patch=self.training.patch,
            window=self.model.window,
            recipe=self.recipe.name,
            decision=self.recipe.decision,
            **provenance,
        )


class MemberKind(Settings):
    """Members of a bundle that belong to an arm: those of one model, with or without enhancement."""

    model: Name
    cte: StrictBool


class Arm(Settings):
    """An arm of the ablation: which fine members of a bundle run."""

    name: Name
    members: tuple[MemberKind, ...] | None  # null is all


class Engine(Settings):
    """What runs the networks."""

    name: Literal["local", "ray"]  # this process, or a Ray cluster
    workers: Count | None = None  # Ray actors; null is one a GPU, or on CPUs one a node
    address: Name = "local"  # of the Ray cluster


class Rules(Settings):
    """Decision rules for one call; null is as the bundle says. See `Decision`."""

    fusion: Literal["flat", "authors"] | None
    weights: dict[str, Amount] | None
    rule: Literal["half", "argmax"] | None
    thresholds: dict[LesionClass, Probability] | None
    resample_output: Literal["probabilities", "labels"] | None
    min_component_ml: Amount | dict[LesionClass, Amount] | None
    node_suv_peak: Amount | None
    roi_cover: Literal["single", "multiple"] | None
    fallback: Literal["chain", "fail"] | None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are not null."""
        return self.model_dump(exclude_none=True)


class Inference(Settings):
    """One call of hnseg infer."""

    cases: Location | None  # a folder in the HECKTOR layout, or a CSV
    ct: Location | None  # or one case's files
    pet: Location | None
    case_id: Name | None  # of that case; null takes it from the CT's file name
    bundle: Location
    out: Location
    format: Literal["nii.gz", "mha"]  # of masks and maps
    overwrite: StrictBool
    shard: Name | None  # K/N: the K-th of N parts of the cases, from 0
    last_stage: StageName
    out_of_fold: StrictBool  # segment each case with the members that were not trained on it
    head_masks: Location | None  # folder of CASE.nii.gz that stand for the localiser
    windows: Literal["trained", "whole"]  # whole shows each ROI in one piece
    backend: Literal["auto", "openvino", "torch"]
    mirror: StrictBool | None
    probabilities: StrictBool
    uncertainty: StrictBool
    arms: Arm
    engine: Engine
    trainer: Machine
    decision: Rules

    @model_validator(mode="after")
    def _names_cases(self) -> Self:
        """A list of cases or one case."""
        given = {"cases": self.cases, "ct": self.ct, "pet": self.pet}
        if {key for key, path in given.items() if path is not None} not in ({"cases"}, {"ct", "pet"}):
            raise ValueError("cases: give cases=PATH, or ct=FILE and pet=FILE of one case")
        return self

    @model_validator(mode="after")
    def _rules_take_effect(self) -> Self:
        """The labels of an earlier stage are what would place the next ROI; only fine masks are decided."""
        unused = [
            f"decision.{key}" for key in self.decision.given if key not in ("fusion", "weights", "fallback")
        ]
        if unused and self.last_stage != "fine":
            raise ValueError(
                f"last_stage={self.last_stage} with {' '.join(unused)}: only the fine stage's masks are "
                "decided by it; leave it out, or set last_stage=fine"
            )
        return self


def read_job(composed: DictConfig) -> Job:
    """The configuration of one training.

    Raises:
        HnsegError: The first key that is not what it may be, or does not fit the others.
    """
    return _read(Job, composed)


def compose_job(overrides: Sequence[str]) -> Job:
    """What hnseg train would run with."""
    return read_job(compose(overrides))


def read_inference(composed: DictConfig) -> Inference:
    """The configuration of one call of hnseg infer, refused as `read_job` refuses."""
    return _read(Inference, composed)


def _read(kind: type[T], composed: DictConfig) -> T:
    try:
        return kind.model_validate(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
    except (ValidationError, OmegaConfBaseException) as error:
        raise HnsegError(explain(error)) from error


@contextmanager
def building(key: str) -> Iterator[None]:
    """Says in one line what a class refuses of the arguments at a key; decorates functions too.

    Raises:
        HnsegError: In the class's words.
    """
    try:
        yield
    except (InstantiationException, TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(reason, HnsegError):
            raise reason from error
        text = explain(reason) if isinstance(reason, ValidationError) else str(reason or error)
        words = " ".join((text or "").split()) or type(reason).__name__
        raise HnsegError(f"{key} cannot be built: {words}; check its entries") from error


def build(node: Node, key: str) -> Any:
    """Builds the node at a key, or where it is a `_partial_`, a function that does, as `building` has it."""
    with building(key):
        made = instantiate(node.model_dump(by_alias=True), _convert_="all")
    return building(key)(made) if isinstance(made, partial) else made
