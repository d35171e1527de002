"""Checkpoints that are cut off, damaged, another run's, or do not fit the disk."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.training.checkpoints import RunCheckpoints, find_checkpoint
from hnseg.training.runs import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.begin({}, Split(()))
    return folder


@pytest.fixture
def save(folder: RunFolder) -> Callable[..., None]:
    """Save checkpoints of epochs, one after the other."""

    def save(*epochs: int) -> None:
        for epoch in epochs:
            content = {"epoch": epoch, "weights": torch.randn(1000)}
            RunCheckpoints(folder).save_checkpoint(content, folder.last)

    return save


def epoch(path: Path | None) -> int:
    assert path is not None
    return torch.load(path, weights_only=True)["epoch"]


def content(folder: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir()}


def test_the_last_two_are_kept(save, folder):
    assert find_checkpoint(folder) is None
    save(0)
    assert not folder.previous.exists()
    save(1, 2)
    assert (epoch(folder.last), epoch(folder.previous)) == (2, 1)
    assert find_checkpoint(folder) == folder.last
    assert content(folder).keys() == {"config.json", "last.ckpt", "previous.ckpt", "run.id", "split.json"}


@pytest.mark.parametrize("damage", ["cut short", "empty", "one bit"])
def test_a_damaged_one_is_passed_over(save, folder, capsys, damage):
    save(0, 1)
    whole = folder.last.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # amid the weights
    broken = {"cut short": whole[: len(whole) // 2], "empty": b"", "one bit": bytes(flipped)}[damage]
    folder.last.write_bytes(broken)
    assert find_checkpoint(folder) == folder.previous
    line = capsys.readouterr().err
    assert re.fullmatch(r".*last\.ckpt is damaged \(.+\); going on from previous\.ckpt\n", line)
    save(2)
    assert (epoch(folder.last), epoch(folder.previous)) == (2, 0)


def test_damage_without_one_before_is_refused_and_nothing_lost(folder):
    folder.last.write_bytes(b"none")
    with pytest.raises(HnsegError, match=r"damaged checkpoints: .*last\.ckpt \(.+\); overwrite=true"):
        find_checkpoint(folder)
    assert folder.last.read_bytes() == b"none"


def test_a_full_disk_leaves_what_was_there(save, folder):
    save(0, 1)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    before, unbuffered = content(folder), Path.open

    def opened(path: Path, mode: str = "r", *rest: object, **options: object):
        return unbuffered(full if path.name.startswith(".") else path, mode, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(HnsegError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
            save(2)
    assert content(folder) == before


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", [0, 1])
def test_at_any_moment_there_is_a_whole_checkpoint(save, folder, monkeypatch, moment):
    """Each rename is where the process ends."""
    save(0, 1)
    replace, done = Path.replace, []

    def dying(path: Path, target: Path) -> Path:
        if len(done) == moment:
            raise KilledError
        done.append(path)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KilledError):
        save(2)
    assert epoch(find_checkpoint(folder)) >= 1


def test_a_checkpoint_of_another_run_is_refused(save, folder, tmp_path):
    save(0)
    other = RunFolder(tmp_path / "other")
    other.begin({}, Split(()))
    with pytest.raises(HnsegError, match=r"last\.ckpt: is of another run than .*other; .*init_from="):
        RunCheckpoints(other).load_checkpoint(folder.last)
    assert RunCheckpoints(folder).load_checkpoint(folder.last)["epoch"] == 0
