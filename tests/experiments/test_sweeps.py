"""Sweeps on a local Ray and by submitit's local executor: `make sweep-test` installs both and runs this file."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments import run_store as store


@dataclass(frozen=True)
class Task:
    """Writes its number and its process; fails once or for ever, or kills its process."""

    number: int
    log: str
    fate: str = "fine"
    inputs = ()

    def execute(self, folder, scratch):
        with open(self.log, "a") as log:
            log.write(f"{self.number}\n")
        if self.fate == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fate == "fails" or (self.fate == "fails once" and not (scratch / "tried").exists()):
            (scratch / "tried").touch()
            raise ValueError(f"number {self.number}")
        pd.DataFrame({"x": [self.number], "process": [os.getpid()]}).to_csv(folder / "final.csv", index=False)


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    paths = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # of the workers
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "600000")  # a busy machine is slow to start Ray
    return Task(0, str(tmp_path / "log"))


SETTINGS = {
    "ray": store.SweepSettings("ray", workers=2, retries=1),
    "slurm": store.SweepSettings("slurm", retries=1, executor_options={"cluster": "local", "timeout_min": 60}),
}
PACKAGES = {"ray": "ray", "slurm": "submitit"}


@pytest.mark.parametrize("executor", SETTINGS)
def test_a_cluster_computes_each_run_once_and_names_what_failed(task, executor):
    pytest.importorskip(PACKAGES[executor])
    fates = ("fine", "fails", "fails once", "fine", "dies")
    specs = [replace(task, number=n, fate=fate) for n, fate in enumerate(fates)]
    with pytest.raises(store.RunsFailed) as caught:
        store.execute_specs(specs, SETTINGS[executor], None)
    first, *listed = str(caught.value).splitlines()
    assert first.startswith("2 of 5 runs failed") and len(listed) == 2
    assert f"{store.spec_key(specs[1])} Task: ValueError: number 1" in str(caught.value)
    assert store.spec_key(specs[4]) in str(caught.value)
    counts = pd.Series(Path(task.log).read_text().split()).value_counts().sort_index()
    assert counts.to_dict() == {"0": 1, "1": 2, "2": 2, "3": 1, "4": 2}
    good = [specs[n] for n in (0, 2, 3)]
    found = store.collect_run_tables(store.execute_specs(good, SETTINGS[executor], None), "final")
    assert found["x"].tolist() == [0, 2, 3] and os.getpid() not in set(found["process"])
    assert len(Path(task.log).read_text().split()) == counts.sum()  # nothing was computed again


@pytest.mark.parametrize("executor", SETTINGS)
def test_a_missing_package_is_one_clear_error(task, executor, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, PACKAGES[executor], None)
    with pytest.raises(
        ConfigError, match=rf"runtime.executor: {executor} needs .* pip install 'dvpo-lib\[{executor}\]'"
    ):
        store.execute_specs([task], SETTINGS[executor], None)
