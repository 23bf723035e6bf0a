"""Runs one stage: executes its notebook by papermill and moves what it wrote into place.

A run never leaves half a result: the notebook writes into a scratch folder, and only when it has finished and written
all that its stage declares are the files moved into place.
"""

from __future__ import annotations

import contextlib
import importlib.util
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
from dvpo_lib.chain.stages import StageError, StageSpec, project_root, read_stages
from dvpo_lib.common.settings_tree import ConfigError

SCRATCH = Path("work/run")  # where a running stage writes
FAILED = Path("work/failed")  # where a failed stage's notebook is kept
KERNEL_ENVIRONMENT = {  # equal runs give equal bytes
    "PYTHONHASHSEED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait cost many times the time on a busy machine
    "OMP_NUM_THREADS": "1",  # on any number of cores; runs that gain by more threads ask for them (store.work)
    "SOURCE_DATE_EPOCH": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "JUPYTER_PREFER_ENV_PATH": "1",
}


def run(name: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Runs one stage of dvc.yaml in the current project. Raises ConfigError or StageError."""
    root = project_root()
    os.chdir(root)
    stages = read_stages(root)
    if name not in stages:
        raise ConfigError(f"dvc.yaml: there is no stage {name}; there are: {', '.join(stages)}")
    spec = stages[name]
    settings = load_params(root / "params.yaml", spec.params, reader=f"stage {name}")
    scratch = SCRATCH / name
    parameters = {"stage": name, "out": str(scratch), **(parameters or {})}
    check_parameters(spec.notebook, parameters)
    check_kernel()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)

    started = time.monotonic()
    print(f"[{name}] runs {spec.notebook}", file=sys.stderr, flush=True)
    notebook = execute(spec, scratch, parameters, settings.runtime.cell_timeout)
    save_rendered(notebook, scratch / spec.results, title=Path(spec.notebook).stem.replace("_", " "))
    move_into_place(spec, scratch)
    minutes = (time.monotonic() - started) / 60
    print(f"[{name}] done in {minutes:.1f} min: {spec.results}/notebook.html", file=sys.stderr, flush=True)
    log_duration(name, minutes)


def check_parameters(notebook: str, parameters: Mapping[str, Any]) -> None:
    """Refuses a notebook that is missing or does not declare what it is given (papermill itself would only warn)."""
    import papermill

    if not Path(notebook).is_file():
        raise StageError(f"{notebook}: no such notebook (a stage of dvc.yaml lists it in its deps)")
    known = papermill.inspect_notebook(notebook)
    for key in parameters:
        if key not in known:
            names = ", ".join(known) or "none"
            raise StageError(f"{notebook}: unknown parameter {key}; its cell tagged `parameters` has: {names}")


def check_kernel() -> None:
    """The kernel must be this very environment's python: a foreign one would have other packages, or none."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    os.environ.pop("JUPYTER_PATH", None)  # a kernel found there would win over ours
    missing = importlib.util.find_spec("ipykernel") is None
    try:
        python = "" if missing else KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        missing = True
    if missing:
        raise StageError(f"no Jupyter kernel: ipykernel is missing for {sys.executable}; `make install` sets it up")
    if python not in ("python", "python3") and Path(python).resolve() != Path(sys.executable).resolve():
        raise StageError(f"the kernel `python3` belongs to another environment: {python}, not {sys.executable}")


def execute(spec: StageSpec, scratch: Path, parameters: Mapping[str, Any], cell_timeout: int) -> Any:
    """The executed notebook; its output streams to the terminal. A failed one is kept and StageError says where."""
    import nbclient.output_widget
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    # nbclient sends what a widget shows back to the kernel, past asyncio on the very socket that it awaits the cell's
    # reply on: the reply may then go unnoticed for ever. What widgets showed is in the notebook without that.
    nbclient.output_widget.OutputWidget.send = lambda self, *args, **kwargs: None
    os.environ.update(KERNEL_ENVIRONMENT, PYTHONPATH=os.getcwd())  # this copy of dvpo_lib, also in worker processes
    unfinished, kept = scratch / "notebook.ipynb", FAILED / f"{spec.name}.ipynb"
    kept.unlink(missing_ok=True)
    try:
        with interruptible():
            return papermill.execute_notebook(
                spec.notebook,
                str(unfinished),
                dict(parameters),
                language="python",
                kernel_name="python3",
                extra_arguments=["--log-level=40"],  # no warnings of the kernel's own on the terminal
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                execution_timeout=cell_timeout,
            )
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        problem = f"{error.ename}: {error.evalue}" if error.ename != "ConfigError" else error.evalue
        problem = f"cell {error.cell_index}: {problem}"
    except DeadKernelError:
        problem = "the kernel died (out of memory?)"
    except CellTimeoutError:
        problem = f"a cell took longer than runtime.cell_timeout = {cell_timeout} s"
    raise StageError(f"stage {spec.name} failed in {spec.notebook}, {problem}\n  {_keep(unfinished, kept)}")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and Ctrl-C interrupt the kernel's cell, so that its workers end with it; a second one ends at once."""
    kernels: list[psutil.Process] = []

    def interrupt(signum, frame) -> None:
        if kernels:
            raise KeyboardInterrupt
        kernels.extend(child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline())
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


def _keep(unfinished: Path, kept: Path) -> str:
    if not unfinished.is_file():
        return "it had not written anything yet"
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(unfinished, kept)
    return f"the notebook as far as it ran: {kept}"


def save_rendered(notebook: Any, folder: Path, title: str) -> None:
    """Writes notebook.ipynb and notebook.html, equal for equal runs."""
    import nbformat

    from dvpo_lib.chain.pages import clean_notebook, render_page

    notebook = clean_notebook(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "notebook.ipynb")
    (folder / "notebook.html").write_text(render_page(notebook, title), encoding="utf-8")


def move_into_place(spec: StageSpec, scratch: Path) -> None:
    """Moves what the stage declares from its scratch folder to the project; StageError where it wrote anything else."""
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


def store() -> Path:
    """The folder of what may be kept between runs but is no result: trained runs, the log of durations."""
    return Path(os.environ.get("DVPO_STORE", project_root() / ".runs"))


def log_duration(name: str, minutes: float) -> None:
    store().mkdir(parents=True, exist_ok=True)
    with open(store() / "durations.tsv", "a", encoding="utf-8") as log:
        log.write(f"{name}\t{minutes:.2f}\t{time.strftime('%Y-%m-%d %H:%M')}\n")
