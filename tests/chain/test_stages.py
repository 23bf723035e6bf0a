"""dvc.yaml: read as DVC reads it, in step with the notebooks, and a chain that does only what it must."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import BODY, ROOT, make_notebook, stage_command
from PIL import Image

from dvpo_lib.chain import cli, exports
from dvpo_lib.chain.commands import reproduction
from dvpo_lib.chain.commands.reproduction import CHAIN_LOCK
from dvpo_lib.chain.exports import export_results
from dvpo_lib.chain.params import SECTIONS, load_params
from dvpo_lib.chain.profiles import sync_copy
from dvpo_lib.chain.stages import open_stage, project_root, read_stages
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.import_graph import library_imports, notebook_source, reachable_files

# ---- dvc.yaml ----


def test_stages_are_read_as_dvc_reads_them():
    from dvc.repo import Repo

    ours = read_stages(ROOT)
    theirs = {stage.name: stage for stage in Repo(str(ROOT)).index.stages}
    assert set(ours) == set(theirs)
    for name, spec in ours.items():
        assert theirs[name].cmd == f"python -m dvpo_lib run {name}"
        assert {out.def_path for out in theirs[name].outs} == set(spec.outs)
        assert {dep.def_path for dep in theirs[name].deps if dep.def_path} - {"params.yaml"} == set(spec.deps)
        assert {key for dep in theirs[name].params for key in dep.params} == set(spec.params)
        assert all(out.use_cache for out in theirs[name].outs), "with an uncached output a fresh clone skips the stage"


def test_a_stage_depends_on_every_folder_that_its_notebook_reaches():
    """Settings types, which `chain` imports for all stages alike, do not count: their values are tracked as params."""
    for name, spec in read_stages(ROOT).items():
        modules = [m for m in library_imports(notebook_source(ROOT / spec.notebook)) if "dvpo_lib.chain" not in m]
        used = {Path(file) for file in reachable_files(modules, ROOT)} | {Path("dvpo_lib/chain/pages.py")}
        code = [Path(dep) for dep in spec.deps if dep.startswith("dvpo_lib")]
        for file in used:
            covered = file.name == "__init__.py" or any(file.is_relative_to(folder) for folder in code)
            assert covered, f"stage {name} lacks a dep that covers {file}"


def test_every_input_of_a_stage_is_a_dep():
    """Paths of outputs that appear in a notebook's code are declared, as a dep or as its own output."""
    stages = read_stages(ROOT)
    outs = {out for spec in stages.values() for out in spec.outs}
    for spec in stages.values():
        code = notebook_source(ROOT / spec.notebook)
        named = set(re.findall(r"[\"'](?:f?)((?:data|results)/[\w/.]+)", code))
        for path in named & outs:
            assert any(Path(path).is_relative_to(known) for known in (*spec.deps, *spec.outs)), f"{spec.name}: {path}"


def test_every_setting_is_tracked_by_a_stage_and_runtime_by_none():
    tracked = {entry.partition(".")[0] for spec in read_stages(ROOT).values() for entry in spec.params}
    assert tracked == set(SECTIONS) - {"runtime"}


def test_plots_use_the_colours_of_the_figures():
    from dvpo_lib.reporting.figures.style import METHOD_LOOKS

    template = json.loads((ROOT / ".dvc/plots/methods.json").read_text())
    scale = template["spec"]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"])) == {name: look.color for name, look in METHOD_LOOKS.items()}


def test_imports_are_followed(tmp_path):
    package = tmp_path / "dvpo_lib"
    (package / "tasks").mkdir(parents=True)
    sources = {
        "a.py": "from .tasks.chain import f\nimport dvpo_lib.b as b",
        "b.py": "def g():\n    from . import c",
        "c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .d import D",
        "d.py": "",
        "tasks/chain.py": "from ..e import h",
        "e.py": "",
        "__init__.py": "",
        "tasks/__init__.py": "",
    }
    for name, source in sources.items():
        (package / name).write_text(source)
    found = reachable_files(["dvpo_lib.a"], tmp_path)
    assert found == {f"dvpo_lib/{name}" for name in sources if name != "d.py"}


