"""A bundle's folder: whole or not there, whatever ends its making, and never in place of something else."""

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from unittest.mock import Mock

import pytest
from members import card, make_bundle, write_run

from hnseg.errors import HnsegError
from hnseg.models.bundle import Bundle, export_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path, card("coarse", "plainconv"), card("fine", "resenc"))


def test_an_older_bundle_is_replaced_whole(bundle: Bundle, tmp_path: Path) -> None:
    write_run(tmp_path / "new", card("fine", "segresnet"))
    export_bundle([tmp_path / "new"], bundle.path)
    assert [member.card.name for member in Bundle.load(bundle.path).members] == ["fine_segresnet_fold_0"]
    assert {path.name for path in bundle.path.iterdir()} == {
        "README.md",
        "bundle.yaml",
        "fine_segresnet_fold_0",
    }


def test_a_failed_export_leaves_the_older_bundle_and_no_trace(bundle: Bundle, tmp_path: Path) -> None:
    (write_run(tmp_path / "runs", card("fine", "segresnet")) / "best.ckpt").write_bytes(b"")
    before = set(tmp_path.iterdir())
    with pytest.raises(HnsegError):
        export_bundle([tmp_path / "runs"], bundle.path)
    assert len(Bundle.load(bundle.path).members) == 2
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_amid_the_replacing_keeps_the_older_bundle(
    bundle: Bundle, tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of its two renames, in a child that ends as by kill -9; the next export leaves no trace."""
    write_run(tmp_path / "new", card("fine", "segresnet"))
    before = set(tmp_path.iterdir())
    rename, calls = Path.replace, count(1)

    def die(self: Path, target: Path) -> Path:
        if next(calls) == moment:
            os._exit(9)
        return rename(self, target)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(Path, "replace", die)
        with suppress(BaseException):
            export_bundle([tmp_path / "new"], bundle.path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(Bundle.load(bundle.path).members) == 2
    export_bundle([tmp_path / "new"], bundle.path)
    assert len(Bundle.load(bundle.path).members) == 1
    assert set(tmp_path.iterdir()) == before


def test_a_failing_replacing_keeps_the_older_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "new", card("fine", "segresnet"))
    rename = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(HnsegError, match="cannot be written"):
        export_bundle([tmp_path / "new"], bundle.path)
    assert len(Bundle.load(bundle.path).members) == 2


def test_what_a_link_leads_to_is_replaced(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    write_run(tmp_path / "new", card("fine", "segresnet"))
    export_bundle([tmp_path / "new"], tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(Bundle.load(bundle.path).members) == 1


def test_a_full_disk_is_one_line(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(HnsegError, match=r"cannot be written .*No space left"):
        export_bundle([bundle.path], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", card("fine", "segresnet"))
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "precious.nii.gz").touch()
    for out in (tmp_path / "scans", tmp_path / "scans" / "precious.nii.gz"):
        with pytest.raises(HnsegError, match="something other than a bundle"):
            export_bundle([tmp_path / "runs"], out)
    assert (tmp_path / "scans" / "precious.nii.gz").exists()
