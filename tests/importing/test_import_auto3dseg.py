"""Auto3DSeg's SegResNets in hnseg: what MONAI predicts with them, and what is refused."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
from auto3dseg import CONFIG, NETWORK, network, segment, write_algorithm
from entry import hnseg, refused
from fabricate import ct_image, pet_image
from members import Ensemble
from safetensors.torch import load_file

from hnseg.card import Axes, Normalise, Window
from hnseg.data.intensity import input_transform
from hnseg.data.resample import sample_images
from hnseg.imaging.grid import Grid
from hnseg.importing.auto3dseg import import_auto3dseg
from hnseg.models.bundle import Bundle
from hnseg.models.checkpoint import Member

# No side alike and some odd, so that a wrong axis shows, and windows or padding from the wrong end.
VOLUME = (19, 13, 16)
STAGE = ["stage=fine", "stage.size=[19,13,16]", "stage.spacing=[3,3,3]"]
# The template hands the resolution on to the network where scales are anisotropic.
FINE_Z = {"resample_resolution": [3.0, 3.0, 1.2], "network": NETWORK | {"resolution": [3.0, 3.0, 1.2]}}


def predict(member: Member, grid: Grid) -> np.ndarray:
    return Ensemble([member])(ct_image(), pet_image(), grid)


def write(folder: Path, *images: sitk.Image) -> dict[str, str]:
    files = {key: str(folder / f"{key}.nii.gz") for key in ("image", "image2")}
    for path, image in zip(files.values(), images, strict=True):
        sitk.WriteImage(image, path)
    return files


def scaled_files(folder: Path, member: Member, grid: Grid) -> dict[str, str]:
    """What the stage's scaling makes of the case, in files on its grid: the network's own images."""
    spec = member.card.input
    sampled = sample_images(spec.sampling, ct_image(), pet_image(), grid)
    images = {name: tio.ScalarImage(tensor=torch.from_numpy(array)[None]) for name, array in sampled.items()}
    channels = input_transform(spec.unnormalised)(tio.Subject(images))["image"].data.numpy()
    return write(folder, *(grid.image(channel) for channel in channels))


def imported(tmp_path: Path, size: Sequence[int], *overrides: str, **changes: Any) -> tuple[Member, Grid]:
    folder = write_algorithm(tmp_path / "segresnet_0", **changes)
    place = [*STAGE, f"stage.size={list(size)}", *(overrides or ["recipe=authors"])]
    import_auto3dseg(folder, place, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    return member, Grid.centred((39, 40, 43), size, (3.0, 3.0, 3.0))


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (VOLUME, {"roi_size": [12, 8, 10]}),
        (VOLUME, {"roi_size": [24, 16, 20]}),
        (VOLUME, {"roi_size": [24, 8, 18]}),
        ((20, 12, 16), {"roi_size": [20, 12, 16]}),
        (VOLUME, {"orientation_ras": False}),
        (VOLUME, {"network": NETWORK | {"act": ["LEAKYRELU", {"negative_slope": 0.1}], "norm": "BATCH"}}),
        (VOLUME, {"anisotropic_scales": True} | FINE_Z),
    ],
    ids=["larger", "smaller", "both", "equal", "not in RAS", "other layers", "anisotropic"],
)
def test_a_member_predicts_what_monai_predicts(tmp_path, size, changes):
    member, grid = imported(tmp_path, size, **changes)
    expected = segment(scaled_files(tmp_path, member, grid), CONFIG | changes)
    np.testing.assert_allclose(predict(member, grid), expected, atol=1e-3)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Member, Grid, np.ndarray]:
    """A member whose window is smaller than the volume, and MONAI's prediction."""
    folder = tmp_path_factory.mktemp("larger")
    member, grid = imported(folder, VOLUME)
    return member, grid, segment(scaled_files(folder, member, grid), CONFIG)


BOUNDED = {"normalise": (Normalise("range", lower=0.3, upper=0.62), Normalise("sigmoid"))}
SPOILED: dict[str, tuple[str, dict[str, Any]]] = {
    "one axis not flipped": ("axes", {"flip": (0,)}),
    "axes in another order": ("axes", {"order": (1, 2, 0)}),
    "overlap": ("window", {"overlap": 0.5}),
    "windows of nnU-Net": ("window", {"tiling": "nnunet"}),
    "intensity bound": ("input", BOUNDED),
}


@pytest.mark.parametrize(("key", "changes"), SPOILED.values(), ids=SPOILED)
def test_a_spoiled_member_predicts_something_else(larger, key, changes):
    member, grid, expected = larger
    card = replace(member.card, **{key: replace(getattr(member.card, key), **changes)})
    assert card != member.card
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        np.testing.assert_allclose(predict(replace(member, card=card), grid), expected, atol=1e-3)


def test_a_network_of_hu_and_suv_sees_what_monai_reads_from_the_files(tmp_path):
    """Nothing of hnseg's stands between these files and MONAI."""
    raw = ["recipe=paper", "recipe.ct_window=null", "recipe.pet=raw"]
    bounds = {"intensity_bounds": [-160.0, 240.0]}
    member, grid = imported(tmp_path, VOLUME, *raw, **bounds)
    rng = np.random.default_rng(0)
    ct = grid.image(rng.integers(-200, 300, grid.shape).astype(np.float32))
    pet = grid.image(rng.gamma(1, 3, grid.shape).astype(np.float32))
    expected = segment(write(tmp_path, ct, pet), CONFIG | bounds)
    np.testing.assert_allclose(Ensemble([member])(ct, pet, grid), expected, atol=1e-3)


