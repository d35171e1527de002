"""What bfloat16 costs over the whole cascade, whose earlier stages it moves: masks beside float32's."""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
from fabricate import volume
from members import card, make_cascade
from scipy import ndimage
from torch import Tensor

from hnseg.card import STUDY, Card, InputSpec, Stage
from hnseg.data.intensity import input_transform
from hnseg.data.resample import sample_images, sample_label
from hnseg.imaging import placement
from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import place_grid
from hnseg.inference.backends import make_networks
from hnseg.inference.cascade import Cascade
from hnseg.models import nets
from hnseg.models.bundle import Bundle, write_bundle
from hnseg.models.losses import DiceCELoss

pytestmark = [pytest.mark.slow, pytest.mark.openvino]

CPU = torch.device("cpu")
SHAPE, SPACING = (76, 60, 60), 4.0  # z, y, x: 304 x 240 x 240 mm
NETWORK = {"features": [8, 16, 32], "strides": [1, 2, 2], "convolutions": 1, "decoder_convolutions": 1}
# Windows and scales that show what there is to learn, so that it is learnt soon.
LESIONS = {"ct_window": [0.0, 200.0], "pet_upper": 10.0, "normalise": [{"scheme": "zscore"}] * 2}
RULES = {"rule": "argmax", "min_component_ml": 0.1, "mirror": False, "roi_cover": "multiple"}
STEPS = {"localiser": 60, "coarse": 150, "fine": 150}
SCANS, CASES = 30, 24


