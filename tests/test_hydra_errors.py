"""Mistakes as Hydra really reports them, told in one line."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hnseg.app import explain
from hnseg.errors import HnsegError


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conf")
    (folder / "train.yaml").write_text(
        "defaults: [_self_, {stage: fine}, {experiment: null}]\nfold: 0\ndata: {root: '???', cases: 3}\n"
    )
    (folder / "broken.yaml").write_text("fold: [0\nseed: 1\n")
    for file in ("stage/fine", "stage/coarse", "experiment/long"):
        (folder / file).with_suffix(".yaml").parent.mkdir(exist_ok=True)
        (folder / file).with_suffix(".yaml").write_text("spacing: 1.0\n")
    return folder


def explanation(conf: Path, *overrides: str, config: str = "train") -> str | None:
    with initialize_config_dir(str(conf), version_base="1.3"), pytest.raises(Exception) as mistake:  # noqa: PT011
        compose(config, list(overrides))
    return explain(mistake.value, ["stage", "experiment"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("stage=fin", ["stage=fin: no such choice", "did you mean fine?", "coarse, fine"]),
        ("stage=", ["stage=: no such choice", "coarse, fine"]),
        ("stagee=fine", ["stagee: no such key", "did you mean stage?"]),
        ("experimnt=long", ["experimnt: no such key", "did you mean experiment?"]),
        ("data.rooot=/scans", ["data.rooot: no such key", "did you mean data.root?"]),
        ("data.root.here=1", ["data.root.here: no such key"]),
        ("unheard=1", ["unheard: no such key", "data, experiment, fold, stage"]),
        ("stage", ["stage: cannot be read as key=value"]),
        ("data.cases={a", ["data.cases={a: cannot be read as key=value"]),
        ("data.cases=my scans (1)", ["cannot be read", """'KEY="VALUE"'"""]),
        ("fold=0,1", ["fold=0,1: ", "add -m", """'KEY="VALUE"'"""]),
        ("stage=coarse,fine", ["stage=coarse,fine: ", "add -m"]),
        ("~nothing", ["nothing", "does not exist"]),
    ],
)
def test_one_line_with_the_key_the_value_and_the_remedy(conf: Path, override: str, parts: list[str]) -> None:
    line = explanation(conf, override)
    assert line is not None
    assert "\n" not in line
    for part in parts:
        assert part in line


def test_a_broken_yaml_file_is_named(conf: Path) -> None:
    line = explanation(conf, config="broken")
    assert line is not None
    assert str(conf / "broken.yaml") in line
    assert "line 2" in line
    assert "\n" not in line


def test_a_wrong_type_names_the_key_and_the_value(conf: Path) -> None:
    line = explanation(conf, "hydra.job.num=many")
    assert line is not None
    assert line.startswith("hydra.job.num=many: ")
    assert "Integer" in line
    assert "\n" not in line


def test_a_value_left_open_is_asked_for_by_its_key(conf: Path) -> None:
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("train")
    with pytest.raises(Exception, match=r"data\.root") as mistake:
        config.data.root  # noqa: B018
    assert explain(mistake.value) == "data.root: a value is needed; add data.root=VALUE"


def refuse() -> None:
    raise HnsegError("patch=[5, 5, 5]: does not fit")


def test_a_refusal_inside_a_constructor_speaks_for_itself() -> None:
    config = OmegaConf.create({"_target_": f"{__name__}.refuse"})
    with pytest.raises(InstantiationException) as mistake:
        instantiate(config)
    assert explain(mistake.value) == "patch=[5, 5, 5]: does not fit"


def test_a_key_that_the_code_gets_wrong_is_a_defect() -> None:
    config = OmegaConf.create({"fold": 0})
    OmegaConf.set_struct(config, True)
    with pytest.raises(AttributeError) as defect:
        config.flod  # noqa: B018
    assert explain(defect.value) is None
    assert explain(RuntimeError("shapes differ")) is None
