"""Several arms as rows, and the rows as CSV, Markdown, LaTeX and on the terminal."""

import csv
import json
import re
from dataclasses import replace

import pytest
from scored import cohort, patient

from hnseg.evaluation.score import CohortScore, Options
from hnseg.evaluation.statistics import compare, holm
from hnseg.evaluation.tables import ablation_rows, latex, markdown, write_tables


def report(seed: int) -> CohortScore:
    """Twelve patients of MDA, the others of no centre."""
    cases = [
        replace(case, center="MDA" if number < 12 else "") for number, case in enumerate(cohort(seed, 60))
    ]
    return CohortScore(Options(), cases)


@pytest.fixture(scope="module")
def arms():
    return {"full": report(0), "no_cte": report(1), "50% & x": report(2)}


@pytest.fixture(scope="module")
def rows(arms):
    return ablation_rows(arms)


def test_an_arms_row_holds_its_official_scores_and_its_difference_to_the_first(arms, rows):
    full, no_cte, _ = rows[:3]
    assert [row["arm"] for row in rows[:3]] == list(arms)
    for name in ("gtvp_dsc", "gtvn_dsc_agg", "gtvn_f1_agg", "segmentation_score_2026"):
        official = [arms[arm].official[name] for arm in ("full", "no_cte")]
        assert [full[name], no_cte[name]] == official
        assert no_cte[f"{name}_difference"] == official[1] - official[0]
        assert (
            no_cte[f"{name}_difference_low"] < official[1] - official[0] < no_cte[f"{name}_difference_high"]
        )
        assert full[f"{name}_difference"] is full[f"{name}_p"] is None
        p = [compare(arms[arm].cases, arms["full"].cases)[name].p for arm in list(arms)[1:]]
        assert [row[f"{name}_p"] for row in rows[1:3]] == p
        assert [row[f"{name}_p_holm"] for row in rows[1:3]] == holm(p)
    assert sorted(row["rank"] for row in rows[:3]) in ([1, 2, 3], [1.5, 1.5, 3], [1, 2.5, 2.5], [2, 2, 2])


def test_centres_have_rows_of_their_own(arms, rows):
    """Where the cases name any."""
    (row,) = (row for row in rows if (row["arm"], row["center"]) == ("no_cte", "MDA"))
    assert row["cases"] == 12
    assert row["gtvn_dsc_agg"] == arms["no_cte"].centers["MDA"].official["gtvn_dsc_agg"]
    assert row["gtvn_dsc_agg_note"] == "interval too narrow: fewer than 50 patients (12)"
    assert [row["center"] for row in rows[3:]] == ["", "MDA"] * 3
    cases = [replace(case, center="") for case in cohort(0, 8)]
    assert len(ablation_rows({"full": CohortScore(Options(), cases)})) == 1


def test_the_spread_is_that_of_the_open_choices():
    cases = [patient(f"A-{i}", gtvp=(0, 0, 0) if i else (80, 100, 100)) for i in range(4)]
    cases[0].detections[6, "group"] = cases[0].counts.lesions._replace(fp=1)
    (row,) = ablation_rows({"full": CohortScore(Options(), [replace(case, center="") for case in cases])})
    assert (row["gtvp_dsc_least"], row["gtvp_dsc_most"]) == pytest.approx((0.2, 0.95))
    assert (row["gtvn_f1_agg_least"], row["gtvn_f1_agg_most"]) == pytest.approx((8 / 9, 1))


def test_csv_has_every_digit_and_rows_are_plain_data(rows, tmp_path):
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    write_tables(rows, tmp_path)
    with (tmp_path / "ablation.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    for line, row in zip(read, rows, strict=True):
        expected = row | {"center": {None: "all", "": "(no centre)"}.get(row["center"], row["center"])}
        known = {key: str(value) for key, value in expected.items() if value not in (None, "")}
        assert {key: value for key, value in line.items() if value} == known
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.csv", "ablation.md", "ablation.tex"]


def test_markdown_is_a_table_whatever_the_arms_are_called(rows):
    for block in re.findall(r"(?:^\|.*\n)+", markdown(rows), re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
    full = rows[0]
    numbers = [f"{full[f'gtvp_dsc{end}']:.4f}" for end in ("", "_low", "_high")]
    assert "| full | 60 | {} [{}, {}] |".format(*numbers) in markdown(rows)


def test_latex_is_escaped_and_ruled_by_booktabs(rows):
    text = latex(rows)
    assert r"50\% \& x" in text
    assert r"no\_cte" in text
    for block in re.findall(r"\\begin{tabular}{(l+)}(.*?)\\end{tabular}", text, re.S):
        columns, body = block
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}
        assert body.split()[0] == r"\toprule"
    assert not re.search(r"(?<!\\)[%#_]", text)
