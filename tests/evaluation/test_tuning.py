"""`hnseg tune-postprocess`: what is measured, what is chosen, what is written, what must not be tuned on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from entry import compose_job, hnseg, load, refused
from fabricate import label_image, volume, write_case
from hypothesis import given, settings
from hypothesis import strategies as st
from members import DECISION, card, make_bundle
from scipy import ndimage

from hnseg.card import Decision
from hnseg.errors import HnsegError
from hnseg.evaluation.score import evaluate
from hnseg.evaluation.tuning import (
    CaseComponents,
    Threshold,
    choose,
    count_filtered,
    cross_validate,
    one_standard_error,
    read_components,
    require_tunable,
    tune,
)
from hnseg.imaging.case import Case, read_cases
from hnseg.inference.decision import remove_faint, remove_small
from hnseg.inference.records import Record, record_file
from hnseg.metrics.official import SCORES, aggregate
from hnseg.models.bundle import Bundle

SPACING = (1.3, 1.1, 2.7)
VOXEL_ML = float(np.prod(np.float32(SPACING))) / 1000


def blobs(rng: np.random.Generator) -> np.ndarray:
    """Dozens of components of both classes, one to hundreds of voxels each."""
    noise = ndimage.gaussian_filter(rng.standard_normal((16, 32, 32)), 1.2)
    return np.select([noise > 0.14, noise < -0.12], [1, 2]).astype(np.uint8)


def write_random_case(root: Path, seed: int) -> tuple[Case, Path]:
    """Prediction and truth alike in part; a PET that does not reach all of them."""
    rng = np.random.default_rng(seed)
    truth = blobs(rng)
    predicted = np.where(rng.random((16, 1, 1)) < 0.7, truth, blobs(rng))
    suv = ndimage.gaussian_filter(rng.gamma(1, 6, (9, 7, 10)), 0.6).astype(np.float32)
    case = Case(
        f"A-{seed}", root / "ct.nii.gz", root / f"pet{seed}.nii.gz", root / "true" / f"A-{seed}.nii.gz"
    )
    files = {case.label: volume(truth, SPACING), root / "found" / case.label.name: volume(predicted, SPACING)}
    for path, image in (files | {case.pet: volume(suv, (4, 4, 4.5), (1.7, 2.1, 0.4))}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path))
    return case, root / "found" / case.label.name


@pytest.fixture(scope="module")
def random_cohort(tmp_path_factory) -> tuple[Path, list[tuple[Case, Path]]]:
    root = tmp_path_factory.mktemp("cohort")
    return root, [write_random_case(root, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def measured(random_cohort) -> list[CaseComponents]:
    """Components on both sides of the thresholds below, without which little would be compared."""
    cases = [read_components(case, mask) for case, mask in random_cohort[1]]
    for case in cases:
        peaks = case["GTVn"].suv_peaks
        assert np.isinf(peaks).any()  # outside the PET
        assert peaks.min() < 5 < 6 < peaks[np.isfinite(peaks)].max()
        for part in case.values():
            assert part.overlaps.prediction_size.min() < 5 < 20 < part.overlaps.prediction_size.max()
    return cases


FLOORS = st.one_of(st.sampled_from([n * VOXEL_ML for n in (1, 2, 5, 20)]), st.floats(0, 0.8))


@settings(max_examples=12)
@given(gtvp_ml=FLOORS, gtvn_ml=FLOORS, suv=st.one_of(st.just(0.0), st.floats(4, 8)))
def test_every_setting_scores_as_its_masks_do(random_cohort, measured, gtvp_ml, gtvn_ml, suv) -> None:
    root, pairs = random_cohort
    out = root / "processed"
    out.mkdir(exist_ok=True)
    for case, path in pairs:
        mask, pet = sitk.ReadImage(str(path)), sitk.ReadImage(str(case.pet))
        image = sitk.GetImageFromArray(
            remove_small(sitk.GetArrayFromImage(mask), VOXEL_ML, [gtvp_ml, gtvn_ml])
        )
        image.CopyInformation(mask)
        sitk.WriteImage(remove_faint(image, pet, 2, suv) if suv else image, str(out / path.name))
    expected = evaluate(root / "true", out).official
    thresholds = {"GTVp": Threshold(gtvp_ml), "GTVn": Threshold(gtvn_ml, suv)}
    found = aggregate(count_filtered(case, thresholds) for case in measured)
    for key in ("tp", "fp", "fn", *SCORES[:3]):
        assert found[key] == pytest.approx(expected[key], abs=1e-9)


def of_means(scores: np.ndarray, dropped: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Terms and counts of settings whose score is the mean of the cases', (cases, settings)."""
    terms = np.stack([scores, np.ones_like(scores)], axis=-1)[:, :, None]
    if dropped is None:
        dropped = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)  # each drops one more
    return terms, np.asarray(dropped)


