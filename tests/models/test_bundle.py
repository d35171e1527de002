"""Bundles: the same network comes out as went in, and nothing else is taken for one."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from entry import ROOT
from members import TINY, card, make_bundle, write_run

from hnseg.card import Decision, plain
from hnseg.errors import HnsegError
from hnseg.models import nets
from hnseg.models.bundle import Bundle, export_bundle
from hnseg.models.checkpoint import read_card


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path, card("coarse", "plainconv"), card("fine", "resenc", input={"cte": True}))


@pytest.mark.parametrize("architecture", TINY)
def test_a_member_gives_the_checkpoints_own_logits(tmp_path: Path, architecture: str) -> None:
    (member,) = make_bundle(tmp_path, card("fine", architecture)).members
    restored = member.network()
    image = torch.randn(1, 2, 16, 16, 16)
    stored = torch.load(tmp_path / "runs" / member.card.name / "best.ckpt", weights_only=True)
    trained = nets.build(**member.card.network).eval()
    trained.load_state_dict({key.removeprefix("network."): w for key, w in stored["state_dict"].items()})
    with torch.no_grad():
        assert not torch.equal(restored(image), trained(image))
        member.load_into(restored)
        assert torch.equal(restored(image), trained(image))


def test_members_know_their_stage_and_the_bundle_its_decision(tmp_path: Path) -> None:
    decision = {"rule": "argmax", "min_component_ml": 0.5, "mirror": True}
    bundle = make_bundle(
        tmp_path, card("coarse", "plainconv"), card("fine", "segresnet", decision=decision, fold=3)
    )
    assert bundle.decision == Decision(**decision)
    (fine,) = bundle.of_stage("fine")
    assert fine.card.fold == 3
    assert fine.stage.spacing == (3.0, 3.0, 3.0)
    assert bundle.of_stage("localiser") == []


def test_nothing_in_it_is_pickled(bundle: Bundle) -> None:
    files = [file for file in bundle.path.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"README.md", "bundle.yaml", "member.yaml", "weights.safetensors"}
    for file in files:
        if file.name == "README.md":
            continue
        if file.suffix == ".yaml":
            yaml.safe_load(file.read_text())  # plain data: no tags that build objects
        else:
            assert file.read_bytes()[8:9] == b"{"  # a safetensors header, neither zip nor pickle


@pytest.mark.parametrize("file", ["weights.safetensors", "member.yaml"])
def test_an_altered_or_missing_file_is_named(bundle: Bundle, file: str) -> None:
    path = next(bundle.path.rglob(file))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HnsegError, match=rf"{file}: altered"):
        Bundle.load(bundle.path)
    path.unlink()
    with pytest.raises(HnsegError, match=rf"{file}: missing"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/b", "a\\b", "x" * 300])
def test_a_members_name_is_no_path(tmp_path: Path, bundle: Bundle, name: str) -> None:
    with pytest.raises(HnsegError, match="name="):
        read_card({**plain(bundle.members[0].card), "name": name}, tmp_path / "best.ckpt")
    listing = yaml.safe_load((bundle.path / "bundle.yaml").read_text())
    listing["members"][name] = listing["members"].popitem()[1]
    (bundle.path / "bundle.yaml").write_text(yaml.safe_dump(listing))
    with pytest.raises(HnsegError, match=r"bundle\.yaml: damaged \(members"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize(
    "listing", [b"", b"[1, 2]", b"a: [", b"format: 3", b"\xff\xfe\x00", b"!!python/object:os.system {}"]
)
def test_a_damaged_listing_is_one_line(bundle: Bundle, listing: bytes) -> None:
    (bundle.path / "bundle.yaml").write_bytes(listing)
    with pytest.raises(HnsegError, match=r"(bundle\.yaml: damaged|not a bundle).*export"):
        Bundle.load(bundle.path)


def test_a_listing_without_a_members_file_is_told_by_its_key(bundle: Bundle) -> None:
    path = bundle.path / "bundle.yaml"
    listing = yaml.safe_load(path.read_text())
    listing["members"]["fine_resenc_fold_0"].pop("weights.safetensors")
    path.write_text(yaml.safe_dump(listing))
    with pytest.raises(HnsegError, match=r"fine_resenc_fold_0\.weights\.safetensors: Field required"):
        Bundle.load(bundle.path)


def test_another_format_names_the_command_that_makes_it_anew(bundle: Bundle, tmp_path: Path) -> None:
    listing = yaml.safe_load((bundle.path / "bundle.yaml").read_text())
    (bundle.path / "bundle.yaml").write_text(yaml.safe_dump(listing | {"format": 1}))
    with pytest.raises(HnsegError, match=r"format 1, .*hnseg export"):
        Bundle.load(bundle.path)
    run = tmp_path / "runs" / "fine_resenc_fold_0"
    stored = torch.load(run / "best.ckpt", weights_only=True)
    del stored["hnseg"]["format"]
    torch.save(stored, run / "best.ckpt")
    with pytest.raises(HnsegError, match=r"best\.ckpt: format 1, hnseg export reads 3"):
        export_bundle([run], tmp_path / "other")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: None])
def test_what_is_no_bundle_is_told(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "thing")
    with pytest.raises(HnsegError, match=r"thing: not a bundle.*hnseg export"):
        Bundle.load(tmp_path / "thing")


def test_weights_of_another_network_are_told(bundle: Bundle) -> None:
    coarse, fine = bundle.members
    with pytest.raises(HnsegError, match=r"weights\.safetensors: cannot be loaded"):
        coarse.load_into(fine.network())


def test_unfinished_runs_are_all_named(tmp_path: Path) -> None:
    for fold in range(3):
        name = f"fold_{fold}"
        write_run(tmp_path / "runs", card("fine", "segresnet", name=name), finished=fold == 0)
    with pytest.raises(HnsegError, match=r"not finished:.*fold_1.*fold_2"):
        export_bundle([tmp_path / "runs"], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_folder_without_a_run_is_told_also_beside_others(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", card("fine", "segresnet"))
    for sources in (["nothing"], ["runs", "nothing"]):
        with pytest.raises(HnsegError, match=r"^[^,]*nothing: no run below"):
            export_bundle([tmp_path / name for name in sources], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: bytes | None) -> None:
    checkpoint = write_run(tmp_path / "runs", card("fine", "segresnet")) / "best.ckpt"
    if damage is None:
        checkpoint.unlink()
    else:
        checkpoint.write_bytes(damage)
    with pytest.raises(HnsegError, match=r"best\.ckpt: cannot be read"):
        export_bundle([tmp_path / "runs"], tmp_path / "bundle")


def test_weights_that_have_diverged_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", card("fine", "segresnet"))
    stored = torch.load(folder / "best.ckpt", weights_only=True)
    next(iter(stored["state_dict"].values()))[0] = float("nan")
    torch.save(stored, folder / "best.ckpt")
    with pytest.raises(HnsegError, match=r"fine_segresnet_fold_0: its weights are no numbers"):
        export_bundle([folder], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    for root in ("a", "b"):
        write_run(tmp_path / root, card("fine", "segresnet"))
    with pytest.raises(HnsegError, match=r"a second member fine_segresnet_fold_0; .*arm=NAME"):
        export_bundle([tmp_path / "a", tmp_path / "b"], tmp_path / "bundle")


def test_members_of_different_recipes_are_refused(tmp_path: Path) -> None:
    other = {"rule": "argmax", "min_component_ml": 0.1, "mirror": True}
    with pytest.raises(HnsegError, match=r"disagree on recipe\.decision"):
        make_bundle(tmp_path, card("fine", "segresnet"), card("fine", "resenc", decision=other))


ARMS = {
    "all": {"resenc", "resenc_cte", "segresnet", "segresnet_cte"},
    "full": {"resenc_cte", "segresnet"},
    "no_cte": {"resenc", "segresnet"},
    "srn_cte": {"segresnet_cte"},
    "resenc_cte": {"resenc_cte"},
    "resenc": {"resenc"},
    "segresnet": {"segresnet"},
}


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_takes_the_papers_members_and_leaves_the_other_stages_whole(tmp_path, name):
    kinds = [(model, cte) for model in ("resenc", "segresnet") for cte in (False, True)]
    fine = [card("fine", model, name=f"{model}{'_cte' * cte}", input={"cte": cte}) for model, cte in kinds]
    bundle = make_bundle(tmp_path, card("localiser", "plainconv"), card("coarse", "plainconv"), *fine)
    arm = yaml.safe_load((ROOT / "conf" / "arms" / f"{name}.yaml").read_text())
    assert arm["name"] == name
    chosen = bundle.arm(name, arm["members"])
    assert {member.card.name for member in chosen.of_stage("fine")} == ARMS[name]
    assert (len(chosen.of_stage("localiser")), len(chosen.of_stage("coarse"))) == (1, 1)


def test_an_arm_that_the_bundle_cannot_fill_is_refused(tmp_path):
    bundle = make_bundle(tmp_path, card("fine", "resenc"))
    with pytest.raises(HnsegError) as caught:
        bundle.arm("full", [{"model": "resenc", "cte": True}])
    assert "arms=full" in str(caught.value)
    assert "no fine member resenc with enhancement, only resenc without enhancement" in str(caught.value)