def ball(centre: np.ndarray, radius: float) -> np.ndarray:
    """Voxels within `radius` mm of a point (z, y, x) in mm."""
    axes = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    return sum((SPACING * a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2


def patient(seed: int) -> dict[str, sitk.Image]:
    """CT, PET, head and lesions: a tumour in the neck's middle, one or two nodes beside it, noise on all."""
    rng = np.random.default_rng(seed)
    middle = np.array((220.0, 120.0, 120.0)) + rng.uniform(-12, 12, 3)
    head = ball(middle, 70)
    z, y, x = np.ogrid[tuple(slice(0, n) for n in SHAPE)]
    neck = (SPACING * z < middle[0]) & (np.hypot(SPACING * y - middle[1], SPACING * x - middle[2]) < 62)
    lesions = np.zeros(SHAPE, np.uint8)
    for side in rng.permutation([-1, 1])[: rng.integers(1, 3)]:
        beside = np.array((rng.uniform(-120, -80), rng.uniform(-15, 15), side * rng.uniform(34, 42)))
        lesions[ball(middle + beside, rng.uniform(9, 16))] = 2
    below = rng.uniform((-110, -10, -10), (-80, 10, 10))
    lesions[ball(middle + below, rng.uniform(11, 18))] = 1
    hu = np.where(head | neck, 40.0, -1000.0) + 100 * (lesions == 1) + rng.normal(0, 25, SHAPE)
    uptake = np.where(head | neck, 1.0, 0.1) + 7 * (lesions > 0) + rng.gamma(1, 1, SHAPE)
    images = {"ct": hu, "pet": ndimage.gaussian_filter(uptake, 1.2)}
    arrays = {name: array.astype(np.float32) for name, array in images.items()}
    arrays |= {"head": head.astype(np.uint8), "lesions": lesions}
    return {name: volume(array, (SPACING,) * 3) for name, array in arrays.items()}


def samples(one: dict[str, Any], stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
    """Input (1, C, z, y, x) and labels (1, z, y, x) of patients, each ROI a little beside its place."""
    transform, rng = input_transform(InputSpec(**one["input"])), np.random.default_rng(0)
    for scan in map(patient, range(SCANS)):
        reference = {"below_head": scan["head"], "lesions": scan["lesions"]}.get(stage.placement)
        grid = place_grid(stage, scan["ct"], reference)
        grid = Grid.centred(grid.center + rng.uniform(-9, 9, 3), grid.size, grid.spacing)
        images = sample_images(STUDY, scan["ct"], scan["pet"], grid)
        tensors = {name: torch.from_numpy(array)[None] for name, array in images.items()}
        subject = tio.Subject({name: tio.ScalarImage(tensor=tensor) for name, tensor in tensors.items()})
        label = sample_label(
            STUDY, scan["head" if stage.name == "localiser" else "lesions"], scan["ct"], grid
        )
        yield transform(subject)["image"].data[None].float(), torch.from_numpy(label)[None].long()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A cascade that knows its task, trained for a minute."""
    cards = [
        card("localiser", "plainconv", NETWORK, decision=RULES),
        card("coarse", "plainconv", NETWORK, grid={"size": [32] * 3}, input=LESIONS, decision=RULES),
        card("fine", "plainconv", NETWORK, grid={"size": [32] * 3}, input=LESIONS, decision=RULES),
    ]
    members = []
    for number, one in enumerate(cards):
        torch.manual_seed(number)
        stage = Stage(**one["stage"])
        network, loss = nets.build(**one["network"]), DiceCELoss()
        optimizer = torch.optim.SGD(network.parameters(), 3e-2, momentum=0.9, nesterov=True)
        steps = STEPS[stage.name]
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-2, total_steps=steps, pct_start=0.1, cycle_momentum=False
        )
        for image, label in islice(cycle(samples(one, stage)), steps):
            optimizer.zero_grad()
            loss(network(image)[0], label).backward()
            optimizer.step()
            schedule.step()
        members.append((Card(**one), network.eval()))
    out = tmp_path_factory.mktemp("trained") / "bundle"
    write_bundle(members, out)
    return Bundle.load(out)


Exact = list[tuple[dict[str, sitk.Image], sitk.Image]]


@pytest.fixture(scope="module")
def exact(bundle: Bundle) -> Exact:
    """Unseen patients and their masks by PyTorch in float32."""
    cascade = make_cascade(bundle)
    scans = [patient(10**7 + seed) for seed in range(CASES)]
    return [(scan, cascade(scan["ct"], scan["pet"]).mask) for scan in scans]


def agreement(pairs: Iterable[tuple[sitk.Image, sitk.Image]]) -> np.ndarray:
    """Dice of GTVp and of GTVn over the voxels of all pairs of masks."""
    both, sums = np.zeros(2), np.zeros(2)
    for pair in pairs:
        one, other = (sitk.GetArrayFromImage(mask)[..., None] == (1, 2) for mask in pair)
        both += 2 * (one & other).sum((0, 1, 2))
        sums += one.sum((0, 1, 2)) + other.sum((0, 1, 2))
    return both / sums


def test_the_cascade_knows_its_task(exact: Exact) -> None:
    assert (agreement((mask, scan["lesions"]) for scan, mask in exact) > 0.8).all()


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_bfloat16_agrees_with_float32_over_the_whole_cascade(
    bundle: Bundle, exact: Exact, backend: Literal["openvino", "torch"]
) -> None:
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("the extra openvino is not installed")
    fast = Cascade(bundle, make_networks(CPU, backend, "bfloat16"))
    dice = agreement((fast(scan["ct"], scan["pet"]).mask, mask) for scan, mask in exact)
    assert (dice >= 0.995).all(), dice


def test_a_fine_roi_three_quarters_of_a_millimetre_elsewhere_would_not_agree(
    bundle: Bundle, exact: Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So far does bfloat16 move the mean position of coarse labels; the ROI is on a whole index of theirs."""

    def drifted(stage: Stage, ct: sitk.Image, reference: sitk.Image | None = None) -> Grid:
        grid = place_grid(stage, ct, reference)
        return Grid.centred(grid.center + 0.75 * (stage.name == "fine"), grid.size, grid.spacing)

    monkeypatch.setattr(placement, "place_grid", drifted)
    cascade = make_cascade(bundle)
    dice = agreement((cascade(scan["ct"], scan["pet"]).mask, mask) for scan, mask in exact)
    assert (dice < 0.995).all(), dice
