"""What a report says: the scores of the masks, the cases in their order, nothing from outside."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from entry import hnseg
from fabricate import ct_image, label_image

from hnseg.errors import HnsegError
from hnseg.evaluation.figures import Scan, find_lesions
from hnseg.evaluation.report import page
from hnseg.evaluation.report.pictures import Calibration, best_overlaps, lesion_picture, limits_of_agreement
from hnseg.evaluation.report.viewer import viewer_grid
from hnseg.evaluation.score import evaluate
from hnseg.imaging.case import read_cases
from hnseg.imaging.images import to_array
from hnseg.imaging.masks import positions


class Page(HTMLParser):
    """Rows of each table, the elements in order, and the data of scripts by class or id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.data = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_data(self, text):
        tag, attributes = self.elements[-1] if self.elements else ("", {})
        if tag == "script":
            self.data.append((attributes.get("class") or attributes.get("id"), text))
        elif tag in ("th", "td", "a", "button") and self.tables and self.tables[-1][-1:] not in ([], [[]]):
            self.tables[-1][-1][-1] += text.strip()


@pytest.fixture(scope="module")
def ablation_text(report):
    return report.read_text(encoding="utf-8")


def test_the_scores_are_those_of_the_masks(ablation_text, ablation, cohort):
    scores = Page(ablation_text).tables[0]
    for row in scores[1:]:
        official = evaluate(cohort, ablation / row[0]).official
        assert row[2:5] == [f"{official[key]:.4f}" for key in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg")]
    assert [row[0] for row in scores[1:]] == ["full", "resenc"]
    # One of two nodes of 0.096 ml missed, one of 0.384 ml made up: 2 · 5 × 0.096 / (6 + 5 + 4) × 0.096.
    assert scores[1][3] == f"{10 / 15:.4f}"


def test_cases_to_review_come_first_and_then_the_worst(ablation_text):
    shown = [row for row in Page(ablation_text).tables[-1] if row[1] == "full"]
    assert [row[0] for row in shown] == ["B-2", "A-1", "<script>alert(1)<script>"]
    assert shown[0][-2] == "0.50"  # the lesion on which fewest members agree


def test_names_and_reasons_are_escaped(ablation_text):
    parsed = Page(ablation_text)
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == 2 + 3 + 3  # code, data, volumes
    assert "alert(1)" not in "".join(text for _, text in parsed.data)
    assert "members disagree &lt;script&gt;alert(1)&lt;/script&gt;" in ablation_text


def test_nothing_is_loaded_from_outside_and_the_viewer_carries_its_licence(ablation_text):
    assert "Redistribution and use in source and binary forms" in ablation_text
    assert not re.findall(r"https?:|//[a-z]+\.", ablation_text)
    for _, attributes in Page(ablation_text).elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))


def test_pictures_and_tables_can_be_read_aloud(ablation_text):
    elements = Page(ablation_text).elements
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    assert all(
        attributes.get("scope") in ("col", "colgroup", "row") for tag, attributes in elements if tag == "th"
    )
    headings = [int(tag[1]) for tag, _ in elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(headings))


