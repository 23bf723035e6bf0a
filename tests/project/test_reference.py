"""The committed results in reports/: room to learn, learning in every family, the reward model's accuracy.

These tests judge the last reference run: they can fail after `make reference`, and not after a change of code.
"""

from __future__ import annotations

import html
import json
import re

import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.experiments.grids.evidence import read_studies
from dvpo_lib.reporting.findings.verdict_sentences import settled_findings
from dvpo_lib.reporting.statistics.verdicts import verdict_table
from dvpo_lib.tasks.families import GENERATED

REPORTS = ROOT / "reports"
pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def data():
    return json.loads((REPORTS / "01_data_and_noise" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", GENERATED)
def test_the_base_policy_leaves_room_both_ways(data, family):
    assert 0.25 <= data["base"][f"{family}_id"]["sampled"] <= 0.6


@pytest.mark.parametrize("family", GENERATED)
def test_the_reward_model_has_the_accuracy_that_was_asked_for(data, family):
    found = data["reward_model"][family]
    assert abs(found["accuracy"] - 0.718) <= 0.015 and found["answers"] >= 8000


@pytest.mark.parametrize("trained", GENERATED)
def test_true_rewards_of_one_family_raise_it_and_move_the_others(data, trained):
    """By at least 25 points, as the mean over seeds, under DVPO, PPO and GRPO alike; every other family by 5."""
    for method in ("dvpo", "ppo", "grpo"):
        final = pd.read_csv(REPORTS / "03_dvpo_training" / method / "final.csv")
        own = final[(final["noise"] == "none") & (final["family"] == trained) & (final["metric"] == "sampled")]
        means = own.groupby("suite")["value"].mean()
        for family in GENERATED:
            gain = means[f"{family}_id"] - data["base"][f"{family}_id"]["sampled"]
            assert gain >= (0.25 if family == trained else 0.05), (method, trained, family)


def test_the_pages_of_a_published_model_show_what_readme_says():
    """The first seed, without noise and under spikes."""
    final = pd.concat(pd.read_csv(file) for file in (REPORTS / "real" / "03_dvpo_training").glob("*/final.csv"))
    assert set(final["seed"]) == {0} and set(final["noise"]) == {"none", "spikes"}
    assert "show the first seed, without noise and under spikes" in (ROOT / "README.md").read_text(encoding="utf-8")


def plain(text: str) -> str:
    """Words and numbers of Markdown or HTML."""
    return " ".join(re.findall(r"[\w.+-]+", html.unescape(re.sub(r"<[^>]*>", " ", text))))


@pytest.fixture(scope="module")
def findings():
    return settled_findings(verdict_table(read_studies(REPORTS / "evidence"))).splitlines()


@pytest.mark.parametrize("page", ["05_report", "06_evidence"])
def test_rendered_pages_have_todays_verdict(findings, page):
    """A page that is older than the claims would confirm what is not claimed any more."""
    shown = plain((REPORTS / page / "notebook.html").read_text(encoding="utf-8"))
    missing = [line for line in findings if plain(line.removeprefix("- ")) not in shown]
    assert not missing, f"page {page} is older than the evidence: render it again. It lacks {missing[0]}"
    assert len(findings) > 5