def run(*arguments: object) -> str:
    """The output of `hnseg import-monai`, or the line that it ends with."""
    done = hnseg("import-monai", *arguments)
    return refused(done) if done.returncode else done.stdout


def test_a_work_directory_becomes_one_member_a_fold(tmp_path):
    cases = [{"image": f"x/MDA-00{n}__CT.nii.gz", "fold": n % 2} for n in range(4)]
    work, listed = tmp_path / "work", {"data_list_file_path": "/gone/datalist.json"}
    for fold in (0, 1):
        write_algorithm(work / f"segresnet_{fold}", fold=fold, **listed)
    (work / "datalist.json").write_text(json.dumps({"training": cases}))
    (work / "swinunetr_0" / "model").mkdir(parents=True)
    (work / "swinunetr_0" / "model" / "model.pt").touch()
    output = run(work, *STAGE, "recipe=authors", "--out", tmp_path / "bundle")
    members = Bundle.load(tmp_path / "bundle").members
    assert [member.card.name for member in members] == ["fine_segresnet_fold_0", "fine_segresnet_fold_1"]
    assert all(member.card.name in output for member in members)
    seen = [member.card.trained_on for member in members]
    assert seen == [("MDA-001", "MDA-003"), ("MDA-000", "MDA-002")]
    for fold, member in enumerate(members):
        weights = load_file(member.weights)
        for name, expected in network(CONFIG | {"fold": fold}).state_dict().items():
            assert torch.equal(weights[f"network.{name}"], expected)


def test_the_card_says_how_the_release_made_its_images(tmp_path):
    """The grid and window of the fine stage in the authors' released configuration."""
    folder = write_algorithm(tmp_path / "segresnet_3", fold=3, resample_resolution=[1.0] * 3, resample=True)
    run(folder, "stage=fine", "recipe=authors", "--out", tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    card = member.card
    ct, pet = card.input.normalise
    assert (ct.scheme, ct.lower, ct.upper, pet.scheme) == ("range", 0.3, 0.6, "sigmoid")
    assert card.patch == (10, 8, 12)
    assert card.window == Window("monai", 0.625)
    assert (card.axes, card.mirror_axes) == (Axes((2, 1, 0), (0, 1)), (0, 1, 2))
    assert (card.decision.fusion, card.decision.resample_output) == ("authors", "labels")
    digest = hashlib.sha256((folder / "model" / "model.pt").read_bytes()).hexdigest()
    origin = {"from": "Auto3DSeg", "checkpoint": "model.pt", "sha256": digest, "epoch": 7, "best_metric": 0.5}
    assert (card.imported, card.trained_on) == (origin, None)


def test_references_to_other_keys_are_read(tmp_path):
    channels = {"in_channels": "@input_channels", "out_channels": "@output_classes"}
    changes = {"network": NETWORK | channels | {"norm": "INSTANCE_NVFUSER"}, "batch_size": "@missing"}
    folder = write_algorithm(tmp_path / "segresnet_0", stored={"config": CONFIG | changes})
    run(folder, *STAGE, "recipe=authors", "--out", tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert (member.card.network["in_channels"], member.card.network["norm"]) == (2, "INSTANCE")


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        ([], {"sigmoid": True}, "sigmoid=True"),
        ([], {"normalize_mode": "meanstd"}, "normalize_mode=meanstd"),
        ([], {"extra_modalities": {}}, "crop_foreground=true"),
        ([], {"extra_modalities": {"image2": "ct"}}, "range, ct where .* CT, PET;"),
        ([], {"modality": "pt"}, "pt where .* CT;"),
        (["cte=true"], {}, "2 channels .* 4"),
        ([], {"spacing_median": [0.5, 0.5, 0.5]}, r"\[0.5, 0.5, 0.5\] mm"),
        ([], {"class_names": ["background", "GTVN", "GTVP"]}, "GTVN, GTVP, where"),
        ([], {"custom_data_transforms": [{"key": "x"}]}, "custom_data_transforms"),
        ([], {"network": NETWORK | {"upsample_mode": "nontrainable"}}, "upsample_mode"),
        ([], {"stored": {"state_dict": {}}}, "not the network"),
        (["model=resenc"], {}, "model=resenc"),
    ],
)
def test_what_hnseg_cannot_do_alike_is_refused_in_one_line(tmp_path, overrides, changes, words):
    folder = write_algorithm(tmp_path / "segresnet_0", stored=changes.get("stored"))
    if network_changes := {key: value for key, value in changes.items() if key != "stored"}:
        path = folder / "model" / "model.pt"
        stored = torch.load(path, weights_only=False)
        torch.save(stored | {"config": CONFIG | network_changes}, path)
    line = run(folder, *STAGE, "recipe=authors", *overrides, "--out", tmp_path / "bundle")
    assert re.search(words, line), line
    assert not (tmp_path / "bundle").exists()


def test_a_folder_without_a_segresnet_is_refused(tmp_path):
    assert "model/model.pt" in run(tmp_path, *STAGE, "--out", tmp_path / "bundle")
