"""Sentences and tables say what the numbers say, whichever way they fall."""

import re

import numpy as np
import pandas as pd
import pytest

from dvpo_lib.reporting import tables
from dvpo_lib.reporting.findings.after_training import (
    ablation_findings,
    budget_findings,
    clip_cost,
    comparison_findings,
    failure_findings,
    noise_strength,
    report_findings,
    step_findings,
    training_findings,
)
from dvpo_lib.reporting.findings.before_training import base_findings, noise_findings
from dvpo_lib.reporting.prose import interval_text, join_words, percent_text, signed_points

BASE = {"ID": 0.40, "OOD": 0.20, "transfer": 0.30, "ALL": 0.30}


def final_frame(scores: dict) -> pd.DataFrame:
    """{(method, noise): scores of seeds in distribution}; the other suites lie 0.2 and 0.1 below."""
    rows = [
        (method, noise, "math", seed, suite, role, "sampled", value - below)
        for (method, noise), values in scores.items()
        for seed, value in enumerate(values)
        for suite, role, below in (("math_id", "ID", 0), ("math_ood", "OOD", 0.2), ("science_id", "transfer", 0.1))
    ]
    return pd.DataFrame(rows, columns=["method", "noise", "family", "seed", "suite", "role", "metric", "value"])


def test_small_pieces():
    assert percent_text(0.415) == "42 %" and signed_points(-0.034) == "-3 points"
    assert interval_text(0.5, 0.4, 0.6).replace("\N{NO-BREAK SPACE}", " ") == "50 % [40, 60]"
    assert interval_text(0.5, np.nan, np.nan, unit="") == "50"
    assert join_words(["a"]) == "a" and join_words("abc") == "a, b and c" and join_words([]) == "none"


def test_comparison_names_winner_and_loser_and_keeps_quiet_about_ties():
    clear = final_frame(
        {
            ("ppo", "none"): [0.50, 0.51, 0.52, 0.53],
            ("dvpo", "none"): [0.80, 0.81, 0.82, 0.83],
            ("grpo", "none"): [0.20, 0.21, 0.22, 0.23],
        }
    )
    text = comparison_findings(clear)
    assert "Better than PPO beyond the interval: DVPO (P = 1.00)" in text and "Worse than PPO: GRPO (P = 0.00)" in text
    assert "Intervals of 4 seeds are too short" in text
    tie = final_frame({("ppo", "none"): [0.4, 0.5, 0.6, 0.7], ("dvpo", "none"): [0.41, 0.49, 0.62, 0.68]})
    assert "None differs" in comparison_findings(tie)


def test_a_control_that_cut_nothing_is_named():
    """Equal in every run and metric: the comparison then holds the same runs twice."""

    def compared(control: list[float]) -> str:
        return comparison_findings(
            final_frame(
                {("grpo", "flip"): [0.7, 0.8], ("grpo_clip_reward", "flip"): control, ("ppo", "flip"): [0.5, 0.6]}
            )
        )

    assert "GRPO and GRPO, clipped reward are equal run by run" in compared([0.7, 0.8])
    assert "equal run by run" not in compared([0.8, 0.7])


def test_training_findings_report_the_share_of_the_gain_that_noise_leaves():
    final = final_frame({("ppo", "none"): [0.80] * 4, ("ppo", "spikes"): [0.50] * 4})
    text = training_findings(final, BASE)
    assert "25 % of the noise-free gain" in text  # 0.1 of 0.4
    assert "+40 points" in text
    worse = training_findings(final_frame({("ppo", "none"): [0.3] * 2, ("ppo", "flip"): [0.3] * 2}), BASE)
    assert "no noise-free gain" in worse


@pytest.mark.parametrize(("under_noise", "verdict"), [(0.75, "too weak"), (0.6, "as intended"), (0.45, "too strong")])
def test_strength_of_the_noise_is_judged_by_what_ppo_loses(under_noise, verdict):
    final = final_frame({("ppo", "none"): [0.8] * 3, ("ppo", "spikes"): [under_noise] * 3})
    assert f"({verdict})" in noise_strength(final, BASE)


def test_cost_of_clipping_is_said_where_there_is_nothing_to_clip():
    final = final_frame({("ppo", "none"): [0.95] * 3, ("ppo_clip_reward", "none"): [0.90] * 3})
    text = clip_cost(final, 0.1)
    assert "ends 5 points behind PPO" in text and "fewer than 10 %" in text
    final = final_frame({("ppo", "none"): [0.9] * 3, ("ppo_clip_reward", "none"): [0.9] * 3})
    assert "loses nothing" in clip_cost(final, 0.1)
    assert clip_cost(final[final["method"] == "ppo"], 0.1) == ""


