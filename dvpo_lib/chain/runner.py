"""Runs one stage: papermill executes its notebook, then its outputs move into place.

A notebook writes into a scratch folder. Its files move only after it has finished and has written exactly the outputs
that its stage declares, so a failed run leaves earlier results as they were.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.stages import StageError, StageSpec, project_root, read_stages, tool_environment
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments import run_store

SCRATCH_FOLDER = Path("work/run")  # of running stages
FAILED_FOLDER = Path("work/failed")  # of notebooks whose stage failed
KERNEL_ENVIRONMENT = {  # for equal bytes of equal runs
    "PYTHONHASHSEED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads that spin slow a busy machine down many times
    "OMP_NUM_THREADS": "1",  # not the number of cores; a run that gains by more threads sets its own
    "SOURCE_DATE_EPOCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
}


def run_stage(name: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Runs one stage of dvc.yaml in the current project.

    Args:
        name: The stage, such as `train@dvpo`.
        parameters: Values for the notebook's cell tagged `parameters`.

    Raises:
        ConfigError: If there is no such stage, or a setting is wrong; nothing has run then.
        StageError: If the notebook cannot run, fails, or writes other files than its stage declares.
    """
    root = project_root()
    os.chdir(root)
    stages = read_stages(root)
    if name not in stages:
        raise ConfigError(f"dvc.yaml: there is no stage {name}; there are: {', '.join(stages)}")
    spec = stages[name]
    settings = load_params(root / "params.yaml", spec.params, reader=f"stage {name}")
    scratch = SCRATCH_FOLDER / name
    parameters = {"stage": name, "out": str(scratch), **(parameters or {})}
    check_parameters(spec.notebook, parameters)
    check_kernel()
    try:
        with locked_file(SCRATCH_FOLDER / f"{name}.lock", wait=False):
            _run_notebook(spec, stages, scratch, parameters, settings.runtime.cell_timeout)
    except BlockingIOError as owner:
        raise StageError(f"stage {name} runs in this checkout (process {owner}); wait for it, or stop it") from None


