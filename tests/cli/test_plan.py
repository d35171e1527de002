"""The paper's tables beside the composed configuration: no difference without a reason, and the reverse."""

import copy

import pytest
from entry import hnseg, refused

from hnseg.cli.plan import compare, compose, read_yaml

TABLES, ERRATA = read_yaml("tables.yaml"), read_yaml("errata.yaml")


@pytest.fixture(scope="module")
def configs():
    """Table → the configuration of its stage and model under the defaults, which are the paper's."""
    pairs = {(table["stage"], table["model"]) for table in TABLES.values()}
    composed = {pair: compose([f"stage={pair[0]}", f"model={pair[1]}"]) for pair in pairs}
    return {name: composed[table["stage"], table["model"]] for name, table in TABLES.items()}


@pytest.mark.parametrize("name", TABLES)
def test_the_configuration_is_the_paper_s_or_an_erratum_says_why_not(configs, name):
    rows = compare(name, TABLES[name]["rows"], configs[name])
    assert [row for row in rows if not row.same and row.reason is None] == []


def test_every_erratum_explains_a_difference(configs):
    explained = {
        (name, row.name)
        for name, table in TABLES.items()
        for row in compare(name, table["rows"], configs[name])
        if row.reason
    }
    assert {(name, erratum["row"]) for erratum in ERRATA for name in erratum["tables"]} == explained


@pytest.mark.parametrize("name", TABLES)
def test_another_value_of_any_key_is_an_unexplained_difference(configs, name):
    for row, keys in TABLES[name]["rows"].items():
        (erratum,) = [e for e in ERRATA if name in e["tables"] and e["row"] == row] or [{}]
        for key in (erratum.get("used") or keys).keys() - {"paper"}:
            changed = copy.deepcopy(configs[name])
            *parents, last = key.split(".")
            node = changed
            for parent in parents:
                node = node[parent]
            node[last] = "another value"
            assert [one.same or one.reason for one in compare(name, {row: keys}, changed)] == [None], key


def test_the_command_shows_the_tables_and_marks_the_errata():
    done = hnseg("plan", "stage=coarse")
    assert done.returncode == 0
    assert "Table 2:" in done.stdout
    assert "Table 1:" not in done.stdout
    assert "erratum: Five entries for the six" in done.stdout
    assert "explained by an erratum, 0 DIFFERENT" in done.stdout


def test_a_difference_is_marked_and_status_1():
    done = hnseg("plan", "model=segresnet", "training.epochs=299", "optimizer.clip=1")
    assert done.returncode == 1
    *marked, last = [line for line in done.stdout.splitlines() if "DIFFERENT" in line]
    names = [line.split("│")[1].strip() for line in marked]
    assert names == ["Epochs", "Learning Rate", "Gradient Clipping"]
    assert last.endswith("3 DIFFERENT")


def test_differences_alone_are_shown_when_asked():
    whole, brief = (hnseg("plan", "stage=coarse", *option) for option in ((), ("--differences",)))
    rows = [line for line in brief.stdout.splitlines() if line.startswith("│")]
    assert "│ same" not in brief.stdout
    assert "erratum: Five entries for the six" in brief.stdout
    assert 0 < len(rows) < len(whole.stdout.splitlines()) / 2
    assert brief.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.patches=3"], "training.patches"),
        (["stage=fine", "model=plainconv"], "stage=fine model=plainconv: the paper has no table"),
    ],
)
def test_a_wrong_override_is_one_line_and_status_2(overrides, message):
    assert message in refused(hnseg("plan", *overrides))
