"""Draws the figures of the README and the documentation.

    python docs/figures/make.py pipeline          pipeline.svg, of the configuration
    python docs/figures/make.py demo runs/demo    overlay.png and report.png, of what `make demo` left

The numbers in pipeline.svg are those of conf/; nothing is typed here that can be read.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from xml.sax.saxutils import escape

from hnseg.config import Job, compose_job

HERE = Path(__file__).parent
CASE = "MDA-1006"  # of the demo's test cohort: a primary tumour and nodes
# Readable on white and on dark pages alike.
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #5b6b7b } .title { font-weight: 600; font-size: 15px }
  rect { stroke-width: 1.5 } .box { fill: #0d948822; stroke: #0d9488 }
  .data { fill: #64748b22; stroke: #64748b }
  .arrow { stroke: #64748b; stroke-width: 1.5; fill: none; marker-end: url(#head) }
"""


def main() -> None:
    """Draws what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="figure", required=True)
    commands.add_parser("pipeline")
    commands.add_parser("demo").add_argument("folder", type=Path)
    asked = parser.parse_args()
    if asked.figure == "pipeline":
        (HERE / "pipeline.svg").write_text(pipeline(), encoding="utf-8")
    else:
        overlay(asked.folder)
        report(asked.folder)


def pipeline() -> str:
    """The pipeline as SVG: one box a stage, with its grid and its networks."""
    localiser, coarse = (job(stage, "plainconv") for stage in ("localiser", "coarse"))
    resenc, segresnet = (job("fine", model) for model in ("resenc", "segresnet"))
    boxes = [
        ("data", "PET/CT", ["CT in HU", "PET in SUV"]),
        ("box", "Localiser", [*grid(localiser), "CT → head", "PlainConvUNet"]),
        ("box", "Coarse stage", [*grid(coarse), "CT, PET → lesions", "PlainConvUNet × 5"]),
        (
            "box",
            "Fine stage",
            [*grid(resenc), f"ResEnc × 5: {channels(resenc)}", f"SegResNet × 5: {channels(segresnet)}"],
        ),
        ("data", "Mask", ["probabilities averaged,", "decided on the CT's grid:", "GTVp, GTVn"]),
    ]
    widths, gap, height = [104, 182, 158, 222, 200], 26, 132
    width = sum(widths) + gap * (len(widths) - 1) + 4
    parts, x = [], 2
    for number, ((kind, title, lines), wide) in enumerate(zip(boxes, widths, strict=True)):
        parts.append(f'<rect class="{kind}" x="{x}" y="4" width="{wide}" height="{height}" rx="8"/>')
        parts.append(f'<text class="title" x="{x + 12}" y="30">{escape(title)}</text>')
        parts += [
            f'<text x="{x + 12}" y="{54 + 19 * row}">{escape(line)}</text>' for row, line in enumerate(lines)
        ]
        if number + 1 < len(boxes):
            parts.append(f'<path class="arrow" d="M{x + wide + 3} {4 + height / 2} h{gap - 9}"/>')
        x += wide + gap
    size = 'viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7"'
    arrow = f'<marker id="head" {size} orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 8}" role="img">',
            "<title>PET/CT, then the localiser, the coarse stage, the fine stage, then the mask</title>",
            f"<style>{STYLE}</style>",
            f'<defs>{arrow}<path d="M0 0L8 4L0 8z" fill="#64748b"/></marker></defs>',
            *parts,
            "</svg>\n",
        ]
    )


def job(stage: str, model: str) -> Job:
    """The paper's training of a stage."""
    return compose_job([f"stage={stage}", f"model={model}"])


def grid(of: Job) -> list[str]:
    """A stage's voxels and their size."""
    x, y, z = of.stage.size
    spacing = [f"{mm:g}" for mm in of.stage.spacing]
    voxels = f"{x}³" if x == y == z else f"{x} × {y} × {z}"
    size = spacing[0] if len({*spacing}) == 1 else " × ".join(spacing)
    return [f"{voxels} voxels", f"of {size} mm"]


def channels(of: Job) -> str:
    """The input channels of a network, as the paper writes them."""
    return "x, x², ∛x, PET" if of.cte else "CT, PET"


def overlay(demo: Path) -> None:
    """A case of the demo with ground truth and prediction, as `hnseg evaluate --overlays` drew it."""
    from PIL import Image

    picture = Image.open(demo / "overlays" / f"{CASE}.png")
    picture.thumbnail((1000, 1000))
    picture.quantize(128).save(HERE / "overlay.png", optimize=True)


def report(demo: Path) -> None:
    """The first screen of the demo's report, in the system's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto((demo / "predictions" / "report.html").resolve().as_uri())
        page.wait_for_timeout(1500)
        page.screenshot(path=HERE / "report.png")
        browser.close()


if __name__ == "__main__":
    main()
