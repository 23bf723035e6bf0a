"""The run store: keys follow what a run depends on; results are whole, shared and never computed twice."""

import os
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

from benchmarks import soak
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


class Deadly(Toy):
    """Kills its process if its number is negative, like a system out of memory."""

    def execute(self, folder, scratch):
        super().execute(folder, scratch) if self.number >= 0 else os.kill(os.getpid(), signal.SIGKILL)


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


def test_a_hash_follows_a_file_whose_size_and_time_are_set_back(tmp_path):
    """As a copy does that keeps times: hashes of files that have not changed are not computed again."""
    file = tmp_path / "inputs" / "weights"
    file.parent.mkdir()
    file.write_bytes(b"a")
    hashes, state = {store.file_hash(file), store.file_hash(file.parent)}, file.stat()
    time.sleep(0.05)  # clocks of file systems tick
    file.write_bytes(b"b")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    hashes |= {store.file_hash(file), store.file_hash(file.parent)}
    (tmp_path / "other").write_bytes(b"a")
    os.utime(tmp_path / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(tmp_path / "other", file)
    assert len(hashes) == 4 and {store.file_hash(file), store.file_hash(file.parent)} < hashes


def test_a_run_is_done_once_and_results_keep_their_order(toy):
    specs = [replace(toy, number=n) for n in (3, 1, 2)]
    folders = store.execute_specs(specs, 1, progress=None)
    assert store.collect_run_tables(folders, "final")["x"].tolist() == [3, 1, 2]
    store.execute_specs(specs[::-1], 1, progress=None)
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
    assert not {f"dvpo_lib/experiments/{f}.py" for f in ("noise_effects", "specs/reward_model")} & used
    assert not [f for f in used if f.startswith("dvpo_lib/experiments/run_store/")]


def test_a_failed_run_is_tried_again_while_the_others_go_on_and_is_listed(toy, caplog):
    failing, root = replace(toy, number=-1), store.store_folder()
    with pytest.raises(store.RunsFailed) as caught:
        store.execute_specs([failing, toy], store.SweepSettings(workers=1, retries=2), progress=None)
    key = store.spec_key(failing)
    first, listed = str(caught.value).splitlines()
    assert first.startswith("1 of 2 runs failed, the others are stored")
    assert listed == f"  {key} Toy: ValueError: negative"
    assert "negative" in (root / "unfinished" / f"{key}.txt").read_text()
    assert caplog.text.count("it is tried again") == 2
    assert (root / store.spec_key(toy) / "final.csv").exists() and not (root / key).exists()
    assert runs(toy) == ["-1", "1", "-1", "-1"]
    store.execute_specs([toy], 1, progress=None)
    assert len(runs(toy)) == 4


def test_a_run_whose_process_dies_is_named_and_the_others_are_stored(toy, caplog):
    specs = [Deadly(n, toy.source, toy.log) for n in (-1, 1)]
    with pytest.raises(store.RunsFailed, match="1 of 2 runs failed") as caught:
        store.execute_specs(specs, store.SweepSettings(workers=2, retries=0), progress=None)
    assert f"{store.spec_key(specs[0])} Deadly: its process died (exit code -9" in str(caught.value)
    assert runs(toy) == ["1"] and store.stored_problem(store.store_folder(), store.spec_key(specs[1])) is None


def cut_in_half(folder):
    (folder / "final.csv").write_text((folder / "final.csv").read_text()[:2])


DAMAGES = {
    "final.csv is damaged": cut_in_half,
    "final.csv is missing": lambda folder: (folder / "final.csv").unlink(),
    "stray.csv does not belong there": lambda folder: (folder / "stray.csv").write_text("x"),
    "is missing": lambda folder: shutil.rmtree(folder),
    "has no hashes beside it": lambda folder: folder.with_suffix(".json").unlink(),
    "or its hashes cannot be read": lambda folder: folder.with_suffix(".json").write_text("{"),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_stored_run_that_is_damaged_is_named_and_computed_again(toy, problem, caplog):
    [folder] = store.execute_specs([toy], 1, None)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[problem](folder)
    assert store.execute_specs([toy], 1, None) == [folder]
    assert problem in caplog.text and "Toy is computed again" in caplog.text and folder.name in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    caplog.clear()
    store.execute_specs([toy], 1, None)
    assert runs(toy) == ["1", "1"] and not caplog.text


class Filling(Toy):
    """Fills the disk as long as `log` is not there."""

    def execute(self, folder, scratch):
        (folder / "first.csv").write_text("x")
        if not Path(self.log).exists():
            with open("/dev/full", "w") as full:
                full.write("x")
        super().execute(folder, scratch)


def test_a_full_disk_is_a_clear_error_and_damages_nothing(toy):
    spec, root = Filling(1, toy.source, toy.log), store.store_folder()
    with pytest.raises(store.RunsFailed, match="OSError: .Errno 28. No space left on device"):
        store.execute_specs([spec], 1, None)
    assert store.stored_problem(root, store.spec_key(spec)) == ""
    Path(toy.log).touch()
    [folder] = store.execute_specs([spec], 1, None)
    assert {path.name for path in folder.iterdir()} == {"first.csv", "final.csv"}


def test_sigkill_twice_and_again_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    soak.make_world(tmp_path / "world")
    straight, work = (soak.training_work(tmp_path / name, tmp_path / "world", 41) for name in ("straight", "killed"))
    expected, _ = soak.run_undisturbed(straight)
    assert any(name.endswith("/policy.safetensors") for name in expected)
    work.renew()
    process, deadline = work.start(), time.monotonic() + 600
    while not list(work.folder.glob(".runs/unfinished/*/checkpoints/checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, "ended before its first checkpoint"
        time.sleep(0.02)
    process.kill()
    process.wait()
    again = work.start()
    time.sleep(1)
    again.kill()
    again.wait()
    assert list(work.folder.glob(".runs/unfinished/*/checkpoints/checkpoint-*"))
    assert work.start().wait() == 0 and work.files() == expected  # with nothing left over in the store


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
