"""Executors: where runs are computed. Each tries every run once and yields (key, error), error None if it is stored.

Ray and submitit are imported on use. Their workers need this project's folder and the run store under the same paths.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import ConfigDict, Field

from dvpo_lib.common.processes import end_with_process
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.run_store.storage import execute_once

SHARED_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONHASHSEED", "PYTHONPATH", "TOKENIZERS_PARALLELISM")
MINUTES = 24 * 60  # of a Slurm job, unless `executor_options` says otherwise
Outcomes = Iterator[tuple[str, str | None]]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SweepSettings:
    """Where runs are computed, and how often one that fails is tried."""

    executor: Literal["local", "ray", "slurm"] = "local"  # processes here, a Ray cluster, or Slurm by submitit
    workers: Annotated[int, Field(ge=1)] | None = None  # runs at a time; null: one a core, all that a cluster has
    retries: Annotated[int, Field(ge=0)] = 1  # further tries of a run that failed
    executor_options: dict[str, Any] = Field(default_factory=dict)  # arguments of `ray.init`, or submitit's parameters


def attempt_run(spec, key: str, root: Path, project: Path) -> str | None:
    """One try of a run, in whatever process.

    Args:
        spec: The spec.
        key: Its key.
        root: Folder of the store.
        project: The working directory.

    Returns:
        None if the result is stored; else the error in one line. Its traceback is kept in the store.
    """
    os.chdir(project)
    try:
        execute_once(spec, key, root)
    except Exception as error:
        try:
            (root / "unfinished" / f"{key}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        except OSError:  # the disk may be full
            pass
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return None


def run_locally(todo: Mapping[str, Any], root: Path, settings: SweepSettings) -> Outcomes:
    """Runs in processes of this machine. They end with this process.

    If a worker dies, the runs that were being computed are tried again one at a time, to know which one was to blame.

    Args:
        todo: Specs by key.
        root: Folder of the store.
        settings: Where and how.
    """
    from joblib import Parallel, cpu_count, delayed

    left, threads, project = dict(todo), torch.get_num_threads(), Path.cwd()
    try:
        with tempfile.TemporaryDirectory(prefix="dvpo-started-") as folder:
            begun = Path(folder)
            while left:
                count = min(settings.workers or cpu_count(), len(left))
                pool = Parallel(n_jobs=count, return_as="generator_unordered")
                work = delayed(_attempt_in_pool)
                try:
                    jobs = (work(begun, os.getpid(), spec, key, root, project) for key, spec in left.items())
                    for key, error in pool(list(jobs)):
                        del left[key]
                        yield key, error
                except BrokenProcessPool:
                    for key in [key for key in left if (begun / key).exists()] or list(left):
                        yield key, _attempt_alone(left.pop(key), key, root, project)
    finally:
        torch.set_num_threads(threads)


def _attempt_in_pool(begun: Path, parent: int, spec, key: str, root: Path, project: Path) -> tuple[str, str | None]:
    if os.getpid() != parent:
        _end_with_pool(parent)
    (begun / key).touch()
    return key, attempt_run(spec, key, root, project)


_watched: set[int] = set()


def _end_with_pool(parent: int) -> None:
    if parent not in _watched:  # a worker computes many runs
        _watched.add(parent)
        end_with_process(parent)


def _attempt_alone(*arguments) -> str | None:
    """`attempt_run` in a new process of its own."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(sender, os.getpid(), *arguments))
    process.start()
    sender.close()
    try:
        process.join()
    finally:
        process.kill()
    try:
        return receiver.recv()
    except EOFError:
        return f"its process died (exit code {process.exitcode}; killed, or out of memory?)"


def _send_outcome(sender, parent: int, *arguments) -> None:
    end_with_process(parent)
    sender.send(attempt_run(*arguments))


def run_on_ray(todo: Mapping[str, Any], root: Path, settings: SweepSettings) -> Outcomes:
    """Runs as tasks of a Ray cluster; of one on this machine unless `executor_options` has an address.

    Args: As `run_locally`.
    """
    ray = _imported("ray", settings)
    started_here = not ray.is_initialized()
    if started_here:
        variables = {name: os.environ[name] for name in SHARED_VARIABLES if name in os.environ}
        options = {"runtime_env": {"env_vars": variables}, "include_dashboard": False, **settings.executor_options}
        if "address" not in options:
            options.setdefault("num_cpus", settings.workers)
        ray.init(**options)
    cores = max(node["Resources"].get("CPU", 1) for node in ray.nodes())
    task, project, pending = ray.remote(attempt_run), Path.cwd(), {}
    for key, spec in todo.items():
        needed = min(getattr(spec, "threads", 1), cores)
        pending[task.options(num_cpus=needed, max_retries=0).remote(spec, key, root, project)] = key
    try:
        while pending:
            [done], _ = ray.wait(list(pending), num_returns=1)
            try:
                error = ray.get(done)
            except ray.exceptions.RayError as problem:  # the worker died
                error = " ".join(f"{type(problem).__name__}: {problem}".split())[:500]
            yield pending.pop(done), error
    finally:
        for task in pending:
            ray.cancel(task, force=True)
        if started_here:
            ray.shutdown()


def run_on_slurm(todo: Mapping[str, Any], root: Path, settings: SweepSettings) -> Outcomes:
    """Runs as jobs of one Slurm array; `cluster: local` among `executor_options` runs them on this machine.

    Args: As `run_locally`.
    """
    submitit = _imported("submitit", settings)
    options = dict(settings.executor_options)
    executor = submitit.AutoExecutor(folder=root / "slurm" / "%j", cluster=options.pop("cluster", "slurm"))
    threads = max(getattr(spec, "threads", 1) for spec in todo.values())
    defaults = {"name": "dvpo", "cpus_per_task": threads, "timeout_min": MINUTES}
    if settings.workers:
        defaults["slurm_array_parallelism"] = settings.workers
    executor.update_parameters(**defaults | options)
    with executor.batch():
        jobs = {executor.submit(attempt_run, spec, key, root, Path.cwd()): key for key, spec in todo.items()}
    keys = {job.job_id: key for job, key in jobs.items()}
    try:
        for job in submitit.helpers.as_completed(list(jobs), poll_frequency=1):
            key, problem = keys.pop(job.job_id), job.exception()
            yield key, job.result() if problem is None else " ".join(f"job {job.job_id}: {problem}".split())[:500]
    finally:
        for job in jobs:
            if job.job_id in keys:
                job.cancel()


def _imported(package: str, settings: SweepSettings):
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        extra = settings.executor
        raise ConfigError(
            f"runtime.executor: {extra} needs the package {package}: pip install 'dvpo-lib[{extra}]'"
        ) from None


EXECUTORS = {"local": run_locally, "ray": run_on_ray, "slurm": run_on_slurm}
