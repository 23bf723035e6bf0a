"""1, 2 and 4 processes sample the same tokens and learn the same weights, by DDP and by FSDP2; checkpoints go on in
another number of processes; a process that fails ends all."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import process_runs as runs
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from dvpo_lib.rl.methods import resolve_settings
from dvpo_lib.rl.trainer_base.parallel.processes import Processes

ROOT = Path(__file__).resolve().parents[2]
ALL = runs.METHOD_RUNS | runs.HARD_RUNS | runs.MORE_RUNS | runs.UNSHARDED_RUNS
CASES = [(4, name + end) for name in runs.FOUR_RUNS for end in ("", ", sharded")]
CASES += [(2, name) for name in ALL] + [(2, f"{name}, sharded") for name in ALL if name not in runs.UNSHARDED_RUNS]


def launch(processes: int, *command, cwd=None) -> subprocess.CompletedProcess:
    """Runs a program by torchrun, each process with one thread."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    how = dict(env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*torchrun, *command], start_new_session=True, **how) as running:
        try:
            output, errors = running.communicate(timeout=300)
        except subprocess.TimeoutExpired:  # a process waits for another for ever: none may be left behind
            for process in psutil.Process(running.pid).children(recursive=True):
                process.kill()
            running.kill()
            raise
    return subprocess.CompletedProcess(running.args, running.returncode, output, errors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    runs.outcome_of(**runs.saving(folder / "of-1"))
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """Outcomes in one process."""
    table = dict(log_completions=True, output_dir=str(folder / "table-1"))
    return {name: runs.outcome_of(**changes, **(table if name == "grpo" else {})) for name, changes in ALL.items()}


@pytest.fixture(scope="module")
def together(folder):
    """Outcomes and the finished launch by number of processes."""
    found = {}
    for processes in (2, 4):
        done = launch(processes, ROOT / "tests" / "rl" / "process_runs.py", folder)
        assert (folder / f"{processes}.pt").exists(), done.stderr[-6000:]
        found[processes] = torch.load(folder / f"{processes}.pt", weights_only=False), done, time.time()
    return found


def assert_same(found, wanted):
    assert found["tokens"] == wanted["tokens"][-len(found["tokens"]) :]
    assert found["weights"].keys() == wanted["weights"].keys()
    for network, weights in wanted["weights"].items():
        for name, x in weights.items():
            torch.testing.assert_close(found["weights"][network][name], x, rtol=0, atol=1e-5, msg=f"{network} {name}")
    assert len(found["logs"]) == len(wanted["logs"])
    for records in zip(found["logs"], wanted["logs"], strict=True):
        own, other = ({name: math.nan if x is None else x for name, x in record.items()} for record in records)
        assert own == pytest.approx(other, rel=2e-4, abs=2e-5, nan_ok=True)


@pytest.mark.parametrize("processes, name", CASES)
def test_processes_learn_the_same(alone, together, processes, name):
    wanted = alone[name.removesuffix(", sharded")]
    moved = [(x - wanted["before"][n]).abs().max() for n, x in wanted["weights"]["policy"].items()]
    assert max(moved) > 1e-4 or "perturbed" in str(ALL.get(name)), "nothing was learned"
    assert_same(together[processes][0][name], wanted)


def test_checkpoints_go_on_in_another_number_of_processes(alone, together, folder):
    """Written by 1, 2 and 2 sharded processes in the middle of a generation batch."""
    wanted, found = alone["dvpo, dropped"], together[2][0]
    assert_same(found["resumed"], wanted)
    assert_same(found["resumed, sharded"], wanted)
    for name in ("of-2", "of-2-sharded"):
        assert (folder / name / "checkpoint-2" / "batch.safetensors").exists()
        one = runs.outcome_of(folder / name / "checkpoint-2", **runs.HARD_RUNS["dvpo, dropped"])
        assert_same(one, wanted)
    assert not list(folder.glob("of-*/.*")), "a half-written checkpoint is left"


def test_files_are_those_of_one_process(alone, together, folder):
    saved = AutoModelForCausalLM.from_pretrained(folder / "saved").state_dict()
    for name, x in alone["dvpo, dropped"]["weights"]["policy"].items():
        torch.testing.assert_close(saved[name], x, rtol=0, atol=1e-5)
    tables = [sorted((folder / f"table-{n}" / "completions").iterdir()) for n in (1, 2, 4)]
    for files in zip(*tables, strict=True):
        first, *others = [pd.read_parquet(file) for file in files]
        for other in others:
            pd.testing.assert_frame_equal(first, other, rtol=1e-4, atol=1e-6)


def test_bf16_runs(together):
    for name in ("bf16", "bf16, sharded"):
        weights = together[2][0][name]["weights"]["policy"].values()
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in weights)


def test_all_processes_raise_if_one_fails(together):
    first, second = together[2][0]["failures"]["reward"]
    assert second.startswith("RewardError: reward function raises raised at step 0: ValueError('no judge here')")
    assert first == f"OtherProcessError: process 1 failed: {second}"
    for text in together[2][0]["failures"]["not finite"]:
        assert text.startswith("TrainingDiverged: ppo, seed 0, step 0: the loss is nan")


def test_a_crash_ends_the_launch_with_its_own_error(together, folder):
    _, done, ended = together[2]
    assert done.returncode != 0 and "ValueError: process 1 has crashed" in done.stderr
    assert ended - float((folder / "crash").read_text()) < 60


def test_the_guides_example_runs_in_two_processes(tmp_path):
    text = (ROOT / "docs" / "guide" / "scale.md").read_text(encoding="utf-8")
    assert "torchrun --nproc_per_node 2 examples/train_small.py" in text
    done = launch(2, ROOT / "examples" / "train_small.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = [line for line in done.stdout.splitlines() if "processes: reward" in line]
    first, last = (float(word) for word in line.replace(",", "").split() if "." in word)
    assert line.startswith("2 processes") and last > first + 0.1


def test_groups_that_would_be_split_are_refused(monkeypatch):
    args = runs.settings("grpo")
    monkeypatch.setattr(type(args), "world_size", 8)
    with pytest.raises(ValueError, match="does not give each of 8 processes whole groups of num_generations 4.* of 32"):
        resolve_settings(args)


def test_one_process_exchanges_nothing():
    x = torch.arange(3)
    one = Processes()
    assert one.gather(x) is x and one.own_rows(x) is x and one.sum({"a": 1.0}) == {"a": 1.0}
    with pytest.raises(KeyError), one.together():
        raise KeyError
