"""An ablation on W&B, read back from disk."""

import json

from wandb_files import offline_runs

from hnseg.training.wandb_runs import log_ablation

ROWS = [
    {"arm": "full", "center": None, "cases": 3, "gtvp_dsc": 0.75, "gtvp_dsc_note": "optimistic", "p": None},
    {"arm": "full", "center": "A", "cases": 2, "gtvp_dsc": 0.625},
]


def test_an_ablation_is_a_table_and_logged_again_it_replaces_what_was_not_sent(tmp_path):
    for rows in (ROWS[:1], ROWS):
        log_ablation(tmp_path, rows)
        (found,) = offline_runs(tmp_path)
        assert (found.run.display_name, found.run.run_group) == ("ablation", tmp_path.name)
        (path,) = found.path.parent.rglob("*.table.json")
        table = json.loads(path.read_text())
        assert table["columns"] == ["arm", "center", "cases", "gtvp_dsc", "gtvp_dsc_note", "p"]
        shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert shown == [{**dict.fromkeys(table["columns"]), **row} for row in rows]
