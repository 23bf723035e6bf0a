"""The committed copy of a finished run: pages, metrics, tables and figures in reports/, findings in README.md."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dvpo_lib.chain.pages import lay_out_page, neighbour_links
from dvpo_lib.chain.stages import StageError, read_stages
from dvpo_lib.common.marked_text import insert_between_marks
from dvpo_lib.experiments.grids.evidence import read_evidence
from dvpo_lib.reporting.findings.published import published_findings
from dvpo_lib.reporting.findings.worlds import order_findings
from dvpo_lib.reporting.names import BASE
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS
from dvpo_lib.reporting.statistics.study_rows import covered_cells, in_display_order

FINDINGS = "05_report/tables/findings.md"  # of an exported run, shown in README.md
PIECES = "runs.csv"  # of an exported folder: the runs of `python -m dvpo_lib piece`
COMPARISON = "evidence/comparison.csv"  # beside the exported folder: runs of the embedded world
REPORT = "report"  # the stage whose figures are exported as PNG
EVIDENCE = "evidence"  # the stage whose page depends on no run of the chain
POINTER = '<h1>The evidence</h1>\n<p>One page has the evidence for all runs: <a href="{page}">the evidence</a>.</p>'
LEFT_OUT = ("curves.csv", "history.csv", "losses.csv", "predicted.csv")  # step by step; the pages show them
MAX_EXPORT_BYTES = 10e6  # of the exported folders, which are committed
EMBEDDED_PNG = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+")  # a figure in a page


def export_results(project: Path, target: Path) -> None:
    """Copies pages, metrics and tables of a finished chain, and the report's figures as PNG files.

    Args:
        project: The root of the project that ran.
        target: The folder to fill. Folders of the chain's notebooks are replaced; others, such as tuning/, stay. If the
            folder above holds a page of the evidence, the run's own is a pointer to it.

    Raises:
        StageError: If the result is too large to commit.
    """
    stages = read_stages(project)
    folders = {Path(spec.results).relative_to("results").parts[0] for spec in stages.values()}
    for folder in folders:
        shutil.rmtree(target / folder, ignore_errors=True)
    for name, spec in stages.items():
        folder = project / spec.results
        beside = Path(spec.results).relative_to("results") / "notebook.html"
        if name == EVIDENCE and (target.parent / beside).is_file():  # one page of the evidence, for all exported runs
            (target / beside.parent).mkdir(parents=True)
            pointer = lay_out_page(
                POINTER.format(page=f"../../{beside.as_posix()}"), "The evidence", neighbour_links(stages, name)
            )
            (target / beside).write_text(pointer, encoding="utf-8")
            continue
        patterns = ("*.html", "*.json", "*.csv", "tables/*")
        for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
            if file.name in LEFT_OUT:
                continue
            copy = target / file.relative_to(project / "results")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".html":
                copy.write_text(shrink_figures(file.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copyfile(file, copy)
        if name == REPORT:
            page = target / folder.relative_to(project / "results")
            for number, picture in enumerate(_notebook_figures(folder / "notebook.ipynb"), start=1):
                (page / f"figure_{number:02d}.png").write_bytes(shrink_png(picture))
    size = sum(file.stat().st_size for folder in folders for file in (target / folder).rglob("*") if file.is_file())
    if size > MAX_EXPORT_BYTES:
        raise StageError(f"{target}: {size / 1e6:.1f} MB is too much to commit (limit: {MAX_EXPORT_BYTES / 1e6:.0f})")


def shrink_png(png: bytes) -> bytes:
    """Reduces a picture to 256 colours on white, unless that takes more bytes; the eye sees no difference."""
    with Image.open(io.BytesIO(png)) as picture:
        opaque = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    small = io.BytesIO()
    opaque.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def shrink_figures(page: str) -> str:
    """Applies `shrink_png` to the figures embedded in an HTML page."""
    return EMBEDDED_PNG.sub(lambda found: base64.b64encode(shrink_png(base64.b64decode(found[0]))).decode(), page)


def findings_of(folder: Path) -> str:
    """The findings of an exported folder, as Markdown: of its runs if pieces computed them, else of its report.

    Methods on a published model are also set beside those of the embedded world, if the folder above has evidence.
    """
    if (folder / PIECES).is_file():
        runs = read_evidence(folder / PIECES)
        text, embedded = published_findings(runs), read_evidence(folder.parent / COMPARISON)
        embedded = covered_cells(in_display_order(embedded[embedded["method"] != BASE]), FEWEST_SEEDS)
        if len(embedded):
            own = runs[(runs["variant"] == "") & runs["method"].isin(embedded["method"])]
            question = "Are methods in the same order as on the generated problems (the comparison of the evidence)?"
            text += f"\n{question}\n\n{order_findings(embedded, own)}\n"
        return text
    return (folder / FINDINGS).read_text(encoding="utf-8")


def insert_findings(readme: Path, findings: str, profile: str) -> None:
    """Puts the findings of an exported run between their marks in README.md, so that no number there is typed.

    Args:
        readme: The page.
        findings: Markdown, as of `findings_of`.
        profile: The run's, a target of the Makefile by the same name.

    A page without a place for this profile is left alone.

    Raises:
        StageError: If the place has no end.
    """
    start, end = f"<!-- findings: written by `make {profile}` -->\n", f"<!-- end of findings: {profile} -->"
    if start not in readme.read_text(encoding="utf-8"):
        return
    try:
        insert_between_marks(readme, start, end, findings)
    except ValueError as error:
        raise StageError(str(error)) from None


def _notebook_figures(notebook: Path) -> Iterator[bytes]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output["data"]["image/png"])
