"""What a tuning found, as a table in the terminal and as a sentence in the bundle's model card."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hnseg.metrics import Scores
from hnseg.tuning.postprocess import Setting, Tuning


def print_tuning(tuning: Tuning, console: Console | None = None) -> None:
    """Prints the rules so far, those that were chosen, and the official scores of each."""
    table = Table(title=f"Post-processing, {tuning.cases} cases out of fold")
    table.add_column("")
    for heading in ("nothing dropped", "so far", "chosen", "cross-validated"):
        table.add_column(heading, justify="right")
    settings = (tuning.nothing, tuning.present, tuning.chosen)
    bars = zip(*(_bars(setting) for setting in settings), strict=True)
    for name, row in zip(("GTVp least ml", "GTVn least ml", "GTVn least SUVpeak"), bars, strict=True):
        table.add_row(name, *row, "")
    scores = zip(*(_official(one.scores) for one in settings), tuning.cross_validated, strict=True)
    for name, figures in zip(("GTVp DSC", "GTVn DSCagg", "GTVn F1agg"), scores, strict=True):
        table.add_row(name, *map(_figure, figures))
    table.add_row("GTVn false", *(str(one.scores["fp"]) for one in settings), "")
    table.add_row("GTVn missed", *(str(one.scores["fn"]) for one in settings), "")
    console = console or Console()
    console.print(table)
    console.print(
        "Chosen: what drops least within one standard error of the best; nothing, where that does not help "
        "cases that had no say in it (cross-validated). The chosen scores are of the cases that chose: they "
        "flatter."
    )


def model_card_note(tuning: Tuning) -> str:
    """What the model card says of where the rules come from."""
    before, after = ("/".join(map(_figure, _official(one.scores))) for one in (tuning.nothing, tuning.chosen))
    cross_validated = "/".join(map(_figure, tuning.cross_validated))
    return (
        "min_component_ml and node_suv_peak were chosen by hnseg tune-postprocess on "
        f"{tuning.cases} cases out of fold: GTVp DSC/GTVn DSCagg/GTVn F1agg {before} with nothing dropped, "
        f"{after} with them, cross-validated {cross_validated}"
    )


def _bars(setting: Setting) -> list[str]:
    return [f"{bar:g}" if bar else "none" for bar in (setting.gtvp.ml, *setting.gtvn)]


def _official(scores: Scores) -> tuple[float | None, float, float]:
    return scores["gtvp_dsc"], scores["gtvn_dsc_agg"], scores["gtvn_f1_agg"]


def _figure(score: float | None) -> str:
    return "-" if score is None else f"{score:.4f}"
