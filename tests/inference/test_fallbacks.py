"""What the cascade does, and says, where a scan shows too little: each in the result, none a crash."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fabricate import volume
from members import card, make_bundle, make_cascade, never

from hnseg.card import Stage
from hnseg.errors import HnsegError
from hnseg.imaging.grid import Grid
from hnseg.imaging.placement import Fallback
from hnseg.inference.cascade import Cascade, limits
from hnseg.models.bundle import Bundle

# What is denser than 100 HU is head (its skull, filled here), what has more SUV than 4 a tumour.
HEAD = {"weights": [[0.0], [100.0]], "biases": [0.0, -50.0]}
TUMOUR = {"weights": [[0.0, 0.0], [0.0, 4000.0], [0.0, 0.0]], "biases": [0.0, -800.0, -9000.0]}
LESION = np.array((-30.0, 0.0, -190.0))
PET_BOX = ((-160, -160, -420), (160, 160, 20))


def where(low: tuple[float, ...], high: tuple[float, ...], mm: float) -> np.ndarray:
    """Voxel positions (z, y, x, 3) of a box cut into cubes of `mm`."""
    axes = [np.arange(a + mm / 2, b, mm) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).transpose(2, 1, 0, 3)


def ellipsoid(points: np.ndarray, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    return (((points - centre) / radii) ** 2).sum(-1) < 1


def image(points: np.ndarray, values: np.ndarray) -> sitk.Image:
    mm = float(points[0, 0, 1, 0] - points[0, 0, 0, 0])
    return volume(values.astype(np.float32), (mm,) * 3, tuple(points[0, 0, 0]))


def make_ct(low: float = -420, high: float = 20) -> sitk.Image:
    """A head of 225 mm height with its vertex at z 0, on a neck that goes on below."""
    points = where((-160, -160, low), (160, 160, high), 5.0)
    hu = np.where(np.abs(points[..., :2] / (60, 60)).max(-1) < 1, 40.0, -1000.0)
    hu[points[..., 2] > -225] = -1000
    hu[ellipsoid(points, (0, 0, -112.5), (75, 95, 112.5))] = 400
    return image(points, hu)


def make_pet(low: tuple[float, ...] = PET_BOX[0], high: tuple[float, ...] = PET_BOX[1]) -> sitk.Image:
    """A brain of SUV 12 in the upper half of that head, a lesion of SUV 6 on one side of the throat."""
    points = where(low, high, 5.0)
    suv = np.full(points.shape[:3], 0.7)
    suv[ellipsoid(points, (0, 0, -70), (65, 85, 60))] = 12
    suv[ellipsoid(points, tuple(LESION), (13, 13, 13))] = 6
    return image(points, suv)


def bundle(folder: Path, head: dict = HEAD, coarse: dict | None = None) -> Bundle:
    grids = {"size": [48] * 3, "spacing": [6.0] * 3}
    return make_bundle(
        folder,
        card("localiser", "pointwise", head, grid={"size": [40, 40, 36]}),
        card("coarse", "pointwise", coarse or never(), grid=grids),
        card("fine", "pointwise", TUMOUR, grid={"size": [24] * 3}),
    )


@pytest.fixture
def blind(tmp_path: Path) -> Cascade:
    """Finds heads, but nothing coarse."""
    return make_cascade(bundle(tmp_path))


@pytest.fixture
def seeing(tmp_path: Path) -> Cascade:
    """Takes whatever has SUV above 4 for tumour, in the coarse ROI too."""
    return make_cascade(bundle(tmp_path, coarse=TUMOUR))


def found_around(mask: sitk.Image) -> np.ndarray:
    index = np.argwhere(sitk.GetArrayFromImage(mask) == 1)[:, ::-1]
    return np.asarray(mask.GetOrigin()) + index.mean(axis=0) * mask.GetSpacing()


def test_nothing_coarse_and_the_lesion_is_found_not_the_brain(blind: Cascade) -> None:
    result = blind(make_ct(), make_pet())
    (said,) = result.notes
    assert result.fallbacks == [Fallback.BRIGHTEST_PET]
    assert said.startswith("nothing coarse: ROI on the brightest PET outside the brain, SUVpeak ")
    assert float(said.split("SUVpeak ")[1].split()[0]) == pytest.approx(6.0, abs=0.3)
    np.testing.assert_allclose(found_around(result.mask), LESION, atol=3)
    assert said in result.review_reasons


def test_a_scan_without_a_head_says_so_and_the_lesion_is_still_found(tmp_path: Path) -> None:
    """The coarse ROI hangs from the top of the scan and holds the whole brain."""
    result = make_cascade(bundle(tmp_path, head=never(1, 1)))(make_ct(), make_pet())
    head, coarse = result.notes
    assert head.startswith("no head: ")
    assert coarse.startswith("nothing coarse: ")
    np.testing.assert_allclose(found_around(result.mask), LESION, atol=3)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-420, 20, []),
        (-150, 20, ["CT cut off within the head: it shows no neck"]),
        (-420, -60, ["CT cut off at the top of the head"]),
    ],
)
def test_a_ct_that_ends_in_the_head_says_where(
    seeing: Cascade, low: float, high: float, expected: list[str]
) -> None:
    result = seeing(make_ct(low, high), make_pet())
    said = [one for one in result.notes if one.startswith("CT")]
    assert len(said) == len(expected)
    assert all(one.startswith(words) for one, words in zip(said, expected, strict=True))
    assert all(one in result.review_reasons for one in said)


@pytest.mark.parametrize("axis", [0, 2])
def test_pet_that_ends_in_the_roi_is_named_with_its_share(blind: Cascade, axis: int) -> None:
    """From the midline on, or from the lesion's lower end down: of both ROIs, and the lesion is found."""
    low, high = (np.array(corner, float) for corner in PET_BOX)
    if axis == 0:
        high[0] = 0
    else:
        low[2] = -210
    result = blind(make_ct(), make_pet(tuple(low), tuple(high)))
    for stage in ("coarse", "fine"):
        (grid,) = result.grids[stage]
        share = missing(grid, low, high)
        assert share > 0.05
        named = f"PET does not reach {share:.0%} of the {stage} ROI: seen on CT alone there"
        assert named in result.notes
    assert (sitk.GetArrayFromImage(result.mask) == 1).any()


