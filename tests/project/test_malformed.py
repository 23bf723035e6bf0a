"""A few hundred of the malformed inputs that `make fuzz` runs by the thousand, and the judge's own test."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from malformed import SHARES, Case, Fault, case_random, judge_case, make_kind

COUNTS = {"settings_files": 40, "checkpoints": 40}  # 60 of the others


@pytest.mark.parametrize("kind", SHARES)
def test_malformed_input_is_accepted_or_refused_in_one_line_that_names_it(kind, tmp_path):
    make = make_kind(kind, tmp_path)
    outcomes = [judge_case(make(case_random(kind, number))) for number in range(COUNTS.get(kind, 60))]
    assert {"accepted", "refused"} == set(outcomes)


def _raises(error):
    raise error


@pytest.mark.parametrize(
    "case",
    [
        Case("another exception", lambda: _raises(KeyError("x")), (ValueError,)),
        Case("exit", lambda: _raises(SystemExit(1)), (ValueError,)),
        Case("names nothing", lambda: _raises(ValueError("bad input")), (ValueError,), "record"),
        Case("two lines", lambda: _raises(ValueError("record 1\nis bad")), (ValueError,), "record"),
        Case("long", lambda: _raises(ValueError("record 1" * 1000)), (ValueError,), "record"),
        Case("wrong result", lambda: 0.5, check=lambda result: _raises(AssertionError())),
    ],
    ids=lambda case: case.shown,
)
def test_the_judge_sees_a_fault(case):
    with pytest.raises(Fault):
        judge_case(case)


def test_the_last_fuzz_found_no_fault():
    found = json.loads((ROOT / "benchmarks" / "fuzz.json").read_text("utf-8"))
    assert found["inputs"] >= 10_000 and found["faults"] == 0 and set(found["by_kind"]) == set(SHARES)
    for counts in found["by_kind"].values():
        assert set(counts) <= {"accepted", "refused"}