@pytest.mark.parametrize(
    ("scores", "dropped", "candidate"),
    [
        ([0.5, 0.6, 0.6, 0.4], [0, 1, 2, 3], 1),  # what helps every case
        ([0.5, 0.6, 0.6], [0, 9, 3], 2),  # of equals the one that drops fewest, wherever it stands
        ([0.6, 0.6, 0.5], [0, 1, 2], 0),  # nothing helps
    ],
)
def test_what_helps_every_case_is_chosen_and_worth_the_same_on_others(
    scores: list[float], dropped: list[int], candidate: int
) -> None:
    trials = of_means(np.tile(scores, (12, 1)), np.tile(dropped, (12, 1)))
    chosen, cross_validated = choose(*trials)
    assert chosen == candidate
    assert cross_validated == pytest.approx(0.6)


@pytest.mark.parametrize(("gap", "taken"), [(0.98, 0), (1.02, 1)])
def test_one_standard_error_of_a_ratio_of_sums(gap: float, taken: int) -> None:
    """Against the jackknife written out (Efron and Stein 1981): one case left out at a time."""
    rng = np.random.default_rng(4)
    bottom = rng.uniform(1, 50, 25)
    top = bottom * np.stack([rng.uniform(0.4, 0.6, 25), rng.uniform(0.4, 0.6, 25)])

    def difference(cases: np.ndarray) -> float:
        return float((top[1, cases].sum() - top[0, cases].sum()) / bottom[cases].sum())

    cases = np.arange(25)
    without = np.array([difference(np.delete(cases, n)) for n in cases])
    error = np.sqrt(24 / 25 * ((without - without.mean()) ** 2).sum())
    # Lifting each ratio alike lifts that of the sums as much, and leaves the error as it is.
    top[1] += bottom * (gap * error - difference(cases))
    terms = np.stack([top.T, np.stack([bottom, bottom], axis=1)], axis=-1)[:, :, None]
    assert one_standard_error(terms, np.tile([0, 1], (25, 1))) == taken


def test_a_score_is_the_mean_of_its_ratios() -> None:
    """Setting 1 lifts the first ratio by 0.2 and costs the second 0.1; setting 2 costs it 0.3."""
    first, second = np.array([0.5, 0.7, 0.7]), np.array([0.8, 0.7, 0.5])
    terms = np.stack([np.stack([first, np.ones(3)], -1), np.stack([second, np.ones(3)], -1)], axis=1)
    chosen, cross_validated = choose(np.tile(terms, (10, 1, 1, 1)), np.tile([0, 1, 2], (10, 1)))
    assert chosen == 1
    assert cross_validated == pytest.approx([0.7, 0.7])


