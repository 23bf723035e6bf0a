"""Run specs of notebook 00: minimisers and drift are runs of the store, so that a stage resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from dvpo_lib.experiments.known_distributions.distributions import DISTRIBUTIONS
from dvpo_lib.experiments.known_distributions.ratchet_drift import measure_drift
from dvpo_lib.experiments.known_distributions.term_bias import bias_cases, find_minimisers
from dvpo_lib.experiments.run_store import collect_run_tables, execute_specs

FILE = "minimisers.safetensors"


@dataclass(frozen=True)
class MinimiserSpec:
    """Minimisers of all `bias_cases`. Stores minimisers.safetensors.

    All distributions are one batch: most of a step is the overhead of many small operations.
    """

    distributions: tuple[str, ...]  # keys of DISTRIBUTIONS
    inputs = ()

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        save_file({"q": find_minimisers(bias_cases(), self.distributions)}, folder / FILE)


@dataclass(frozen=True)
class DriftSpec:
    """Drift of the tails on one distribution. Stores drift.csv, a table of `measure_drift`."""

    distribution: str  # a key of DISTRIBUTIONS
    batch: int  # samples per step
    refresh: int  # steps between updates of the reference
    inputs = ()

    def execute(self, folder: Path, scratch: Path) -> None:
        """Writes the results to `folder`."""
        drift = measure_drift([self.distribution], batch=self.batch, refresh=self.refresh)
        drift.to_csv(folder / "drift.csv", index=False)


def stored_minimisers(runtime) -> Tensor:
    """(D, C, 2, m) result of `find_minimisers` for all `bias_cases` and DISTRIBUTIONS, from the run store.

    Args:
        runtime: Where missing ones are computed, as for `execute_specs`.
    """
    [folder] = execute_specs([MinimiserSpec(tuple(DISTRIBUTIONS))], runtime, "minimisers")
    return load_file(folder / FILE)["q"]


def stored_drift(runtime, batch: int, refresh: int) -> pd.DataFrame:
    """The table of `measure_drift` from the run store, for all distributions but the first, which has no tails.

    Args:
        runtime: Where missing runs are computed, as for `execute_specs`.
        batch: Samples per step.
        refresh: Steps between updates of the reference.
    """
    specs = [DriftSpec(name, batch, refresh) for name in tuple(DISTRIBUTIONS)[1:]]
    return collect_run_tables(execute_specs(specs, runtime, "drift"), "drift")
