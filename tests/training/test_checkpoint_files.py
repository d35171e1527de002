"""Checkpoints that are cut off, damaged, or do not fit the disk."""

import re
from pathlib import Path

import pytest
import torch

from hnseg.data.splits import Split
from hnseg.errors import HnsegError
from hnseg.training.checkpoints import RunCheckpoints, find_checkpoint
from hnseg.training.runs import RunFolder


@pytest.fixture
def last(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    return tmp_path / "previous.ckpt"


@pytest.fixture
def save(last: Path, previous: Path):
    """Save checkpoints of epochs, one after the other."""
    folder = RunFolder(last.parent)
    folder.begin({}, Split(()))
    files = RunCheckpoints(folder)

    def save(*epochs: int) -> None:
        for epoch in epochs:
            files.save_checkpoint({"epoch": epoch, "weights": torch.randn(1000)}, last)

    return save


def epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def test_the_last_two_are_kept(save, last, previous):
    save(0)
    assert not previous.exists()
    save(1, 2)
    assert (epoch(last), epoch(previous)) == (2, 1)
    assert find_checkpoint(RunFolder(last.parent)) == last
    names = ["config.json", "last.ckpt", "previous.ckpt", "run.id", "split.json"]
    assert sorted(path.name for path in last.parent.iterdir()) == names


@pytest.mark.parametrize("damage", ["cut short", "empty", "one bit"])
def test_a_damaged_one_is_passed_over(save, last, previous, capsys, damage):
    save(0, 1)
    whole = last.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # amid the weights
    broken = {"cut short": whole[: len(whole) // 2], "empty": b"", "one bit": bytes(flipped)}[damage]
    last.write_bytes(broken)
    assert find_checkpoint(RunFolder(last.parent)) == previous
    told = capsys.readouterr().err
    assert re.fullmatch(r".*last\.ckpt is damaged \(.+\); going on from previous\.ckpt\n", told)
    save(2)
    assert (epoch(last), epoch(previous)) == (2, 0)


def test_damage_without_one_before_is_told_and_nothing_lost(last, previous):
    assert find_checkpoint(RunFolder(last.parent)) is None
    last.write_bytes(b"none")
    with pytest.raises(HnsegError, match=r"damaged checkpoints: .*last\.ckpt \(.+\); overwrite=true"):
        find_checkpoint(RunFolder(last.parent))
    assert last.read_bytes() == b"none"


def test_a_full_disk_leaves_what_was_there(save, last, previous, tmp_path):
    save(0, 1)
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    unbuffered = Path.open

    def opened(path: Path, mode: str = "r", *rest: object, **options: object):
        return unbuffered(full if path.name.startswith(".") else path, mode, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(HnsegError, match=r"last\.ckpt: cannot be written \(No space left on device\)"):
            save(2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_at_any_moment_there_is_a_whole_checkpoint(save, last, previous, monkeypatch):
    """Every rename in turn is where the process ends."""
    save(0, 1)
    for moment in range(2):
        done = []

        class KilledError(BaseException):
            pass

        def dying(function, done=done, moment=moment, killed=KilledError):
            def call(*args, **options):
                if len(done) >= moment:
                    raise killed
                done.append(args)
                return function(*args, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying(Path.replace))
            with pytest.raises(KilledError):
                save(2)
        survivor = find_checkpoint(RunFolder(last.parent))
        assert survivor is not None
        assert epoch(survivor) >= 1


def test_a_checkpoint_of_another_run_is_refused(save, last, tmp_path):
    save(0)
    other = RunFolder(tmp_path / "other")
    other.begin({}, Split(()))
    with pytest.raises(HnsegError, match=r"last\.ckpt: is of another run than .*other; .*init_from="):
        RunCheckpoints(other).load_checkpoint(last)
    assert RunCheckpoints(RunFolder(tmp_path)).load_checkpoint(last)["epoch"] == 0
