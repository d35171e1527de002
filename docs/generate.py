"""The pages that MkDocs makes from the code when it builds: commands, configuration, paper against hnseg."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

from hnseg.cli import app
from hnseg.cli.plan import choose, compare, compose, read_yaml

CONF = Path(__file__).parents[1] / "conf"
COMMANDS = """# Commands

`hnseg train` and `hnseg infer` take Hydra's `KEY=VALUE`; see [Configuration](configuration.md).
"""
KEYS = """# Configuration

Hydra composes each training from these files, one of each group, and each call of `hnseg infer` from
`infer.yaml`. `--cfg job` behind a command shows the result, `hnseg conf DIR` copies the files out for
editing. `hnseg/config.py` has the type and range of each key.
"""
TABLES = """# Paper against hnseg

What the paper prints and what the default configuration holds; `hnseg plan` prints the same. Where the
paper contradicts itself or its release, an erratum says what is used and why.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    pages = {"cli": cli, "configuration": configuration}
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    files.append(File.generated(config, "explanation/paper.md", content=paper()))
    return files


def cli() -> str:
    """The help of each command, as the terminal prints it."""
    parts = [COMMANDS]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        if name in ("train", "infer"):
            continue
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "100", "NO_COLOR": "1"}).output
        parts.append(f"## hnseg {name}\n\n```text\n{shown.strip()}\n```\n")
    return "\n".join(parts)


def configuration() -> str:
    """Each file of conf/, with its comments."""
    parts = [KEYS]
    for path in [CONF / "train.yaml", CONF / "infer.yaml"]:
        text = path.read_text(encoding="utf-8").partition("\nhydra:")[0]
        parts.append(f"## {path.name}\n\n```yaml\n{text.strip()}\n```\n")
    for group in sorted(folder for folder in CONF.iterdir() if folder.is_dir()):
        parts.append(f"## {group.name}\n")
        for path in sorted(group.rglob("*.yaml")):
            name = path.relative_to(group).with_suffix("").as_posix()
            parts.append(
                f"### {group.name}={name}\n\n```yaml\n{path.read_text(encoding='utf-8').strip()}\n```\n"
            )
    return "\n".join(parts)


def paper() -> str:
    """The paper's tables beside the composed configuration, as `hnseg plan` has them, and the errata."""
    parts = [TABLES]
    tables, _ = choose([])
    for name, table in tables.items():
        config = compose([f"stage={table['stage']}", f"model={table['model']}"])
        parts.append(f"## {name}: {table['title']}\n\n| property | paper | hnseg | |\n|---|---|---|---|")
        for row in compare(name, table["rows"], config):
            cells = [cell.replace("\n", "<br>").replace("|", "\\|") for cell in row.cells]
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    parts.append("## Errata\n")
    parts += [f"- **{', '.join(e['tables'])}, {e['row']}**: {e['reason']}" for e in read_yaml("errata.yaml")]
    return "\n".join(parts) + "\n"