def test_findings_hold_comparison_failures_and_ablation():
    final = final_frame({("ppo", "none"): [0.95] * 3, ("ppo_clip_reward", "none"): [0.90] * 3})
    ablation = final_frame({("core", "spikes"): [0.5] * 3, ("+ consistency", "spikes"): [0.6] * 3})
    text = report_findings(final, BASE, ablation, 0.1)
    assert text.count("**Comparison**") == 1 and "has 40 % ID" in text and "ends 5 points behind" in text
    assert "under heavy-tailed spikes, each row against" in text and "+10.0 points" in text


def test_failures_are_said_and_their_absence_too():
    bad = final_frame({("ppo", "spikes"): [0.6] * 3, ("dvpo", "spikes"): [0.40] * 3})
    text = failure_findings(bad, BASE)
    assert "do not improve on the base policy (ID): DVPO" in text and "DVPO is 20 points behind PPO" in text
    good = final_frame({("ppo", "none"): [0.6], ("dvpo", "none"): [0.7]})
    assert "Nothing of this kind" in failure_findings(good, BASE)


def test_ablation_findings_pair_by_seed_and_count_what_is_separable():
    core = np.array([0.1, 0.5, 0.9, 0.3])
    final = final_frame(
        {
            ("core", "spikes"): core,
            ("+ consistency", "spikes"): core + 0.05,
            ("+ mean shift", "spikes"): core + 0.05 + np.array([0.2, -0.2, 0.2, -0.2]),
            ("without mean shift", "spikes"): core,
        }
    )
    text = ablation_findings(final)
    assert re.search(r"\+ consistency\*\*: \+5\.0 points \[\+5\.0, \+5\.0\] over all test sets\.", text)
    assert re.search(r"\+ mean shift\*\*: [+-]0\.0 points .*not separable", text)
    assert "without mean shift" in text and "In all, 1 of 3" in text


def test_budget_says_when_it_is_not_equal():
    curves = pd.DataFrame({"method": ["ppo", "grpo"], "rollouts": [6144, 6144]})
    final = final_frame({("ppo", "none"): [0.5] * 4, ("grpo", "none"): [0.5] * 4})
    said = budget_findings(curves, final)
    assert "6,144 scored rollouts" in said and "4 seeds" in said
    unequal = budget_findings(curves.assign(rollouts=[6144, 5120]), final)
    assert "**not equal**" in unequal and "GRPO 5,120" in unequal


def test_base_findings_name_what_can_be_elicited_and_admit_when_nothing_shows():
    right = [1, 1, 1, 0, 0, 0, 0, 1]
    table = pd.DataFrame(
        {
            "prompt": list("aabbccdd"),
            "completion": ["careful x"] * 4 + ["careless x"] * 4,
            "reward": right,
            "sample": [0, 1] * 4,
        }
    )
    text = base_findings({"math_id": table}, ("careful", "average", "careless"))
    assert "careful style get 75 %" in text and "best of 2: 75 %" in text and "50 % of the time" in text
    untrained = {"math_id": table.assign(completion="x")}
    assert "too little training" in base_findings(untrained, ("careful", "careless"))


def test_noise_findings_give_rates_among_right_and_wrong():
    row = {
        "noise": "flip",
        "corrupted": 0.25,
        "accuracy": 0.75,
        "false_negatives": 0.25,
        "false_positives": 0.25,
        "missing": 0.0,
        "length_error": 0.02,
    }
    rewards = pd.DataFrame({"noise": "flip", "received": [0.0, 1.0]})
    text = noise_findings(pd.DataFrame([row]), rewards)
    assert text.count("25 %") == 2 and "25.0 %" in text and "75.0 %" in text
    assert "no reward" not in text and "length" not in text
    text = noise_findings(pd.DataFrame([{**row, "missing": 0.3, "length_error": -0.5}]), rewards)
    nothing = noise_findings(pd.DataFrame([{**row, "missing": 1.0, "accuracy": float("nan")}]), rewards)
    assert nothing.endswith("no response gets a reward.")
    assert "30.0 % of all responses get no reward" in text and "(correlation -0.50)" in text


@pytest.mark.parametrize(
    ("wrong", "style", "verdict"),
    [(-0.01, 0.3, "judges by the style"), (-0.01, 0.01, "sees neither"), (-0.4, 0.3, "sees that something went wrong")],
)
def test_step_findings_follow_the_numbers(wrong, style, verdict):
    text = step_findings({"quantile": {"wrong": wrong, "style": style, "count": 7}}, "none")
    assert verdict in text and "7 held-out" in text and "without noise" in text