def missing(grid: Grid, low: np.ndarray, high: np.ndarray) -> float:
    """Share of a grid outside the box of the PET, to whole 48ths of its sides."""
    first, last = grid.corners.min(axis=0), grid.corners.max(axis=0)
    step = (last - first) / 48
    centres = [first[a] + (np.arange(48) + 0.5) * step[a] for a in range(3)]
    held = [((c > low[a]) & (c < high[a])).mean() for a, c in enumerate(centres)]
    return float(1 - np.prod(held))


@pytest.mark.parametrize("offset", [(400.0, 0.0, 0.0), (0.0, 0.0, -420.0)])
def test_a_pet_that_misses_the_roi_is_an_error(seeing: Cascade, offset: tuple[float, ...]) -> None:
    pet = make_pet()
    pet.SetOrigin((np.array(pet.GetOrigin()) + offset).tolist())
    with pytest.raises(HnsegError, match="PET does not reach the coarse ROI") as caught:
        seeing(make_ct(), pet)
    assert "\n" not in str(caught.value)


def test_a_head_mask_of_another_scan_is_told() -> None:
    stage = Stage("coarse", (24, 24, 24), (6.0, 6.0, 6.0), "below_head")
    points = where((-40, -40, -40), (40, 40, 40), 4)
    scan = image(points, np.zeros(points.shape[:3]))
    near, far = (Grid.centred((0.0, 0.0, z), stage.size, stage.spacing) for z in (0.0, 1000.0))
    assert not list(limits(stage, [near], scan, scan, None))
    with pytest.raises(HnsegError, match=r"head mask places the coarse ROI around .* outside the CT"):
        list(limits(stage, [far], scan, scan, None))
