"""Profiles: the same chain at another size, in a copy of the project, with outputs of its own.

A profile is a file profiles/NAME.yaml with only the settings that differ; it is laid over params.yaml (mapping by
mapping; a row of a table set to null is dropped). The chain then runs in a copy of the working tree: a temporary one
that is deleted again, or a kept one (`--workdir`) in which the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from dvpo_lib.chain.params import TABLES, load_params
from dvpo_lib.chain.stages import StageError, project_root, read_stages
from dvpo_lib.common.settings_tree import merge_trees, read_yaml, set_dotted

SYNCED = ".synced"  # in a copy: the list of files that came from the project
FINDINGS = "05_report/tables/findings.md"  # of an exported run, shown in README.md
REPORT = "report"  # the stage whose figures are exported as PNG
LEFT_OUT = ("curves.csv", "history.csv", "losses.csv", "predicted.csv")  # of an export
LARGEST_REPORT = 10e6  # bytes of the exported folder, which is committed
EMBEDDED = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+")  # a figure in a page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dvpo_lib profile`."""
    parser.add_argument("name", help="profiles/NAME.yaml")
    parser.add_argument("targets", nargs="*", help="stages, such as train@dvpo; all of them if none is given")
    parser.add_argument("--workdir", type=Path, help="a copy that is kept and resumed (default: a temporary one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a further setting, dotted")
    parser.add_argument("--export", type=Path, metavar="DIR", help="afterwards, copy pages, metrics and tables there")


def run(chosen: argparse.Namespace) -> int:
    """Runs the chain with a profile and returns DVC's exit code. Raises ConfigError for a wrong profile beforehand."""
    root = project_root()
    profile = root / "profiles" / f"{chosen.name}.yaml"
    further = {key: YAML(typ="safe").load(value) for key, _, value in (text.partition("=") for text in chosen.set)}
    load_params(root / "params.yaml", overlaid=profile, changes=further)
    workdir = (chosen.workdir or Path(tempfile.mkdtemp(prefix=f"dvpo-{chosen.name}-"))).resolve()
    make_copy(root, workdir, profile, further)
    environment = dict(os.environ)
    if chosen.workdir:  # a kept copy shares trained runs with the project; a temporary one trains for itself
        environment.setdefault("DVPO_STORE", str(root / ".runs"))
    else:
        environment["DVPO_STORE"] = str(workdir / ".runs")
    code = subprocess.run(
        [sys.executable, "-m", "dvpo_lib", "repro", *chosen.targets],
        cwd=workdir,
        env={**environment, "PYTHONPATH": str(workdir)},
    ).returncode
    if code:
        print(f"error: profile {chosen.name} did not finish; its copy is kept: {workdir}", file=sys.stderr)
        return code
    if chosen.export:
        export(workdir, root / chosen.export)
        insert_findings(root / "README.md", root / chosen.export / FINDINGS)
    if not chosen.workdir:
        shutil.rmtree(workdir)
    return 0


def make_copy(root: Path, workdir: Path, profile: Path, further: Mapping[str, Any] | None = None) -> None:
    """Brings a copy of the working tree (what git does not ignore) up to date, with the profile's params.yaml."""
    workdir.mkdir(parents=True, exist_ok=True)
    files = project_files(root)
    record = workdir / SYNCED
    for gone in set(record.read_text().split("\n") if record.is_file() else ()) - set(files):
        (workdir / gone).unlink(missing_ok=True)
    for file in files:
        source, target = root / file, workdir / file
        if not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    record.write_text("\n".join(files))
    params = merge_trees(read_yaml(root / "params.yaml"), read_yaml(profile), tables=TABLES)
    set_dotted(params, further or {})
    if (params.get("real") or {}).get("dir"):
        params["real"]["dir"] = str(root / params["real"]["dir"])  # ignored by git, so the copy has none of its own
    with open(workdir / "params.yaml", "w", encoding="utf-8") as file:
        YAML().dump(params, file)
    (workdir / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")  # a copy is no git repository


def project_files(root: Path) -> list[str]:
    """The files of the working tree that git tracks or would track, without dvc.lock and params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        raise StageError(f"a profile copies the files that git knows, and git says: {listed.stderr.strip()}")
    skipped = {"dvc.lock", "params.yaml", ""}  # a profile has its own
    return sorted(file for file in set(listed.stdout.split("\0")) - skipped if (root / file).is_file())


def export(project: Path, target: Path) -> None:
    """Copies pages, metrics and tables of a finished chain to `target`, and the report's figures as PNG.

    Histories step by step (LEFT_OUT) stay behind: the pages show them. Raises StageError where what is left is more
    than may be committed."""
    for folder in {Path(spec.results).relative_to("results").parts[0] for spec in read_stages(project).values()}:
        shutil.rmtree(target / folder, ignore_errors=True)  # what else lies there, of `make tune`, stays
    for name, spec in read_stages(project).items():
        folder = project / spec.results
        patterns = ("*.html", "*.json", "*.csv", "tables/*")
        for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
            if file.name in LEFT_OUT:
                continue
            copy = target / file.relative_to(project / "results")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".html":
                copy.write_text(with_small_pictures(file.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copyfile(file, copy)
        if name == REPORT:
            page = target / folder.relative_to(project / "results")
            for number, picture in enumerate(_pictures(folder / "notebook.ipynb"), start=1):
                (page / f"figure_{number:02d}.png").write_bytes(in_palette(picture))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    if size > LARGEST_REPORT:
        raise StageError(f"{target}: {size / 1e6:.1f} MB are too much to commit (at most {LARGEST_REPORT / 1e6:.0f})")


def in_palette(png: bytes) -> bytes:
    """A figure in 256 colours on white: fewer bytes, and no difference to the eye."""
    with Image.open(io.BytesIO(png)) as picture:
        opaque = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    small = io.BytesIO()
    opaque.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(png, small.getvalue(), key=len)


def with_small_pictures(page: str) -> str:
    """An HTML page with its embedded figures `in_palette`."""
    return EMBEDDED.sub(lambda found: base64.b64encode(in_palette(base64.b64decode(found[0]))).decode(), page)


def insert_findings(readme: Path, findings: Path) -> None:
    """Puts the findings of an exported run between their marks in README.md, so that no number there is typed in."""
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition("<!-- findings: written by `make reference` -->\n")
    _, end, after = rest.partition("<!-- end of findings -->")
    if not (start and end):
        raise StageError(f"{readme.name}: the marks around the findings are missing")
    readme.write_text(before + start + findings.read_text(encoding="utf-8") + end + after, encoding="utf-8")


def _pictures(notebook: Path) -> Iterable[bytes]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output["data"]["image/png"])