def _run_notebook(
    spec: StageSpec, stages: Mapping[str, StageSpec], scratch: Path, parameters: Mapping[str, Any], cell_timeout: int
) -> None:
    """Executes a notebook in a new scratch folder and moves its outputs into place."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)

    started = time.monotonic()
    print(f"[{spec.name}] runs {spec.notebook}", file=sys.stderr, flush=True)
    notebook = execute_notebook(spec, scratch, parameters, cell_timeout)
    save_rendered(notebook, scratch / spec.results, Path(spec.notebook).stem.replace("_", " "), (stages, spec.name))
    move_into_place(spec, scratch)
    minutes = (time.monotonic() - started) / 60
    print(f"[{spec.name}] done in {minutes:.1f} min: {spec.results}/notebook.html", file=sys.stderr, flush=True)
    log_duration(spec.name, minutes)


def check_parameters(notebook: str, parameters: Mapping[str, Any]) -> None:
    """Checks that a notebook exists and declares its parameters; papermill itself only warns.

    Raises:
        StageError: If it does not.
    """
    if not Path(notebook).is_file():
        raise StageError(f"{notebook}: no such notebook, though dvc.yaml lists it as a dep")
    known = declared_parameters(notebook)
    for key in parameters:
        if key not in known:
            names = ", ".join(known) or "none"
            raise StageError(f"{notebook}: unknown parameter {key}; its cell tagged `parameters` has: {names}")


def declared_parameters(notebook: str) -> list[str]:
    """The variables that the cell tagged `parameters` of a notebook sets. Its comments are not read as code.

    Raises:
        StageError: If the file is no notebook, or the cell is no valid Python.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]
        code = ast.parse("".join(tagged[0]["source"])) if tagged else ast.Module([], [])
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise StageError(f"{notebook}: the cell tagged `parameters` cannot be read: {error}") from None
    assigned = [node for node in code.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    targets = [target for node in assigned for target in getattr(node, "targets", None) or [node.target]]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def check_kernel() -> None:
    """Checks that the Jupyter kernel is this environment's Python; another one would have other packages.

    Raises:
        StageError: If it is not, or if there is none.
    """
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ.pop("JUPYTER_PATH", None)  # a kernel there would win over ours
    missing = importlib.util.find_spec("ipykernel") is None
    try:
        python = "" if missing else KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        missing = True
    if missing:
        raise StageError(f"no Jupyter kernel: ipykernel is missing for {sys.executable}; `make install` sets it up")
    if python not in ("python", "python3") and Path(python).resolve() != Path(sys.executable).resolve():
        raise StageError(f"the kernel `python3` belongs to another environment: {python}, not {sys.executable}")


def execute_notebook(spec: StageSpec, scratch: Path, parameters: Mapping[str, Any], cell_timeout: int) -> Any:
    """Executes the notebook of a stage; its output streams to the terminal.

    Args:
        spec: The stage.
        scratch: The folder of papermill's own copy.
        parameters: Values for the cell tagged `parameters`.
        cell_timeout: Seconds after which a cell is given up.

    Returns:
        The executed notebook.

    Raises:
        StageError: If a cell fails or times out, or the kernel dies; the message names the cell and the copy that is
            kept.
    """
    import nbclient.output_widget
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    # nbclient sends a widget's output back to the kernel, past asyncio, on the socket on which it awaits the cell's
    # reply; the reply may then go unnoticed for ever. The notebook holds the widget's output without that.
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    os.environ.update(
        KERNEL_ENVIRONMENT, PYTHONPATH=os.getcwd(), **tool_environment(Path())
    )  # this copy of dvpo_lib, also in worker processes
    unfinished, kept = scratch / "notebook.ipynb", FAILED_FOLDER / f"{spec.name}.ipynb"
    kept.unlink(missing_ok=True)
    try:
        with interruptible():
            return papermill.execute_notebook(
                spec.notebook,
                str(unfinished),
                dict(parameters),
                language="python",
                kernel_name="python3",
                extra_arguments=["--log-level=40"],  # hides the kernel's own warnings
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                execution_timeout=cell_timeout,
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        problem = f"{error.ename}: {error.evalue}" if error.ename not in ("ConfigError", "RunsFailed") else error.evalue
        problem = f"cell {error.cell_index}: {problem}"
    except DeadKernelError:
        problem = "the kernel died (out of memory?)"
    except CellTimeoutError:
        problem = f"a cell took longer than runtime.cell_timeout = {cell_timeout} s"
    raise StageError(f"stage {spec.name} failed in {spec.notebook}, {problem}\n  {_keep_failed(unfinished, kept)}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Passes SIGTERM and Ctrl-C on to the kernel, so that its cell ends and its workers with it; a second one exits."""
    kernels: list[psutil.Process] = []

    def interrupt(signum, frame) -> None:
        if kernels:
            raise KeyboardInterrupt
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):  # it has ended
                kernels.extend([child] if "ipykernel_launcher" in child.cmdline() else [])
        for kernel in kernels:
            kernel.send_signal(signal.SIGINT)
        if not kernels:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_failed(unfinished: Path, kept: Path) -> str:
    if not unfinished.is_file():
        return "nothing had been written yet"
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(unfinished, kept)
    return f"the notebook as far as it ran: {kept}"


def save_rendered(
    notebook: Any, folder: Path, title: str, place: tuple[Mapping[str, StageSpec], str] | None = None
) -> None:
    """Writes notebook.ipynb and notebook.html of an executed notebook to a folder, equal bytes for equal runs.

    Args:
        notebook: The notebook as it was executed.
        folder: The folder to write to.
        title: The page's title.
        place: All stages and the name of this one, for links to its neighbours; None for a page that stands alone.
    """
    import nbformat

    from dvpo_lib.chain.pages import clean_notebook, neighbour_links, render_page

    notebook = clean_notebook(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "notebook.ipynb")
    page = render_page(notebook, title, neighbour_links(*place) if place else None)
    (folder / "notebook.html").write_text(page, encoding="utf-8")


def move_into_place(spec: StageSpec, scratch: Path) -> None:
    """Moves a stage's outputs from its scratch folder into the project.

    Raises:
        StageError: If an output is missing, or another file was written.
    """
    (scratch / "notebook.ipynb").unlink(missing_ok=True)  # papermill's own copy
    missing = [out for out in spec.outs if not (scratch / out).exists()]
    written = [str(path.relative_to(scratch)) for path in sorted(scratch.rglob("*")) if path.is_file()]
    extra = [path for path in written if not any(Path(path).is_relative_to(out) for out in spec.outs)]
    if missing or extra:
        listed = [f"did not write {path}" for path in missing]
        listed += [f"wrote {path}, which is undeclared" for path in extra]
        raise StageError(f"stage {spec.name}: {spec.notebook} and dvc.yaml disagree: it {'; '.join(listed)}")
    for out in spec.outs:
        target = Path(out)
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch / out, target)
    shutil.rmtree(scratch)


def log_duration(name: str, minutes: float) -> None:
    """Appends a stage's duration to durations.tsv in the run store, because no output of a stage may hold a time."""
    folder = run_store.store_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "durations.tsv", "a", encoding="utf-8") as log:
        log.write(f"{name}\t{minutes:.2f}\t{time.strftime('%Y-%m-%d %H:%M')}\n")