# ---- what a notebook sees ----


def test_stage_knows_its_settings_and_outputs(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks")  # as in JupyterLab
    here = open_stage("row@dvpo", changes={"seeds": 3})
    assert Path.cwd() == project == project_root()
    assert here.params.seeds == 3 and list(here.params.methods) == ["dvpo"]
    assert here.results == Path("work/lab/results/row/dvpo")
    assert here.spec.deps == ("notebooks/tiny.ipynb", "results/quantile")
    with pytest.raises(ConfigError, match="stage row@dvpo declares no output results/other.csv"):
        here.path("results/other.csv")
    with pytest.raises(ConfigError, match="there is no stage rov@dvpo"):
        open_stage("rov@dvpo")


def test_changes_reach_the_templates_of_dvc_yaml(project):
    changed = read_stages(project, {"methods.dvpo.critic": "scalar", "methods.grpo": {"critic": "none"}})
    assert list(changed) == ["tiny", "row@ppo", "row@dvpo", "row@grpo"]
    assert changed["row@dvpo"].deps[1] == "results/scalar" and changed["row@grpo"].deps[1] == "results/none"
    assert list(read_stages(project, {"methods": {"new": {"critic": "none"}}})) == ["tiny", "row@new"]
    assert open_stage("row@dvpo", changes={"methods.dvpo.critic": "scalar"}).spec.deps[1] == "results/scalar"


def test_saved_files_have_stable_bytes(project):
    here = open_stage("tiny")
    here.save_metrics({"b": {"y": math.pi}, "a": pd.Series([2]).sum()})
    assert (here.results / "metrics.json").read_text().startswith('{\n  "a": 2,\n  "b": {\n    "y": 3.14159')
    here.save_metrics({"a": None})  # a missing score
    assert json.loads((here.results / "metrics.json").read_text()) == {"a": None}
    with pytest.raises(ValueError, match="metrics.b.y: expected a finite number, not nan"):
        here.save_metrics({"b": {"y": math.nan}})
    here.save_table("tables/x.csv", pd.DataFrame({"x": [1 / 3], "n": [1]}))
    assert (here.results / "tables/x.csv").read_text() == "x,n\n0.33333333,1\n"


def test_template_without_its_setting_is_named(project):
    (project / "dvc.yaml").write_text((project / "dvc.yaml").read_text().replace("item.critic", "item.critc"))
    with pytest.raises(ConfigError, match=r"'stages.row@ppo.deps' in 'dvc.yaml': Could not find 'item.critc'"):
        read_stages(project)


# ---- the chain ----


@pytest.fixture
def chain(project):
    """The tiny project with one stage and the real settings, as a git repository with DVC."""
    shutil.copyfile(ROOT / "params.yaml", project / "params.yaml")
    text = (project / "dvc.yaml").read_text()
    (project / "dvc.yaml").write_text(text[: text.index("  row:")])
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copyfile(ROOT / ".gitignore", project / ".gitignore")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    return project


def test_repro_does_only_what_it_must_and_loses_nothing(chain):
    first = stage_command("repro", cwd=chain)
    assert first.returncode == 0, first.stderr
    assert "takes about" in first.stderr and "[tiny] done" in first.stderr
    page = (chain / "results/tiny/notebook.html").read_bytes()

    again = stage_command("repro", cwd=chain)
    assert again.returncode == 0 and "[tiny] runs" not in again.stderr

    settings = (chain / "params.yaml").read_text()
    (chain / "params.yaml").write_text("sed: 1\n" + settings)
    refused = stage_command("repro", cwd=chain)
    assert refused.returncode == 1 and "error: params.yaml:1: sed: unknown parameter" in refused.stderr
    (chain / "params.yaml").write_text(settings)

    make_notebook(chain / "notebooks/tiny.ipynb", BODY, "1 / 0")
    failed = stage_command("repro", cwd=chain)  # DVC has deleted the outputs by now; they come back
    assert failed.returncode != 0 and "cell 4: ZeroDivisionError: division by zero" in failed.stderr
    assert (chain / "work/failed/tiny.ipynb").is_file()
    assert (chain / "results/tiny/notebook.html").read_bytes() == page


def test_a_chain_survives_what_a_crash_leaves_and_a_second_chain_waits_its_turn(chain, capsys, monkeypatch):
    """A torn dvc.lock and a torn rwlock of DVC, and a lock that another chain holds."""
    monkeypatch.setattr(reproduction, "_run_dvc", lambda *arguments, **options: 0)
    (chain / "dvc.lock").write_text("schema: '2.0'\nstages:\n  tiny:\n    cmd: python\n    de")
    (chain / ".dvc/tmp").mkdir()
    (chain / ".dvc/tmp/rwlock").write_text('{"read": {')
    assert cli.main(["repro"]) == 0
    shown = capsys.readouterr().err
    assert "dvc.lock is damaged" in shown and ".dvc/tmp/rwlock is damaged" in shown
    assert not (chain / "dvc.lock").exists() and not (chain / ".dvc/tmp/rwlock").exists()
    assert {path.name for path in (chain / "work/failed").iterdir()} == {"dvc.lock", "rwlock"}
    (chain / "dvc.lock").write_text("schema: '2.0'\nstages:\n  tiny:\n    cmd: python\n")
    gone = {"read": {"/x": [{"pid": 2**22 + 1, "cmd": "dvc repro"}]}, "write": {"/y": {}}}
    (chain / ".dvc/tmp/rwlock").write_text("{}")  # as DVC leaves it
    assert cli.main(["repro"]) == 0 and (chain / ".dvc/tmp/rwlock").exists()
    (chain / ".dvc/tmp/rwlock").write_text(json.dumps(gone))  # DVC drops the entries of processes that are gone
    assert cli.main(["repro"]) == 0 and (chain / "dvc.lock").exists() and (chain / ".dvc/tmp/rwlock").exists()
    assert "damaged" not in capsys.readouterr().err
    another = {"read": {}, "write": {"/y": {"pid": os.getpid(), "cmd": "dvc repro"}}}  # its pid is another program's
    (chain / ".dvc/tmp/rwlock").write_text(json.dumps(another))
    assert cli.main(["repro"]) == 0 and not (chain / ".dvc/tmp/rwlock").exists()
    assert f"process {os.getpid()}, which should hold it, is no DVC" in capsys.readouterr().err
    with locked_file(chain / CHAIN_LOCK):
        assert cli.main(["repro"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: another chain runs in this checkout (process {os.getpid()}); wait for it, or stop it"


SLEEPERS = """\
import os, time, pathlib, dataclasses
from dvpo_lib.experiments import run_store
@dataclasses.dataclass(frozen=True)
class Sleeper:
    number: int
    inputs = ()
    def execute(self, folder, scratch):
        pathlib.Path(f"pid{self.number}").write_text(str(os.getpid()))
        time.sleep(1000)
pathlib.Path("pid0").write_text(str(os.getpid()))
run_store.execute_specs([Sleeper(1), Sleeper(2)], 2)
"""


def sleeping_family(project: Path, process: subprocess.Popen) -> list[psutil.Process]:
    """All descendants of a process that runs the notebook `SLEEPERS`, once its two workers are asleep."""
    files, deadline = [project / f"pid{n}" for n in range(3)], time.monotonic() + 600
    while not all(file.is_file() and file.read_text() for file in files):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert {int(file.read_text()) for file in files} < {member.pid for member in family}  # and trackers of the workers
    return family


def repro_process(chain) -> subprocess.Popen:
    command = [sys.executable, "-m", "dvpo_lib", "repro"]
    return subprocess.Popen(command, cwd=chain, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def test_sigkill_leaves_no_process_and_no_lock(chain, capsys):
    """DVC, stage, kernel, workers and their trackers end. While they run, nobody else can run the chain or a stage."""
    make_notebook(chain / "notebooks/tiny.ipynb", SLEEPERS)
    started = repro_process(chain)
    family = sleeping_family(chain, started)
    assert len(family) >= 6
    for command, busy in (["repro"], "another chain"), (["run", "tiny"], "stage tiny"):
        assert cli.main(command) == 1
        assert capsys.readouterr().err.startswith(f"error: {busy} runs in this checkout (process ")
    started.kill()
    started.communicate()
    assert not psutil.wait_procs(family, timeout=60)[1]
    for lock in (CHAIN_LOCK, "work/run/tiny.lock"):
        with locked_file(chain / lock, wait=False):
            pass


def test_sigterm_between_two_stages_ends_dvc_without_a_traceback(chain):
    started = repro_process(chain)
    while "takes about" not in started.stderr.readline():
        pass
    family = psutil.Process(started.pid).children(recursive=True)
    time.sleep(0.5)
    started.send_signal(signal.SIGTERM)
    shown = started.communicate(timeout=300)[1]
    assert not psutil.wait_procs(family, timeout=60)[1] and "Traceback" not in shown
    assert started.returncode == 130 and shown.endswith("interrupted; the same command resumes\n")


@pytest.mark.parametrize("place", [".", "..", "notebooks", "copy", "taken", "work"])
def test_a_profile_refuses_a_folder_that_is_not_its_own(chain, place, capsys):
    (chain / "profiles").mkdir()
    (chain / "profiles/small.yaml").write_text("seeds: 1\n")
    folder = chain / place
    if place == "taken":
        folder = chain.with_name(f"{chain.name}-taken")
        folder.mkdir()
        (folder / "params.yaml").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}
    assert cli.main(["profile", "small", "--workdir", str(folder)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --workdir {folder.resolve()}")
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.is_dir() else {}
    assert before == after


def test_profile_copy_follows_the_project(chain):
    (chain / "profiles").mkdir()
    (chain / "profiles/small.yaml").write_text("seeds: 1\nmethods: {dvpo: null, grpo: null}\n")
    (chain / "results").mkdir()
    (chain / "results/ignored.csv").write_text("")
    (chain / "extra.txt").write_text("1")
    copy = chain / "work" / "small"
    sync_copy(chain, copy, chain / "profiles/small.yaml", {"seed": 7})
    params = load_params(copy / "params.yaml", ["seed", "seeds", "methods"])
    assert (params.seed, params.seeds, "dvpo" in params.methods) == (7, 1, False)
    assert (copy / "extra.txt").is_file() and (copy / "dvpo_lib/chain/stages.py").is_file()
    assert not (copy / "results").exists() and not (copy / "work").exists()

    (copy / "results").mkdir()
    (chain / "extra.txt").unlink()
    (chain / "new.txt").write_text("2")
    sync_copy(chain, copy, chain / "profiles/small.yaml")
    assert (copy / "new.txt").is_file() and not (copy / "extra.txt").exists() and (copy / "results").is_dir()


def test_export_takes_pages_tables_and_the_figures_of_the_report(project, monkeypatch):
    drawn, png = np.zeros((60, 80, 4), dtype=np.uint8), io.BytesIO()
    drawn[:, :40] = [68, 119, 170, 255]  # the other half is transparent
    drawn[..., 0] += np.random.default_rng(0).integers(2, size=(60, 80), dtype=np.uint8)  # costs bytes
    Image.fromarray(drawn).save(png, "PNG")
    embedded = base64.b64encode(png.getvalue()).decode()
    picture = {"cells": [{"outputs": [{"data": {"image/png": embedded}}]}]}
    page = f'<p>before</p><img src="data:image/png;base64,{embedded}"/><p>after</p>'
    text = (project / "dvc.yaml").read_text().partition("  row:")[0]
    (project / "dvc.yaml").write_text(
        text + text.partition("stages:\n")[2].replace("tiny:", "report:").replace("results/tiny", "results/page")
    )
    for name in ("tiny", "page"):
        folder = project / "results" / name
        (folder / "tables").mkdir(parents=True)
        for file, content in {
            "notebook.html": page,
            "notebook.ipynb": json.dumps(picture),
            "tables/t.csv": "x",
            "tables/history.csv": "long",
        }.items():
            (folder / file).write_text(content)
    for old in ("reports/tuning/grid.csv", "reports/page/old.csv"):  # of `make tune`, and of an earlier export
        (project / old).parent.mkdir(parents=True, exist_ok=True)
        (project / old).write_text("x")
    export_results(project, project / "reports")
    found = {str(p.relative_to(project / "reports")) for p in (project / "reports").rglob("*") if p.is_file()}
    pages = {f"{name}/{file}" for name in ("tiny", "page") for file in ("notebook.html", "tables/t.csv")}
    assert found == pages | {"page/figure_01.png", "tuning/grid.csv"}
    figure = project / "reports" / "page" / "figure_01.png"
    with Image.open(figure) as shown:
        colours = np.asarray(shown.convert("RGB")).astype(int)
    assert colours.shape == (60, 80, 3) and abs(colours[:, :40] - [68, 119, 170]).max() <= 2
    assert (colours[:, 40:] == 255).all() and figure.stat().st_size < len(png.getvalue())
    shown = (project / "reports" / "page" / "notebook.html").read_text()
    assert shown == page.replace(embedded, base64.b64encode(figure.read_bytes()).decode())
    monkeypatch.setattr(exports, "EVIDENCE", "tiny")  # no copies of one page for every exported run
    for target, expected in (("reports", page), ("reports/real", '<a href="../../tiny/notebook.html">')):
        export_results(project, project / target)
        found = (project / target / "tiny" / "notebook.html").read_text()
        assert expected in found.replace(base64.b64encode(figure.read_bytes()).decode(), embedded)
    shutil.rmtree(project / "reports/real")
    size = sum(file.stat().st_size for name in ("tiny", "page") for file in (project / "reports" / name).rglob("*.*"))
    (project / "reports/tuning/grid.csv").write_text("x" * size)  # other folders do not count
    monkeypatch.setattr(exports, "MAX_EXPORT_BYTES", size)
    export_results(project, project / "reports")
    monkeypatch.setattr(exports, "MAX_EXPORT_BYTES", size - 1)
    with pytest.raises(exports.StageError, match="too much to commit"):
        export_results(project, project / "reports")


# ---- make ----


def make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "", "a target is defined twice?"
    return done.stdout


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    declared = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    listed = set(re.findall(r"^  make ([a-z-]+)", make("help"), re.MULTILINE))
    assert declared == listed and make() == make("help")


def test_continuous_integration_lints_and_then_tests():
    script = ROOT / ".ci/run"
    assert re.findall(r"make \w+", script.read_text().partition("\nset ")[2]) == ["make lint", "make test"]
    assert os.access(script, os.X_OK)


@pytest.mark.smoke
def test_smoke_chain_runs_and_leaves_the_tree_alone(shared_store, tmp_path):
    """Every notebook once, at the smallest scale, in a copy."""

    def tree() -> str:
        status = ["git", "status", "--porcelain"]
        return subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    before = tree()
    done = stage_command(
        "profile", "smoke", "--workdir", str(tmp_path / "smoke"), cwd=ROOT, DVPO_STORE=str(shared_store)
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    finished = re.findall(r"^\[(\S+)\] done", done.stderr, re.MULTILINE)
    assert set(finished) == set(read_stages(ROOT)) - {"train@dvpo_winsorised", "train@ppo_clip_reward"}
    assert tree() == before