def test_base_by_role_depends_on_the_trained_family():
    base = pd.DataFrame(
        {
            "suite": ["math_id", "math_ood", "science_id", "science_ood"],
            "metric": "sampled",
            "value": [0.4, 0.2, 0.6, 0.0],
        }
    )
    assert tables.base_by_role(base, ["math"]) == pytest.approx({"ID": 0.4, "OOD": 0.2, "transfer": 0.3, "ALL": 0.3})
    assert tables.base_by_family(base) == {"math": 0.4, "science": 0.6}
    both = tables.base_by_role(base, ["math", "science"])
    assert both == pytest.approx({"ID": 0.5, "OOD": 0.1, "transfer": 0.3, "ALL": 0.3})


def test_final_table_groups_by_noise_and_starts_with_the_base():
    final = final_frame(
        {("ppo", "none"): [0.5], ("ppo", "flip"): [0.4], ("dvpo", "none"): [0.6], ("dvpo", "flip"): [0.5]}
    )
    table = tables.final_table(final, base=BASE)
    assert table["method"].tolist() == ["base policy", "PPO", "DVPO", "PPO", "DVPO"]
    assert table["noise"].tolist() == ["", "no noise", "no noise", "flipped labels", "flipped labels"]
    assert table["ID"].tolist() == ["40.0", "50.0", "60.0", "40.0", "50.0"]


def test_metrics_hold_finite_numbers_only():
    curves = pd.DataFrame({"rollouts": [128, 256]})
    one = tables.final_metrics(final_frame({("ppo", "none"): [0.5]}), curves)
    assert one["accuracy"]["none"]["ID"] == {"iqm": 0.5} and one["rollouts"] == 256
    several = tables.final_metrics(final_frame({("ppo", "none"): [0.5] * 2, ("dvpo", "none"): [0.6] * 2}), curves)
    assert several["accuracy"]["dvpo"]["none"]["ID"] == {"iqm": 0.6, "low": 0.6, "high": 0.6}


def test_paper_figures_stand_beside_ours_and_are_marked():
    final = final_frame({("core", "spikes"): [0.5] * 2, ("+ consistency", "spikes"): [0.6] * 2})
    table = tables.ablation_table(final, BASE).set_index("")
    assert table.loc["core", "paper: ALL"] == "36.63" and table.loc["base policy", "here: ID"] == "40.0"
    change = tables.beside_paper(final, BASE).set_index(["row", "source"])["change"]
    assert change["core", "paper"] == pytest.approx(1.99) and change["core", "here"] == pytest.approx(10)
    assert "taken from summaries" in tables.PAPER_NOTE


def test_paper_table_has_rows_of_each_family_and_keeps_them_apart():
    start = pd.DataFrame(
        {
            "suite": ["math_id", "math_ood", "science_id", "science_ood"],
            "metric": "sampled",
            "value": [0.4, 0.2, 0.6, 0.0],
        }
    )
    math = final_frame({("ppo", "none"): [0.5] * 2, ("dvpo", "none"): [0.7] * 2, ("dvpo", "spikes"): [0.1] * 2})
    both = pd.concat([math, math.assign(family="science", value=0.9)])
    table = tables.paper_table(both, start, ["math", "science"]).set_index(["trained on", ""])
    assert len(table) == 6 and table.loc[("math", "base policy"), "here: ID"] == "40.0"
    assert table.loc[("math", "DVPO"), "here: ID"].startswith("70.0")
    assert table.loc[("science", "DVPO"), "here: ID"].startswith("90.0")
    assert table.loc[("science", "DVPO"), "paper: ALL"] == "39.63"
    talks = start.assign(suite=["dialogue_id", "dialogue_ood", "math_id", "math_ood"])
    own = tables.paper_table(math.assign(family="dialogue"), talks, ["dialogue"]).set_index("")
    assert own.loc["DVPO", "paper: ID"] == "86.79" and own.loc["DVPO", "paper: ALL"] == ""
    assert own.loc["base policy", "here: transfer"] == "30.0"


def test_tables_are_the_same_html_every_time_and_carry_no_index():
    frame = pd.DataFrame({"noise": ["none"], "value": [0.123456]}, index=[7])
    page = tables.show_table(frame, "A caption", {"value": "{:.1%}"}).to_html()
    assert page == tables.show_table(frame, "A caption", {"value": "{:.1%}"}).to_html()
    assert "12.3%" in page and "A caption" in page and ">7<" not in page
    assert "&lt;user&gt; day mon" in tables.show_table(
        pd.DataFrame({"says": ["<user> day mon"]}), ""
    ).to_html().replace("\N{NO-BREAK SPACE}", " ")  # a word of dialogues, no tag


def test_index_links_every_page_once():
    pages = tables.page_addresses(["dvpo", "ppo"])
    html = tables.index_page(pages)
    for address in [*pages.values(), "notebook.html"]:
        assert html.count(f'href="{address}"') == 1
    assert tables.page_links(pages).count("\n") == len(pages) - 1