def test_noise_is_not_taken_for_help() -> None:
    """Thirty settings that only scatter: the best looks good on the cases that chose it, and no others."""
    rng, apparent, unbiased, taken = np.random.default_rng(5), [], [], []
    for _ in range(20):
        scores = np.concatenate([np.full((60, 1), 0.6), 0.6 + rng.normal(0, 0.1, (60, 30))], axis=1)
        trials = of_means(scores)
        apparent.append(scores.mean(axis=0).max())
        unbiased.append(float(cross_validate(*trials)[0]))
        taken.append(choose(*trials)[0])
    assert np.mean(apparent) > 0.62
    assert abs(np.mean(unbiased) - 0.6) < 0.01
    assert np.mean(np.array(taken) == 0) >= 0.5
    assert cross_validate(*trials) == cross_validate(*trials)  # the same cases, the same figures


NAMES = [f"A-{n:02}" for n in range(12)]
RULES = {"rule": "half", "min_component_ml": 0.0, "node_suv_peak": 0.0}


def write_predictions(folder: Path, **changes: Any) -> Path:
    """Masks that are the truth but for a GTVp of 0.096 ml and a cold node of 0.768 ml, and their records."""
    folder.mkdir()
    labels = sitk.GetArrayFromImage(label_image())
    labels[2:4, 30:32, 30:32] = 1
    labels[2:6, 10:14, 30:34] = 2
    made_by = folder.parent / "bundle"
    identity = Bundle.load(made_by).identity if made_by.exists() else ""
    for name in NAMES:
        sitk.WriteImage(volume(labels, (2, 2, 3)), str(folder / f"{name}.nii.gz"))
        record = Record(name, "ok", "", identity, "fine", RULES, out_of_fold=True)
        record_file(folder, name).write_bytes(replace(record, **changes).to_json())
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases of SUV 1, and 8 about the two true nodes of 0.096 ml."""
    folder, suv = tmp_path_factory.mktemp("cohort"), np.ones((30, 40, 40), np.float32)
    suv[16:26, 4:18, 4:28] = 8
    for name in NAMES:
        write_case(folder, name, pet=volume(suv, (2, 2, 3)))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    rules = DECISION | {"min_component_ml": 0.05, "node_suv_peak": None}
    return make_bundle(tmp_path, card("fine", "segresnet", decision=rules)).path


def test_what_clearly_helps_is_chosen_and_no_more(bundle: Path, root: Path, tmp_path: Path) -> None:
    """Floors of 0.1 to 0.5 ml drop the false GTVp alike; only uptake parts the false node from the true."""
    found = write_predictions(tmp_path / "found")
    tuning = tune(Bundle.load(bundle), found, root)
    assert tuning.rules == {"min_component_ml": {"GTVp": 0.1, "GTVn": 0.0}, "node_suv_peak": 1.5}
    before, after = tuning.unfiltered, tuning.scores
    assert before["gtvp_dsc"] == pytest.approx(2 * 64 / (64 + 72))
    assert before["gtvn_dsc_agg"] == pytest.approx(2 * 16 / (16 + 80))
    assert before["gtvn_f1_agg"] == pytest.approx(4 / 5)
    assert (after["gtvp_dsc"], after["gtvn_dsc_agg"], after["gtvn_f1_agg"]) == (1, 1, 1)
    assert tuning.cross_validated == pytest.approx((1, 1, 1))
    assert tuning.cases == 12


def test_the_bundle_gets_the_rules_and_its_card_says_so(bundle: Path, root: Path, tmp_path: Path) -> None:
    found = write_predictions(tmp_path / "found")
    untouched = read_all(bundle)
    assert "chosen" in hnseg("tune-postprocess", bundle, found, root, "--dry-run").stdout
    assert read_all(bundle) == untouched
    assert f"{bundle}: rules written" in hnseg("tune-postprocess", bundle, found, root).stdout
    changed = {path.name for path, content in read_all(bundle).items() if untouched[path] != content}
    assert changed == {"bundle.yaml", "README.md"}
    tuned = {"min_component_ml": {"GTVp": 0.1, "GTVn": 0.0}, "node_suv_peak": 1.5}
    assert Bundle.load(bundle).decision == Decision(**DECISION | tuned)
    text = (bundle / "README.md").read_text()
    assert "node_suv_peak: 1.5" in text
    assert "12 cases out of fold" in text


def read_all(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_of_fold": False}, "A-00: made by networks trained on the case"),
        ({"status": "error"}, "A-00: no finished prediction"),
        ({"stage": "coarse"}, "A-00: made by the coarse stage"),
        ({"bundle": "other"}, "A-00: made by another bundle"),
        ({"rules": RULES | {"min_component_ml": {"GTVn": 0.1}}}, "A-00: components were dropped"),
        ({"rules": RULES | {"node_suv_peak": 2.5}}, "A-00: components were dropped"),
        ({"rules": RULES | {"rule": "argmax"}}, "A-00: made with other rules"),
    ],
)
def test_predictions_that_would_mislead_are_refused(
    root: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    found = write_predictions(tmp_path / "found", **changes)
    with pytest.raises(HnsegError, match=f"found: {message}"):
        require_tunable(found, read_cases(root), "", Decision())


def test_one_missing_mask_or_too_few_cases_are_refused(bundle: Path, root: Path, tmp_path: Path) -> None:
    found = write_predictions(tmp_path / "found")
    (found / "A-07.nii.gz").unlink()
    with pytest.raises(HnsegError, match="A-07: no finished prediction"):
        tune(Bundle.load(bundle), found, root)
    shutil.copytree(root, tmp_path / "fewer")
    for name in NAMES[:3]:
        (tmp_path / "fewer" / name / f"{name}.nii.gz").unlink()
    with pytest.raises(HnsegError, match="9 cases with a ground-truth mask"):
        tune(Bundle.load(bundle), found, tmp_path / "fewer")


def test_from_infer_to_tuned_rules_as_typed(tmp_path: Path) -> None:
    """Two folds that call every hot spot a node: the true one of SUV 8, and a fainter one of SUV 3."""
    node = {"weights": [[0.0, 0.0], [0.0, 0.0], [0.0, 400.0]], "biases": [0.0, -500.0, -40.0]}
    grid = {"placement": "scan", "size": [20] * 3, "spacing": [4.0] * 3}
    rules = DECISION | {"min_component_ml": 0.1, "node_suv_peak": None}
    folds = [
        card("fine", "pointwise", node, grid=grid, decision=rules, name=f"fold_{k}", trained_on=NAMES[k:10:2])
        for k in range(2)
    ]
    bundle = make_bundle(tmp_path, *folds).path
    suv, truth = np.ones((30, 40, 40), np.float32), np.zeros((30, 40, 40), np.uint8)
    suv[8:14, 10:18, 10:18], truth[8:14, 10:18, 10:18] = 8, 2
    suv[18:24, 24:32, 24:32] = 3
    for name in NAMES[:10]:
        write_case(tmp_path / "cohort", name, pet=volume(suv, (2, 2, 3)), label=volume(truth, (2, 2, 3)))
    out, cpu = tmp_path / "out", ["trainer.device=cpu", "trainer.precision=float32"]
    places = [f"cases={tmp_path / 'cohort'}", f"bundle={bundle}", f"out={out}", "out_of_fold=true", *cpu]

    def infer(*arguments: str) -> None:
        load("infer").main(compose_job("infer", *places, *arguments))

    infer()
    done = hnseg("tune-postprocess", bundle, out, tmp_path / "cohort")
    assert "components were dropped" in refused(done)
    infer("decision.min_component_ml=0", "decision.node_suv_peak=0")
    assert hnseg("tune-postprocess", bundle, out, tmp_path / "cohort").returncode == 0
    assert Bundle.load(bundle).decision.node_suv_peak in (3.0, 4.0)
    infer()
    for name in NAMES[:10]:
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(out / f"{name}.nii.gz")))
        assert mask[8:14, 10:18, 10:18].any()
        assert not mask[18:24, 24:32, 24:32].any()
