"""The run store: keys follow what a run depends on; results are whole, shared and never computed twice."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.experiments import run_store as store
from dvpo_lib.experiments.import_graph import reachable_files


@dataclass(frozen=True)
class Toy:
    """Writes its number; counts its executions in a file beside the store."""

    number: int
    source: str
    log: str
    inputs = ("source",)

    def execute(self, folder, scratch):
        with open(self.log, "a") as f:
            f.write(f"{self.number}\n")
        if self.number < 0:
            raise ValueError("negative")
        pd.DataFrame({"x": [self.number]}).to_csv(folder / "final.csv", index=False)


class Slow(Toy):
    """Takes long enough to be wanted twice."""

    def execute(self, folder, scratch):
        time.sleep(1)
        super().execute(folder, scratch)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    source = tmp_path / "source"
    source.write_text("a")
    return Toy(1, str(source), str(tmp_path / "log"))


def runs(toy):
    return Path(toy.log).read_text().split() if Path(toy.log).exists() else []


def test_a_run_is_done_once_and_results_keep_their_order(toy):
    specs = [replace(toy, number=n) for n in (3, 1, 2)]
    folders = store.execute_specs(specs, workers=1, progress=None)
    assert store.collect_run_tables(folders, "final")["x"].tolist() == [3, 1, 2]
    store.execute_specs(specs[::-1], workers=1, progress=None)
    assert sorted(runs(toy)) == ["1", "2", "3"]


def test_two_processes_that_want_the_same_run_share_it(toy, tmp_path):
    """The second one waits; neither loses its result."""
    key, root = store.spec_key(replace(toy, number=5)), store.store_folder()
    spec = Slow(5, toy.source, toy.log)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for job in [pool.submit(store.execute_once, spec, key, root) for _ in range(2)]:
            job.result()
    assert runs(toy) == ["5"] and (root / key / "final.csv").is_file()
    assert not list((root / "unfinished").iterdir())


def test_key_follows_fields_and_input_bytes_not_input_names(toy, tmp_path):
    key = store.spec_key(toy)
    assert store.spec_key(replace(toy, number=2)) != key
    Path(toy.source).write_text("b")
    assert store.spec_key(toy) != key


@pytest.mark.parametrize("module", ["base_policy", "critic_pretraining", "pseudo_labels", "reward_model", "training"])
def test_key_follows_the_code_that_a_run_executes_not_what_shows_its_results(module):
    used = {Path(f).parts[1] for f in reachable_files([f"dvpo_lib.experiments.specs.{module}"], ROOT)}
    assert {"common", "models", "tasks"} <= used and not {"reporting", "chain"} & used


def test_a_change_of_reports_keeps_the_keys_of_trainings_and_a_change_of_the_trainer_does_not():
    used = reachable_files(["dvpo_lib.experiments.specs.training"], ROOT)
    assert {
        f"dvpo_lib/{f}.py" for f in ("rl/trainer", "functional/critic_losses", "noise/sources", "tasks/chains")
    } <= used
    assert not {f"dvpo_lib/experiments/{f}.py" for f in ("run_store", "noise_effects", "specs/reward_model")} & used


def test_a_failed_run_leaves_the_finished_ones_and_no_half_result(toy):
    with pytest.raises(ValueError, match="negative"):
        store.execute_specs([toy, replace(toy, number=-1)], workers=1, progress=None)
    assert (store.store_folder() / store.spec_key(toy) / "final.csv").exists()
    assert not (store.store_folder() / store.spec_key(replace(toy, number=-1))).exists()
    store.execute_specs([toy], workers=1, progress=None)
    assert runs(toy) == ["1", "-1"]


SCRIPT = """
import sys
from dvpo_lib.experiments.specs.training import TrainingSpec
from dvpo_lib.rl.training_settings import TrainingSettings
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.experiments.run_store import execute_specs
from dvpo_lib.tasks.evaluation import EvaluationSettings
critic = CriticSettings(heads=2, quantiles=16)
training = TrainingSettings(generation_batch_size=16)
test = EvaluationSettings(prompts=4, k=1)
spec = TrainingSpec(
    "dvpo", "none", "dvpo", training, 41, critic, NoiseSettings(), "math", 0, test, None, "base", "suites"
)
print(execute_specs([spec], workers=1, progress=None)[0])
"""


def test_sigkill_and_again_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    from dvpo_lib.models.policy import PolicySettings, build_policy
    from dvpo_lib.tasks.chains import ChainSettings
    from dvpo_lib.tasks.dialogue import DialogueSettings
    from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer
    from dvpo_lib.tasks.suites import save_suites

    small = ChainSettings(demonstrations=1, train=20, test=4)
    cfg = TaskSettings(math=small, science=small, dialogue=DialogueSettings(demonstrations=1, train=20, test=4))
    save_suites(build_suites(cfg), tmp_path / "suites")
    tokenizer = build_tokenizer(cfg)
    build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), 0).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")

    def run(name, kill=False):
        env = os.environ | {"DVPO_STORE": str(tmp_path / name), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SCRIPT]
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
        if kill:
            deadline = time.monotonic() + 120
            while not list((tmp_path / name).glob("unfinished/*/checkpoints/checkpoint-*")):
                assert process.poll() is None and time.monotonic() < deadline, "ended before its first checkpoint"
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        return Path(output.strip()) if not kill else None

    undisturbed = run("straight")
    run("killed", kill=True)
    assert list((tmp_path / "killed").glob("unfinished/*/checkpoints/checkpoint-*"))
    resumed = run("killed")
    names = sorted(p.name for p in undisturbed.iterdir())
    assert names == sorted(p.name for p in resumed.iterdir()) and "policy.safetensors" in names
    for name in names:
        assert (undisturbed / name).read_bytes() == (resumed / name).read_bytes(), name


def test_comments_and_docstrings_are_no_part_of_a_runs_key_and_all_else_is():
    code = '''"""Module."""\n\nRATE = 0.1  # of something\n\n\ndef f(x):\n    """Doubles."""\n    return 2 * x\n'''
    for same in (
        code.replace("Doubles", "Twice"),
        code.replace("  # of something", ""),
        code.replace("\n\n", "\n"),
        code.replace("    return", "    # why\n    return"),
        code.replace('    """Doubles."""\n', ""),
    ):
        assert same != code and store.source_without_comments(same) == store.source_without_comments(code)
    for other in (
        code.replace("0.1", "0.2"),
        code.replace("2 * x", "x * 2"),
        code.replace("(x)", "(x, y)"),
        code.replace("RATE", "rate"),
        code + "f(1)\n",
        code.replace("return 2", '"text"; return 2'),
    ):
        assert store.source_without_comments(other) != store.source_without_comments(code)
