"""What `hnseg import-nnunet` makes of a results folder, and what it refuses.

That imported folds predict what nnU-Net does, tests/parity/test_parity_import_nnunet.py shows.
"""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entry import hnseg, refused
from members import card, write_run
from nnunet_results import RAW, dataset, plain, plans, train

from hnseg.errors import HnsegError
from hnseg.importing.nnunet import import_nnunet
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import read_foreign_checkpoint


@pytest.fixture(autouse=True)
def _results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nnU-Net's trainer writes."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "nnUNet_results"))


def test_a_member_says_where_it_comes_from_and_which_cases_it_has_seen(tmp_path: Path) -> None:
    folder = train(folds=[0, 1, "all"])
    splits = [{"train": ["b", "a"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    import_nnunet(folder, RAW, tmp_path / "bundle")
    members = {member.card.fold: member for member in Bundle.load(tmp_path / "bundle").members}
    assert {fold: member.card.trained_on for fold, member in members.items()} == {
        0: ("a", "b"),
        1: ("a", "c"),
        "all": ("a", "b", "c"),
    }
    origin = members[1].card.imported
    checkpoint = folder / origin["checkpoint"]
    assert origin["checkpoint"] == "fold_1/checkpoint_final.pth"
    assert origin["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert origin["trainer"] == "nnUNetTrainer"


def test_a_member_of_an_unknown_split_counts_as_having_seen_every_case(tmp_path: Path) -> None:
    import_nnunet(train(), RAW, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert member.card.trained_on is None
    assert member.has_seen("anything")


def test_a_bundle_is_extended_by_new_names_alone(tmp_path: Path) -> None:
    folder, out = train(folds=[0, 1]), tmp_path / "bundle"
    assert import_nnunet(folder, RAW, out, folds=["1"]) == ["fine_plainconv_fold_1"]
    assert import_nnunet(folder, RAW, out, folds=["0"]) == ["fine_plainconv_fold_0"]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(HnsegError, match="second member fine_plainconv_fold_1"):
        import_nnunet(folder, RAW, out, folds=["1"])
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [member.card.fold for member in Bundle.load(out).members] == [1, 0]
    assert import_nnunet(folder, [*RAW, "arm=other"], out, folds=["1"]) == ["other_fold_1"]


def test_imported_members_and_trained_runs_gather_into_one_bundle(tmp_path: Path) -> None:
    import_nnunet(train(), RAW, tmp_path / "imported")
    write_run(tmp_path / "runs", card("coarse", "segresnet"))
    names = export_bundle([tmp_path / "imported", tmp_path / "runs"], tmp_path / "bundle")
    assert names == ["fine_plainconv_fold_0", "coarse_segresnet_fold_0"]
    kept, new = (Bundle.load(tmp_path / one).of_stage("fine")[0] for one in ("imported", "bundle"))
    assert kept.card == new.card
    weights = [member.loaded()[1].state_dict() for member in (kept, new)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0] | weights[1])


def test_a_configuration_inherits_as_in_nnunet(tmp_path: Path) -> None:
    plan = plans()
    known = plan["configurations"]
    known["base"] = known.pop("3d_fullres")
    known["3d_fullres"] = {"inherits_from": "base", "patch_size": [8, 12, 8]}
    import_nnunet(train(plan), RAW, tmp_path / "bundle")
    (member,) = Bundle.load(tmp_path / "bundle").members
    assert member.card.patch == (8, 12, 8)


def unet(**changes: Any) -> dict[str, Any]:
    return {"architecture": plain(**changes)}


OLD = {"architecture": None, "UNet_class_name": "PlainConvUNet"}
LABELS = {"background": 0, "GTVp": 1, "GTVn": 2}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str], str]] = {
    "mask": ({"use_mask_for_norm": [False, True]}, {}, RAW, "use_mask_for_norm"),
    "scheme": ({"normalization_schemes": ["RGBTo01Normalization"] * 2}, {}, RAW, "RGBTo01Normalization"),
    "spacing": ({"spacing": [1.0, 1.0, 1.0]}, {}, RAW, r"\[1\.0, 1\.0, 1\.0\].*\[3.*2\.5, 2.*stage\.spacing"),
    "reader": ({"image_reader_writer": "Tiff3DIO"}, {}, RAW, "Tiff3DIO"),
    "cascade": ({"previous_stage": "3d_lowres"}, {}, RAW, "previous_stage.*3d_lowres"),
    "weights": (unet(features_per_stage=[8, 8, 8]), {}, RAW, "not the network of its settings"),
    "nonlinearity": (unet(nonlin="torch.nn.ReLU"), {}, RAW, r"nonlin=torch\.nn\.ReLU"),
    "plans before 2.4": (OLD, {}, RAW, "architecture"),
    "architecture": ({"architecture": plain() | {"network_class_name": "x.PrimusS"}}, {}, RAW, "PrimusS"),
    "regions": ({}, {"labels": {"background": 0, "both": [1, 2], "GTVn": 2}}, RAW, r"labels.both=\[1, 2\]"),
    "ignore": ({}, {"labels": LABELS | {"ignore": 3}}, RAW, "GTVp, GTVn, ignore"),
    "order": ({}, {"labels": {"background": 0, "GTVn": 1, "GTVp": 2}}, RAW, "GTVn, GTVp, where"),
    "enhanced": ({}, {}, [*RAW, "cte=true", "recipe.ct_window=[-110,190]"], "2 channels.* 4 .*cte="),
    "channels": ({}, {"channel_names": {"0": "PET", "1": "CT"}}, RAW, "PET, CT where.*CT, PET;"),
    "SUV first": ({}, {"channel_names": {"0": "SUVbw", "1": "image"}}, RAW, "SUVbw, image where.*CT, PET;"),
    "model": ({}, {}, [*RAW, "model=segresnet"], "model=segresnet.*leave it out"),
}


@pytest.mark.parametrize(("plan", "data", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_run_otherwise_is_refused(tmp_path, plan, data, overrides, message):
    folder = train()
    (folder / "plans.json").write_text(json.dumps(plans(**plan)))
    (folder / "dataset.json").write_text(json.dumps(dataset(**data)))
    with pytest.raises(HnsegError, match=message) as refused:
        import_nnunet(folder, overrides, tmp_path / "bundle")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("names", [("CTAC", "SUVbw"), ("channel 0", "FDG-PT"), ("PTV", "PET/CT")])
def test_names_that_tell_of_no_swap_are_let_be(tmp_path: Path, names: tuple[str, str]) -> None:
    channels, labels = dict(zip("01", names, strict=True)), {"background": 0, "gtvp": 1, "nodes": 2}
    folder = train()
    (folder / "dataset.json").write_text(json.dumps(dataset(channel_names=channels, labels=labels)))
    assert import_nnunet(folder, RAW, tmp_path / "bundle") == ["fine_plainconv_fold_0"]


def test_numbers_that_an_older_numpy_pickled_are_read(tmp_path: Path) -> None:
    """NumPy 1 called the module numpy.core, where most released checkpoints were written."""
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save({"loss": np.float64(1.5), "losses": np.arange(3.0)}, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in old.read_bytes()
    stored = read_foreign_checkpoint(old)
    assert stored["loss"] == 1.5
    assert stored["losses"].tolist() == [0, 1, 2]


class Hostile:
    """Pickled, it asks for a file to be made when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    folder, trace = train(), tmp_path / "trace"
    path = folder / "fold_0" / "checkpoint_final.pth"
    stored = torch.load(path, weights_only=False)
    torch.save(stored | {"logging": Hostile(trace)}, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    assert trace.exists()  # an unguarded reader would have run it
    trace.unlink()
    with pytest.raises(HnsegError, match=r"checkpoint_final\.pth: holds [\w.]+, which could run code"):
        import_nnunet(folder, RAW, tmp_path / "bundle")
    assert not trace.exists()
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_checkpoint_is_told_in_a_line(tmp_path: Path) -> None:
    folder = train()
    path = folder / "fold_0" / "checkpoint_final.pth"
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for damaged in (b"", pointer, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(HnsegError, match=r"checkpoint_final\.pth: is no file of torch\.save") as refused:
            import_nnunet(folder, RAW, tmp_path / "bundle")
        assert len(str(refused.value).splitlines()) == 1
    torch.save({"weights": {}}, path)
    with pytest.raises(HnsegError, match="network_weights"):
        import_nnunet(folder, RAW, tmp_path / "bundle")


def test_the_command_makes_a_bundle_or_says_what_is_missing(tmp_path: Path) -> None:
    folder, out = train(folds=[0, 1]), tmp_path / "bundle"
    done = hnseg("import-nnunet", folder, *RAW, "--out", out, "--folds", "1")
    assert (done.returncode, done.stdout) == (0, f"{out}: fine_plainconv_fold_1\n")
    for arguments, message in (
        ((folder, *RAW, "--folds", "0,4"), "fold_4"),
        ((folder, *RAW, "--checkpoint", "best"), "checkpoint_best.pth"),
        ((folder.parent, *RAW), "plans.json"),
        ((folder, "stage=finne"), "finne"),
    ):
        assert message in refused(hnseg("import-nnunet", *arguments, "--out", out))