def test_the_viewers_volumes_are_the_scans(ablation_text, tmp_path):
    """At points of the original scan the embedded volumes have its HU and labels, where both are flat."""
    volumes = json.loads(next(data for kind, data in Page(ablation_text).data if kind == "volumes"))  # B-2
    images = {}
    for name, content in volumes.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(base64.b64decode(content))
        images[name] = sitk.ReadImage(str(path))
    for name, point, value, tolerance in (
        ("truth", (24, 24, 36), 1, 0),
        ("prediction", (24, 24, 36), 1, 0),
        ("ct", (40, 40, 45), 800, 60),  # bone
        ("pet", (29, 29, 46), 12, 2),  # the hot spot
    ):
        index = images[name].TransformPhysicalPointToIndex([float(mm) for mm in point])
        assert images[name][index] == pytest.approx(value, abs=tolerance)
    truth = label_image()
    ours = sitk.Resample(images["truth"], truth, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert (sitk.GetArrayFromImage(ours) == sitk.GetArrayFromImage(truth)).mean() > 0.995


def test_every_lesion_of_either_mask_is_found(masks):
    scan = Scan(ct_image(), ct_image(), label_image(), masks["B-2"])
    found = [(f.name, f.truth_ml, f.predicted_ml) for f in find_lesions(scan)]
    assert found == [
        ("GTVp", pytest.approx(0.768), pytest.approx(0.768)),
        ("GTVn", 0.0, pytest.approx(0.384)),
        ("GTVn", pytest.approx(0.096), pytest.approx(0.096)),
        ("GTVn", pytest.approx(0.096), pytest.approx(0.096)),
    ]
    missed = Scan(ct_image(), ct_image(), label_image(), masks["A-1"])
    assert sorted(best_overlaps(missed)) == [(pytest.approx(0.096), 0.0), (pytest.approx(0.096), 1.0)]


def tilted(image):
    """The same volume in a scanner whose gantry is tilted by 25 degrees."""
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    image.SetDirection((1, 0, 0, 0, cos, -sin, 0, sin, cos))
    return image


def test_a_tilted_scan_is_shown_where_it_lies():
    """By hand: origin, plus the direction times index and spacing."""
    ct, truth = tilted(ct_image()), tilted(label_image())
    direction = np.reshape(ct.GetDirection(), (3, 3))
    scan = Scan(ct, ct, truth, truth)
    tumour = find_lesions(scan)[0]
    place = direction @ np.multiply(tumour.voxel, ct.GetSpacing())
    assert f"Axial, z = {place[2]:.0f} mm" in lesion_picture(scan, tumour).caption
    grid = viewer_grid(scan)
    low = np.subtract(grid.origin, np.divide(grid.spacing, 2))
    assert (low <= positions(truth)).all()
    assert (positions(truth) <= low + np.multiply(grid.size, grid.spacing)).all()


def test_calibration_and_limits_of_agreement_by_hand():
    """Two bins: 0.15 of which none is true, 0.8 of which half are; 0.001 is background."""
    calibration = Calibration()
    probability = np.array([0.15, 0.15, 0.8, 0.8, 0.001], np.float32).reshape(1, 1, 5)
    calibration.add(probability, np.array([0, 0, 1, 0, 1], bool).reshape(1, 1, 5))
    np.testing.assert_allclose(calibration.curve, [[0.15, 0.8], [0, 0.5]], atol=1e-6)
    assert calibration.error == pytest.approx((2 * 0.15 + 2 * 0.3) / 4)
    assert limits_of_agreement(np.array([1.0, 2.0, 3.0])) == (2.0, pytest.approx(1.96))


def test_the_command_writes_beside_the_masks_and_says_where_there_is_no_room(
    predictions, cohort, monkeypatch
):
    monkeypatch.setattr(page, "VIEWER_CHARACTERS", 0)
    assert hnseg("report", predictions, "--ground-truth", cohort).returncode == 0
    text = (predictions / "report.html").read_text(encoding="utf-8")
    assert "3 of 3 cases have still pictures alone" in text
    assert not [kind for kind, _ in Page(text).data if kind == "volumes"]


def test_new_patients_are_shown_without_ground_truth(predictions, cohort, tmp_path):
    done = hnseg("report", predictions, "--data", cohort, "--overlays", tmp_path)
    assert done.returncode == 0, done.stderr
    text = (predictions / "report.html").read_text(encoding="utf-8")
    assert "Dice by centre" not in text
    (table,) = Page(text).tables
    assert table[2][2:7] == ["0", "0.00", "3", "3.00", "0.50"]  # the record's lesions of 1 ml
    assert '"truth":' not in "".join(data for kind, data in Page(text).data if kind == "volumes")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_maps_are_drawn_beside_the_lesion(predictions, cohort):
    case = next(case for case in read_cases(cohort) if case.case_id == "A-1")
    scan = Scan.read(replace(case, label=None), predictions / "A-1.nii.gz", predictions / "maps" / "A-1")
    assert not to_array(scan.truth).any()
    tumour = find_lesions(scan)[0]
    x, y, z = tumour.voxel
    assert to_array(scan.maps["probability_GTVp"])[z, y, x] == pytest.approx(0.8)
    plain = lesion_picture(replace(scan, maps={}), tumour)
    assert len(lesion_picture(scan, tumour).uri) > len(plain.uri)
    assert plain.caption.startswith("GTVp, 0.77 ml")


def test_mistakes_are_refused_with_a_remedy_before_the_long_work(predictions, cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "evaluate", None)
    with pytest.raises(HnsegError, match=r"out: has no ablation.json .*--ground-truth ROOT"):
        page.write_report(predictions)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(HnsegError, match=r"report\.html: cannot be written"):
        page.write_report(tmp_path, cohort)
    monkeypatch.setattr("hnseg.evaluation.report.libraries.find_spec", lambda name: None)
    with pytest.raises(HnsegError, match=r"ipyniivue.*\[report\]"):
        page.write_report(predictions, cohort)
