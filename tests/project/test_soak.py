"""The soak: it counts kills, and sees bytes that differ, processes that stay and commands that fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import soak

STEPS = """
import pathlib, time
done = pathlib.Path("steps")
for step in range(len(done.read_text()) if done.exists() else 0, 6):
    time.sleep(0.1)
    done.open("a").write(str(step))
    BODY
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("out/steps.txt").write_text(done.read_text())
"""
FAULTS = {
    "none": "pass",
    "different": "done.write_text(done.read_text().replace('5', '6'))",
    "left_over": "import subprocess; subprocess.Popen(['sleep', '100'])",
    "failed": "step == 5 and pathlib.Path('killed').exists() and sys.exit(1)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_soak_finds_what_a_kill_breaks(tmp_path, fault, monkeypatch, capsys):
    monkeypatch.setattr(soak, "GRACE", 0.5)
    command = [sys.executable, "-c", "import sys\n" + STEPS.replace("BODY", FAULTS[fault])]
    expected = {"out/steps.txt": soak.folder_digests(good_output(tmp_path))["steps.txt"]}
    work = soak.Work("steps", tmp_path / "work", command, ("out",))
    work.renew()
    if fault == "failed":
        (work.folder / "killed").touch()
    saved, result = [], {"kills": 1}
    soak.soak_work(work, 3, expected, 0.4, result, lambda: saved.append(dict(result)))
    assert result["kills"] == 3 and result["compared"] + len(result["failed"]) >= 1
    assert set(result["killed"]) <= {"command", "other"} and sum(result["killed"].values()) == 2 and len(saved) == 3
    seen = {name for name in ("different", "left_over", "failed") if result[name]}
    assert seen == {fault} - {"none"}


def good_output(folder: Path) -> Path:
    (folder / "good").mkdir()
    (folder / "good/steps.txt").write_text("012345")
    return folder / "good"


@pytest.mark.parametrize("part", ["chain", "trainings"])
def test_the_soak_that_is_kept_killed_50_times_and_found_nothing(part):
    """`make soak` writes this file; what it found is judged here."""
    found = json.loads(Path(soak.__file__).with_name("soak.json").read_text("utf-8"))[part]
    assert found["kills"] >= 50 and sum(found["killed"].values()) == found["kills"]
    assert found["compared"] >= 1 and found["files"] > 0
    assert (found["different"], found["left_over"], found["failed"]) == ([], 0, [])
    assert part == "trainings" or found["stages"] == "all"
