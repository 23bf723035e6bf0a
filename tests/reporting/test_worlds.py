"""Answers before and after training, families in words, and the order of methods in two worlds."""

from __future__ import annotations

import pandas as pd
import pytest

from dvpo_lib.reporting.answer_tables import answers_by_kind, changed_answers
from dvpo_lib.reporting.findings.worlds import FAMILY_TEXTS, family_findings, order_findings
from dvpo_lib.reporting.tables import base_by_role
from dvpo_lib.tasks.families import FAMILIES

BEFORE = pd.DataFrame(
    {
        "suite": "slots_id",
        "prompt": ["p1", "p2", "p3"],
        "question": ["q1", "q2", "q3"],
        "answer": ["a", "b", "c"],
        "completion": ["x", "b", "y"],
        "reward": [0.0, 1.0, 0.0],
        "domain": ["transport", "transport", "finance"],
        "kind": ["said last", "said last", "not said"],
    }
)
AFTER = BEFORE.assign(completion=["a", "z", "y"], reward=[1.0, 0.0, 0.0], noise="none", method="dvpo", seed=0)


def test_answers_are_counted_by_kind_and_shown_by_domain():
    both = pd.concat([AFTER, AFTER.assign(noise="spikes", reward=1.0)])
    table = answers_by_kind(BEFORE, both).set_index("kind")
    assert table.loc["said last", ["questions", "base policy", "no noise"]].tolist() == [2, 0.5, 0.5]
    assert table.loc["not said", "heavy-tailed spikes"] == 1.0
    shown = changed_answers(BEFORE, AFTER)
    assert shown["domain"].tolist() == ["transport", "transport", "finance"]
    assert shown.loc[0, ["before", "after"]].tolist() == ["x (0)", "a (1)"], "what improved comes first"
    assert shown.loc[1, ["question", "after"]].tolist() == ["q2", "z (0)"], "and what got worse after it"


def runs(scores: dict[str, float], seeds: int = 2) -> pd.DataFrame:
    rows = [
        dict(method=m, noise="none", family="slots", seed=s, suite="slots_id", role="ID", metric="sampled", value=v)
        for m, v in scores.items()
        for s in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_the_order_of_methods_in_two_worlds():
    here = runs({"dvpo": 0.9, "ppo": 0.8, "grpo": 0.7})
    text = order_findings(here, runs({"dvpo": 0.6, "ppo": 0.5, "grpo": 0.55}, seeds=1))
    assert "on generated problems DVPO 90, PPO 80 and GRPO 70" in text
    assert "on the language model DVPO 60, GRPO 55 and PPO 50" in text
    assert "2 of 3 pairs are in the same order" in text and "one seed on the language model" in text
    assert "Too few runs" in order_findings(here, here.head(0))


@pytest.mark.parametrize("families", [["math", "dialogue"], ["slots", "other_slots"], ["gsm8k"]])
def test_families_are_described(families):
    assert set(FAMILY_TEXTS) == set(FAMILIES)
    text = family_findings(families)
    assert all(f"- **{name}**" in text for name in families)
    assert ("annotator" in text) == ("math" in families)


def test_other_domains_are_transfer():
    """`other_slots` is a family of its own, though its name ends like that of the family trained on."""
    suites = ["slots_id", "slots_ood", "other_slots_id", "other_slots_ood"]
    base = pd.DataFrame({"suite": suites, "metric": "sampled", "value": [0.5, 0.4, 0.2, 0.4]})
    assert base_by_role(base, ["slots"])["transfer"] == pytest.approx(0.3)
