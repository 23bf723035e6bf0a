"""Findings about a published model: comparisons take three seeds, what is learned is told by kind of question."""

import pandas as pd

from dvpo_lib.reporting.findings.published import published_findings


def row(method, seed, metric, value, role="ID", noise="none", machine="a"):
    labels = dict(study="real", method=method, variant="", noise=noise, family="slots", seed=seed, key="k")
    return labels | dict(suite=f"slots_{role}", role=role, metric=metric, value=value, machine=machine)


def scored(method, seed, sampled, noise="none", **more):
    numbers = {"sampled": sampled, "greedy": sampled + 0.1, "greedy: said last": sampled + 0.2}
    return [row(method, seed, name, v, role, noise, **more) for name, v in numbers.items() for role in ("ID", "OOD")]


def test_methods_are_compared_from_three_seeds_on():
    rows = scored("base", 0, 0.3)
    for seed in range(3):
        rows += scored("ppo", seed, 0.5 + 0.01 * seed) + scored("dvpo", seed, 0.6 + 0.01 * seed)
    rows += scored("grpo", 0, 0.4, machine="b") + scored("ppo", 0, 0.1, noise="spikes")
    text = published_findings(pd.DataFrame(rows)).replace("\N{NO-BREAK SPACE}", " ")
    assert "- **Before training** the policy answers right: 30 % sampled and 40 % greedy (ID); 30 %" in text
    assert "(mean of 7 runs of all methods): all questions 40 % \u2192 64 %, said last 50 % \u2192 74 %" in text
    assert "- **Without noise** (ID): DVPO 61 % [60, 62] and PPO 51 % [50, 52].\n- 3 seeds are too few" in text
    assert "- Without noise, not compared (ID; in brackets the number of seeds): GRPO 40 % (1)." in text
    assert "- Under heavy-tailed spikes, not compared (ID; in brackets the number of seeds): PPO 10 % (1)." in text
    assert "- Computed on: a (8 runs) and b (1 run)." in text


def test_without_the_base_policy_nothing_is_said_of_learning():
    text = published_findings(pd.DataFrame(scored("dvpo", 0, 0.5)))
    assert "Before" not in text and "learned" not in text and "DVPO 50 % (1)" in text
