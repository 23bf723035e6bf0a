"""Sweeps: many runs at once, where the settings say; one that fails is tried again while the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from dvpo_lib.experiments.run_store.executors import EXECUTORS, SweepSettings
from dvpo_lib.experiments.run_store.keys import spec_key, spec_name
from dvpo_lib.experiments.run_store.storage import divergence_of, store_folder, stored_problem

logger = logging.getLogger(__name__)


class RunsFailed(RuntimeError):
    """Runs that failed in every try. The message lists key, name and last error of each; the others are stored."""


def execute_specs(
    specs: Sequence, runtime: SweepSettings | int | None = None, progress: str | None = "runs"
) -> list[Path]:
    """Executes specs in parallel, except those whose results the store has.

    Args:
        specs: The specs.
        runtime: Where and how, such as section `runtime` of params.yaml; or a number of local processes, by default
            one a core.
        progress: Label of the progress bar; None for no bar.

    Returns:
        The folders of the results in the store, in the order of the specs.

    Raises:
        RunsFailed: If a run failed in every try. The results of all others are in the store.
    """
    settings = runtime if isinstance(runtime, SweepSettings) else SweepSettings(workers=runtime)
    root, keys = store_folder(), [spec_key(spec) for spec in specs]
    named, todo = dict(zip(keys, specs)), {}
    for key, spec in named.items():
        problem = stored_problem(root, key)
        if problem:
            logger.warning(f"{problem}: {spec_name(spec)} is computed again")
        if problem is not None:
            todo[key] = spec
    errors: dict[str, str] = {}
    with tqdm(total=len(todo), desc=progress, disable=progress is None or not todo, mininterval=1) as bar:
        for left in reversed(range(settings.retries + 1)):
            errors = {}
            for key, error in EXECUTORS[settings.executor](todo, root, settings) if todo else ():
                if error is None and stored_problem(root, key) is not None:
                    error = f"it ended, but {root / key} is not there: do its workers share this file system?"
                if error is None:
                    bar.update()
                else:
                    errors[key] = error
                    then = "it is tried again" if left else "the others go on"
                    logger.warning(f"{spec_name(todo[key])} failed ({error}); {then}")
            todo = {key: todo[key] for key in errors}
    if errors:
        listed = [f"\n  {key} {spec_name(named[key])}: {error}" for key, error in errors.items()]
        rest = f"; tracebacks: {root / 'unfinished'}"
        raise RunsFailed(f"{len(errors)} of {len(named)} runs failed, the others are stored{rest}{''.join(listed)}")
    for key, spec in named.items():
        if problem := divergence_of(root, key):
            logger.warning(f"{spec_name(spec)} diverged: {problem}")
    return [root / key for key in keys]


def collect_run_tables(folders: Iterable[Path], name: str, specs: Sequence = ()) -> pd.DataFrame:
    """Concatenates the tables `name.csv` of runs.

    Args:
        folders: Results of the runs.
        name: Name of the table, without its suffix.
        specs: The runs' specs; their `labels` become the first columns.
    """
    tables = [pd.read_csv(Path(f) / f"{name}.csv") for f in folders]
    for table, spec in zip(tables, specs, strict=False):
        for i, (column, value) in enumerate(spec.labels.items()):
            table.insert(i, column, value)
    return pd.concat(tables, ignore_index=True)
