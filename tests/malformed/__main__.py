"""Runs the malformed inputs; see the package's docstring.

Each kind runs in a process of its own, so that a crash or a hang ends that process alone and is counted.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from malformed import SECONDS, SHARES, Fault, case_random, judge_case, make_kind

RESULT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.json"
START_SECONDS = 120


def run_cases(kind: str, first: int, last: int) -> None:
    """Runs inputs `first` to `last` - 1 of a kind and prints one line for each."""
    told, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed
    with tempfile.TemporaryDirectory() as folder:
        make = make_kind(kind, Path(folder))
        print("ready", file=told, flush=True)
        for number in range(first, last):
            try:
                outcome = judge_case(make(case_random(kind, number)))
            except Fault as fault:
                outcome = f"fault: {fault}"
            print(json.dumps(outcome), file=told, flush=True)


def run_kind(kind: str, count: int) -> list[str]:
    """Outcomes of the first `count` inputs of a kind, in order."""
    outcomes: list[str] = []
    while len(outcomes) < count:
        child = subprocess.Popen(
            [sys.executable, "-m", "malformed", kind, str(len(outcomes)), str(count)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        errors: list[str] = []
        threading.Thread(target=errors.extend, args=(child.stderr,), daemon=True).start()
        for line in _lines(child):
            if line != "ready\n":
                outcomes.append(json.loads(line))
                if len(outcomes) == count:
                    break
        with_group(child)
        if len(outcomes) < count:
            outcomes.append(f"fault: the process ended with {child.returncode}: {''.join(errors)[-600:]}")
    return outcomes


def _lines(child):
    """The child's lines; it is ended if none comes for longer than an input may take."""
    seconds = START_SECONDS
    while True:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        line = child.stdout.readline()
        timer.cancel()
        if not line:
            return
        yield line
        seconds = 2 * SECONDS


def with_group(child: subprocess.Popen) -> None:
    """Waits for the child; what it has started ends with it."""
    try:
        child.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m malformed", description=__doc__.split("\n")[0])
    parser.add_argument("kind", nargs="?", help="one kind; with a number, that input alone")
    parser.add_argument("number", nargs="?", type=int)
    parser.add_argument("last", nargs="?", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all kinds together")
    chosen = parser.parse_args()
    if chosen.last is not None:
        run_cases(chosen.kind, chosen.number, chosen.last)
        return 0
    if chosen.number is not None:
        with tempfile.TemporaryDirectory() as folder:
            case = make_kind(chosen.kind, Path(folder))(case_random(chosen.kind, chosen.number))
            print(case.shown)
            print(judge_case(case))
        return 0
    table, faults = {}, 0
    for kind, share in SHARES.items():
        if chosen.kind not in (None, kind):
            continue
        started = time.monotonic()
        count = max(1, round(share * chosen.count / sum(SHARES.values())))
        outcomes = run_kind(kind, count)
        table[kind] = dict(collections.Counter(outcome.partition(":")[0] for outcome in outcomes))
        print(f"{kind}: {table[kind]} in {time.monotonic() - started:.0f} s", flush=True)
        for number, outcome in enumerate(outcomes):
            if outcome.startswith("fault"):
                faults += 1
                print(f"  {kind} {number}: {outcome}", flush=True)
    if chosen.kind is None:
        total = sum(sum(row.values()) for row in table.values())
        RESULT.write_text(json.dumps({"inputs": total, "faults": faults, "by_kind": table}, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
