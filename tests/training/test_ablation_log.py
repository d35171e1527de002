"""An ablation on W&B, read back from disk."""

import json

from wandb_files import offline_runs

from hnseg.training.wandb_runs import log_ablation

ROWS = [
    {"arm": "full", "center": None, "cases": 3, "gtvp_dsc": 0.75, "gtvp_dsc_note": "optimistic", "p": None},
    {"arm": "resenc", "center": None, "cases": 3, "gtvp_dsc": 0.5, "gtvp_dsc_note": None, "p": 0.25},
    {"arm": "full", "center": "A", "cases": 2, "gtvp_dsc": 0.625},
]


def test_an_ablation_is_a_table_and_a_run_an_arm(tmp_path):
    log_ablation(tmp_path, ROWS)
    runs = {found.run.display_name: found for found in offline_runs(tmp_path)}
    assert set(runs) == {"ablation", "full", "resenc"}
    assert {found.run.run_group for found in runs.values()} == {tmp_path.name}
    assert {name: found.run.job_type for name, found in runs.items()} == {
        "ablation": "ablation",
        "full": "ablation_arm",
        "resenc": "ablation_arm",
    }
    full, resenc = (runs[arm].summary for arm in ("full", "resenc"))
    assert (full["gtvp_dsc"], full["gtvp_dsc_note"], full["A/gtvp_dsc"]) == (0.75, "optimistic", 0.625)
    assert (resenc["gtvp_dsc"], resenc["p"]) == (0.5, 0.25)
    assert "p" not in full  # not defined for the baseline
    (path,) = runs["ablation"].path.parent.rglob("*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["arm", "center", "cases", "gtvp_dsc", "gtvp_dsc_note", "p"]
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        {**dict.fromkeys(table["columns"]), **row} for row in ROWS
    ]


def test_logged_again_it_replaces_what_was_not_sent(tmp_path):
    log_ablation(tmp_path, ROWS)
    before = {found.run.run_id for found in offline_runs(tmp_path)}
    log_ablation(tmp_path, ROWS[:2])
    after = offline_runs(tmp_path)
    assert len(after) == 3
    assert {found.run.run_id for found in after} == before
    assert not any("A/gtvp_dsc" in found.summary for found in after)
