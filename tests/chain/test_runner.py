"""The stage wrapper: equal bytes, nothing half done, one clear error. Kernels take seconds to start: few are used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import pytest
from conftest import BODY, ROOT, make_notebook, stage_command

from dvpo_lib.chain import runner
from dvpo_lib.chain.cli import main
from dvpo_lib.chain.stages import StageError, read_stages

RICH = """\
import sys
print(object()); print("to the", "terminal", file=sys.stderr); print("more")
import ipywidgets
from IPython.display import display
_ = ipywidgets.interact(lambda x: display("inside the widget"), x=(0, 3))
"""


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_runs_give_equal_bytes(project):
    make_notebook(project / "notebooks/tiny.ipynb", BODY, RICH)
    first = stage_command("run", "tiny", cwd=project)
    assert first.returncode == 0, first.stderr
    assert "to the terminal" in first.stderr and "Traceback" not in first.stderr
    results = contents(project / "results")
    assert set(results) == {"tiny/notebook.ipynb", "tiny/notebook.html", "tiny/metrics.json", "tiny/tables/t.csv"}
    assert json.loads(results["tiny/metrics.json"]) == {"seed": 1}
    assert not (project / "work/run/tiny").exists()

    stage_command("run", "tiny", cwd=project)
    assert contents(project / "results") == results

    page = results["tiny/notebook.html"].decode()
    assert "<math" in page and "inside the widget" in page and "to the terminal" not in page
    assert "<object object>" in page.replace("&lt;", "<").replace("&gt;", ">")  # without its address
    assert "<script" not in page and "//cdn" not in page


def test_failed_notebook_is_kept_and_earlier_results_stay(project):
    (project / "results/tiny").mkdir(parents=True)
    (project / "results/tiny/metrics.json").write_text("earlier")
    make_notebook(project / "notebooks/tiny.ipynb", BODY, "here.path('results/elsewhere.csv')")
    failed = stage_command("run", "tiny", cwd=project)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    message = failed.stderr[failed.stderr.index("error:") :].strip().splitlines()
    assert message == [
        "error: stage tiny failed in notebooks/tiny.ipynb, cell 4: "
        "dvc.yaml: stage tiny declares no output results/elsewhere.csv",
        "  the notebook as far as it ran: work/failed/tiny.ipynb",
    ]
    kept = (project / "work/failed/tiny.ipynb").read_text()
    assert "ConfigError" in kept and "saved" in kept
    assert (project / "results/tiny/metrics.json").read_text() == "earlier"


def test_dead_kernel_is_one_clear_error(project):
    make_notebook(project / "notebooks/tiny.ipynb", "import os\nos._exit(1)")
    failed = stage_command("run", "tiny", cwd=project)
    assert failed.returncode == 1 and "the kernel died" in failed.stderr and "Traceback" not in failed.stderr


SLEEPERS = """\
import os, time, pathlib
from joblib import Parallel, delayed
def sleep(n):
    pathlib.Path(f"pid{n}").write_text(str(os.getpid()))
    time.sleep(100)
pathlib.Path("pid0").write_text(str(os.getpid()))
Parallel(n_jobs=2)(delayed(sleep)(n) for n in (1, 2))
"""


def test_sigterm_ends_kernel_and_workers(project):
    make_notebook(project / "notebooks/tiny.ipynb", SLEEPERS)
    process = subprocess.Popen(
        [sys.executable, "-m", "dvpo_lib", "run", "tiny"], cwd=project, stderr=subprocess.PIPE, text=True
    )
    files = [project / f"pid{n}" for n in range(3)]
    wait_until(lambda: all(file.is_file() and file.read_text() for file in files))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.endswith("interrupted; the same command resumes\n")
    wait_until(lambda: not any(alive(int(file.read_text())) for file in files))


def wait_until(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tinny"], "dvc.yaml: there is no stage tinny; there are: tiny, row@ppo, row@dvpo"),
        (
            ["run", "tiny", "-p", "sed=2"],
            "notebooks/tiny.ipynb: unknown parameter sed; its cell tagged `parameters` has:",
        ),
        (["run", "tiny", "-p", "seed"], "-p seed: expected KEY=VALUE"),
    ],
)
def test_bad_commands_are_refused_before_anything_runs(project, capsys, arguments, message):
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (project / "work/run/tiny").exists()


def test_missing_notebook_is_named(project, capsys):
    (project / "notebooks/tiny.ipynb").unlink()
    assert main(["run", "tiny"]) == 1
    assert "notebooks/tiny.ipynb: no such notebook" in capsys.readouterr().err


def test_missing_kernel_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StageError, match="ipykernel is missing for .*; `make install` sets it up"):
        runner.check_kernel()


def test_foreign_kernel_is_refused(monkeypatch, tmp_path):
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    foreign = KernelSpec(argv=["/elsewhere/bin/python", "-m", "ipykernel_launcher"])
    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", lambda self, name: foreign)
    with pytest.raises(StageError, match="another environment: /elsewhere/bin/python"):
        runner.check_kernel()


def test_outputs_must_be_those_declared(project):
    spec = read_stages(project)["tiny"]
    scratch = project / "scratch"
    for name in ("metrics.json", "surprise.csv"):
        (scratch / spec.results).mkdir(parents=True, exist_ok=True)
        (scratch / spec.results / name).write_text("1")
    with pytest.raises(StageError) as caught:
        runner.move_into_place(spec, scratch)
    assert "did not write results/tiny/tables" in str(caught.value)
    assert "wrote results/tiny/surprise.csv, which is undeclared" in str(caught.value)
    assert not (project / "results").exists()


# ---- the source notebooks ----

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_source_notebook_is_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3" and "papermill" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {cell.id} carries an output"
    assert [cell.get("metadata", {}).get("tags") for cell in notebook.cells].count(["parameters"]) == 1
    parameters = papermill.inspect_notebook(str(path))
    if path.stem.startswith("A"):  # an appendix: part of no chain
        assert not {spec.notebook for spec in read_stages(ROOT).values()} & {f"notebooks/{path.name}"}
        assert {found["inferred_type_name"] for found in parameters.values()} == {"str"}
        return
    assert {"stage": "str", "out": "str", "changes": "dict"} == {
        name: found["inferred_type_name"] for name, found in parameters.items()
    }
    assert parameters["stage"]["default"].strip("\"'") in read_stages(ROOT)


def test_comments_of_the_parameters_cell_are_not_read_as_code(tmp_path):
    source = [
        "# seed = 1 = 2, an equals sign in a comment\n",
        "stage = 'a = b'  # a == b\n",
        "out: str = None\n",
        "pair = (\n    1,  # x = y\n)\n",
    ]
    tagged = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": source}
    notebook = tmp_path / "n.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": []}, tagged]}))
    assert runner.declared_parameters(notebook) == ["stage", "out", "pair"]
    runner.check_parameters(notebook, {"stage": "x", "pair": 1})
    with pytest.raises(StageError, match="unknown parameter seed"):
        runner.check_parameters(notebook, {"seed": 1})
    notebook.write_text("no notebook")
    with pytest.raises(StageError, match="cannot be read"):
        runner.declared_parameters(notebook)
