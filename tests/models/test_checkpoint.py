"""Which of a run's weights become a member: the best, the last, or the average of the last."""

from pathlib import Path

import pytest
import torch
from entry import compose_job, load, tiny, write_cohort
from members import card, write_run
from typer.testing import CliRunner

from hnseg.cli import app
from hnseg.errors import HnsegError
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import Checkpoint, Member


def test_the_last_checkpoint_can_be_taken_instead(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", card("fine", "segresnet"))
    write_last(run, 0)
    for checkpoint, zero in (("best", False), ("last", True)):
        (member,) = export(run, checkpoint).members
        assert set(values(member)) == {0.0} or not zero
        assert member.card.scores == {"val/dice": 0.5}


def test_own_and_averaged_weights_of_the_last_step_can_be_told_apart(tmp_path: Path) -> None:
    """Lightning saves the average in the place of the weights; whose the scores are, it does not say."""
    run = write_run(tmp_path / "runs", card("fine", "segresnet"))
    write_last(run, 1, own=0)
    for checkpoint, expected in (("last", 0.0), ("ema", 1.0)):
        (member,) = export(run, checkpoint).members
        assert set(values(member)) == {expected}
        assert not member.card.scores


def test_a_run_without_averaged_weights_is_refused_and_the_older_bundle_stays(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", card("fine", "segresnet"))
    write_last(run, 0)
    before = export(run, "best")
    with pytest.raises(HnsegError, match=r"last\.ckpt: no averaged weights .*--checkpoint best or last$"):
        export(run, "ema")
    assert Bundle.load(before.path).members == before.members


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"colour": "red"}, "colour=red"),
        ({"patch": [16, 16]}, "patch"),
        ({"trained_on": "CHUM"}, "trained_on=CHUM"),
        ({"input": {"modalities": ["mr"]}}, r"input\.modalities"),
        ({"decision": {"rule": "max"}}, r"decision\.rule=max"),
    ],
)
def test_a_card_that_says_what_it_cannot_is_refused_with_file_and_key(
    tmp_path: Path, change: dict[str, object], key: str
) -> None:
    run = write_run(tmp_path / "runs", card("fine", "segresnet"))
    stored = torch.load(run / "best.ckpt", weights_only=True)
    stored["hnseg"] |= change
    torch.save(stored, run / "best.ckpt")
    with pytest.raises(HnsegError, match=rf"best\.ckpt: {key}"):
        export(run, "best")


def write_last(run: Path, value: float, *, own: float | None = None) -> None:
    """A last.ckpt of constant weights; with `own`, `value` is that of their average."""
    stored = torch.load(run / "best.ckpt", weights_only=True)
    state = stored["state_dict"]

    def constant(number: float) -> dict[str, torch.Tensor]:
        return {key: torch.full_like(tensor, number) for key, tensor in state.items()}

    stored["state_dict"] = constant(value)
    if own is not None:
        stored |= {"current_model_state": constant(own), "averaging_state": {"n_averaged": torch.tensor(3)}}
    torch.save(stored, run / "last.ckpt")


def export(run: Path, checkpoint: Checkpoint) -> Bundle:
    out = run.parents[1] / "bundle"
    export_bundle([run], out, checkpoint=checkpoint)
    return Bundle.load(out)


def values(member: Member) -> list[float]:
    """Of all its weights."""
    _, network = member.loaded()
    return torch.cat([weight.detach().flatten() for weight in network.parameters()]).tolist()


def test_the_averages_of_a_run_can_be_exported(tmp_path: Path) -> None:
    """recipe=best keeps whichever validates better; its last step's own and averaged weights stay at hand."""
    cohort = write_cohort(tmp_path / "cohort" / "scans")
    machine = ["stage=fine", *tiny("resenc", cohort, tmp_path), "logger=csv"]
    settings = [*machine, "training.epochs=2", "training.iterations=2", "recipe=best", "training.ema=0.5"]
    own_alone = ["training.ema=null", "recipe.checkpoint=best"]
    for name, changes in (("averaged", []), ("own", own_alone)):
        load("train").main(compose_job("train", *settings, f"name={name}", *changes))
    own, averaged = (tmp_path / name / "fine_resenc_cte" / "fold_0" for name in ("own", "averaged"))
    exported = {}
    for choice, folder in (("last", own), ("last", averaged), ("ema", averaged)):
        out = tmp_path / f"{choice}_{folder.parts[-3]}"
        done = CliRunner().invoke(app, ["export", str(folder), "--out", str(out), "--checkpoint", choice])
        assert done.exit_code == 0, done.output
        (member,) = Bundle.load(out).members
        exported[out.name] = member.loaded()[1].state_dict()
    # Averaging does not change the training.
    for key, value in exported["last_own"].items():
        torch.testing.assert_close(exported["last_averaged"][key], value)
    assert any(
        not torch.allclose(exported["ema_averaged"][key], v) for key, v in exported["last_own"].items()
    )
    done = CliRunner().invoke(app, ["export", str(own), "--out", str(tmp_path / "no"), "--checkpoint", "ema"])
    assert isinstance(done.exception, HnsegError)
    assert not (tmp_path / "no").exists()
