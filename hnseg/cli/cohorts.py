"""Commands on cohorts: phantom, audit, propose-heads, cache."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from hnseg.cli.app import DATA, Json, Root, Workers, app, exists, say, suggest
from hnseg.errors import HnsegError, few
from hnseg.files import print_table, write_json, write_table


@app.command(rich_help_panel=DATA)
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    cases: Annotated[int, typer.Option(min=1, help="How many.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    size: Annotated[
        Literal["small", "full"], typer.Option(help="full: grids as large as real scans'.")
    ] = "small",
    workers: Workers = None,
) -> None:
    """Make a synthetic PET/CT cohort in the HECKTOR layout."""
    say(f"making {cases} synthetic patients in {out}")
    from hnseg.data.phantom import make_cohort

    make_cohort(out, cases, seed, size=size, workers=workers)
    print(f"{cases} cases in {out}")
    suggest(f"hnseg audit {out}")


@app.command(rich_help_panel=DATA)
def audit(
    root: Root,
    json_file: Json = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the whole table here.")
    ] = None,
    workers: Workers = None,
) -> None:
    """List a cohort's faults. Exit status 1 if a case is unusable."""
    say(f"auditing {root}")
    from hnseg.imaging.audit import audit as audit_cases
    from hnseg.imaging.audit import audit_table, print_audit
    from hnseg.imaging.case import find_orphans, read_cases

    audits = audit_cases(read_cases(root, strict=False), workers)
    orphans = find_orphans(root) if root.is_dir() else []
    print_audit(audits, orphans)
    if json_file:
        write_json({"cases": [case.as_json() for case in audits], "orphans": orphans}, json_file)
    if csv_file:
        table = audit_table(audits)
        write_table(csv_file, list(table[0]), table)
    if not all(case.usable for case in audits):
        raise typer.Exit(1)
    suggest(f"hnseg propose-heads {root}")


@app.command("propose-heads", rich_help_panel=DATA)
def propose_head_masks(
    root: Root,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: ROOT/heads.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many cases, at random.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same cases.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Redo masks that are there.")] = False,
    workers: Workers = None,
) -> None:
    """Write head masks from the CT's anatomy, to correct. Exit status 1 if a CT cannot be read."""
    say(f"proposing head masks of {count} cases of {root}")
    from hnseg.data.heads import draw_cases, propose_heads, summary
    from hnseg.imaging.case import HEADS, read_cases

    cases = read_cases(root, strict=False)
    if out is None and not root.is_dir():
        raise HnsegError(f"{root}: a list of cases has no folder for the masks; name one with --out DIR")
    out = out or root / HEADS
    outcomes = propose_heads(draw_cases(cases, count, seed), out, overwrite=overwrite, workers=workers)
    print(summary(outcomes, out))
    if any(outcome.head is None for outcome in outcomes):
        raise typer.Exit(1)
    suggest(f"hnseg train stage=localiser model=plainconv fold=all data.root={root} data.head_labels={out}")


@app.command(rich_help_panel=DATA)
def cache(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Of prepared volumes (data.cache).", callback=exists)
    ] = Path("cache"),
    runs: Annotated[
        Path, typer.Option(metavar="DIR", help="Runs whose volumes are of use.", callback=exists)
    ] = Path("runs"),
    prune: Annotated[bool, typer.Option("--prune", help="Remove what none of the runs uses.")] = False,
) -> None:
    """Show the size of a cache by stage grid and cohort, and what no run uses."""
    say(f"measuring {folder}")
    from hnseg.data.cache import remove_entries
    from hnseg.training.cache_use import find_shares

    shares, strange = find_shares(folder, runs)
    rows = [
        [
            share.folder,
            share.grid,
            str(share.cohort or "–"),
            str(len(share.volumes)),
            _size(share.bytes),
            str(share.runs),
        ]
        for share in shares
    ]
    print_table(["volumes", "grid (x, y, z)", "cohort", "cases", "size", "runs"], rows)
    unused = [share for share in shares if not share.runs]
    volumes = [volume for share in unused for volume in share.volumes]
    spare = f"{len(volumes)} volumes, {_size(sum(share.bytes for share in unused))}"
    print(f"{folder}: {_size(sum(share.bytes for share in shares))}; used by no run in {runs}: {spare}")
    if strange:
        names = few([str(path) for path in strange])
        print(f"warning: of another version, and counted as using nothing: {names}", file=sys.stderr)
    if prune:
        say(f"removing {spare}")
        remove_entries(volumes)
    elif volumes:
        suggest(f"hnseg cache {folder} --runs {runs} --prune")


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
