"""The command line of the chain: `python -m dvpo_lib.stage COMMAND`.

    run STAGE          executes the stage's notebook and puts its outputs into place (what dvc.yaml calls)
    repro [TARGETS]    validates params.yaml, says how long it will take, runs `dvc repro`
    check              validates params.yaml
    profile NAME       runs the chain with profiles/NAME.yaml laid over params.yaml, in a copy of the project
    deps [--write]     compares the modules that dvc.yaml lists with those that the notebooks import

A run never leaves half a result: the notebook writes into a scratch folder, and only when it has finished and written
all that its stage declares are the files moved into place. What goes wrong is one line on stderr and exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from dvpo_lib.config import ConfigError, load_params
from dvpo_lib.pipeline import StageError, StageSpec, project_root, read_stages

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
                spec.notebook, str(unfinished), dict(parameters), language="python", kernel_name="python3",
                extra_arguments=["--log-level=40"],  # no warnings of the kernel's own on the terminal
                progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, execution_timeout=cell_timeout)
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

    from dvpo_lib.render import clean, to_html

    notebook = clean(notebook)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "notebook.ipynb")
    (folder / "notebook.html").write_text(to_html(notebook, title), encoding="utf-8")


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


def repro(targets: Iterable[str] = ()) -> int:
    """`dvc repro` with this environment's python; DVC's exit code. After a failure, earlier results are put back.

    DVC deletes the outputs of a stage before it runs it; if the stage then fails, they come back from DVC's cache."""
    root = project_root()
    load_params(root / "params.yaml")
    print(_forecast(), file=sys.stderr, flush=True)
    code = _dvc(["repro", *targets], root)
    if code:
        lost = [out for spec in read_stages(root).values() for out in spec.outs if not (root / out).exists()]
        if lost and (root / "dvc.lock").is_file():
            _dvc(["checkout", "--quiet", "--allow-missing", *lost], root, quiet=True)
    return code


def _forecast() -> str:
    minutes = load_params(project_root() / "params.yaml", ()).runtime.expected_minutes
    return (f"The whole chain takes about {minutes:g} minutes on two cores; what has not changed is skipped, "
            "and an interrupted run goes on where it stopped.")


def _dvc(arguments: list[str], root: Path, quiet: bool = False) -> int:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # stages call `python`
    child = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], cwd=root, env={**os.environ, "PATH": path},
                             stderr=subprocess.DEVNULL if quiet else None)
    try:
        return child.wait()
    except KeyboardInterrupt as signalled:  # a Ctrl-C has reached the stage already; DVC ends when the stage does
        for process in psutil.Process(child.pid).children(recursive=True):
            if isinstance(signalled, Terminated) and "dvpo_lib.stage" in process.cmdline():
                process.terminate()
        child.wait()
        raise


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from dvpo_lib import deps, profile

    parser = argparse.ArgumentParser(prog="python -m dvpo_lib.stage", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="execute a stage's notebook")
    command.add_argument("stage")
    command.add_argument("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE",
                         help="a parameter of the notebook, its value in YAML")
    command = commands.add_parser("repro", help="run the chain")
    command.add_argument("targets", nargs="*")
    commands.add_parser("check", help="validate params.yaml")
    profile.add_arguments(commands.add_parser("profile", help="run the chain with a profile, in a copy"))
    command = commands.add_parser("deps", help="compare dvc.yaml with what the notebooks import")
    command.add_argument("--write", action="store_true", help="rewrite dvc.yaml accordingly")
    chosen = parser.parse_args(arguments)

    signal.signal(signal.SIGTERM, _terminate)
    try:
        if chosen.command == "run":
            run(chosen.stage, dict(_assignment(text) for text in chosen.parameter))
        elif chosen.command == "repro":
            return repro(chosen.targets)
        elif chosen.command == "check":
            load_params(project_root() / "params.yaml")
            print("params.yaml is valid")
        elif chosen.command == "profile":
            return profile.run(chosen)
        elif chosen.command == "deps":
            return deps.report(project_root(), write=chosen.write)
    except (ConfigError, StageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


class Terminated(KeyboardInterrupt):
    """SIGTERM, which reaches one process and not, as Ctrl-C does, all that the terminal started."""


def _terminate(signum, frame) -> None:
    raise Terminated


def _assignment(text: str) -> tuple[str, Any]:
    from ruamel.yaml import YAML

    key, sign, value = text.partition("=")
    if not sign:
        raise StageError(f"-p {text}: KEY=VALUE is expected")
    return key, YAML(typ="safe").load(value)


if __name__ == "__main__":
    sys.exit(main())
