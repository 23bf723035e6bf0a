"""Sentences and tables say what the numbers say, whichever way they fall."""

import re

import numpy as np
import pandas as pd
import pytest

from dvpo_lib.reporting import tables
from dvpo_lib.reporting.findings import beside_paper
from dvpo_lib.reporting.findings.after_training import (
    ablation_findings,
    budget_findings,
    clip_cost,
    comparison_findings,
    critic_findings,
    failure_findings,
    noise_strength,
    report_findings,
    step_findings,
    training_findings,
)
from dvpo_lib.reporting.findings.before_training import base_findings, noise_findings
from dvpo_lib.reporting.prose import (
    interval_text,
    join_words,
    noise_phrase,
    percent_text,
    signed_points,
    unsigned_points,
)
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS

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


def beats_baseline(text: str) -> dict[str, float]:
    """{method: probability} of all claims "METHOD (P = 0.93)"."""
    return {name.strip(): float(p) for name, p in re.findall(r"(?:: |, | and )([\w ]+?) \(P = ([\d.]+)\)", text)}


def test_numbers_and_lists_in_words():
    assert percent_text(0.415) == "42 %" and signed_points(-0.034) == "-3 points"
    assert [signed_points(0.012), unsigned_points(-0.01)] == ["+1 point", "1 point"]
    assert interval_text(0.5, 0.4, 0.6).replace("\N{NO-BREAK SPACE}", " ") == "50 % [40, 60]"
    assert interval_text(0.5, np.nan, np.nan, unit="") == "50"
    assert join_words(["a"]) == "a" and join_words("abc") == "a, b and c" and join_words([]) == "none"


def test_noise_phrase_starts_a_sentence_with_a_capital():
    assert noise_phrase("none") == "without noise" and noise_phrase("flip") == "under flipped labels"
    assert noise_phrase("flip", capital=True) == "Under flipped labels"
    assert noise_phrase("reward_model") == "under the reward model"


def test_comparison_names_winner_and_loser_and_nobody_in_a_tie():
    clear = final_frame(
        {
            (method, "none"): [level + 0.01 * k for k in range(FEWEST_SEEDS)]
            for method, level in (("ppo", 0.5), ("dvpo", 0.8), ("grpo", 0.2))
        }
    )
    text = comparison_findings(clear)
    assert beats_baseline(text) == {"DVPO": 1.0, "GRPO": 0.0}
    assert text.index("DVPO") < text.index("PPO ") < text.index("GRPO")  # the ranking
    tie = final_frame({("ppo", "none"): [0.4, 0.5, 0.6, 0.7] * 3, ("dvpo", "none"): [0.41, 0.49, 0.62, 0.68] * 3})
    text = comparison_findings(tie)
    assert beats_baseline(text) == {} and "None differs from PPO" in text


@pytest.mark.parametrize("seeds", [1, FEWEST_SEEDS - 1, FEWEST_SEEDS])
def test_fewer_than_ten_seeds_make_no_claim(seeds):
    scores = np.array([0.5 + 0.01 * i for i in range(seeds)])
    few = seeds < FEWEST_SEEDS
    text = comparison_findings(final_frame({("ppo", "none"): scores, ("dvpo", "none"): scores + 0.3}))
    assert ("too few" in text) == few and (beats_baseline(text) == {}) == few
    rows = final_frame({("core", "spikes"): scores, ("+ consistency", "spikes"): scores + 0.3})
    text = ablation_findings(rows)
    assert ("too few" in text) == few and ("beyond the interval" in text) != few and "+30.0 points" in text


def test_the_method_with_fewest_seeds_decides_whether_a_claim_is_made():
    scores = [0.5 + 0.01 * i for i in range(FEWEST_SEEDS)]
    text = comparison_findings(final_frame({("ppo", "none"): scores, ("dvpo", "none"): [0.9] * 3}))
    assert "3 seeds are too few" in text and beats_baseline(text) == {}


def test_a_control_that_cut_nothing_is_named():
    """Equal in every run and metric: the comparison then holds the same runs twice."""

    def compared(control: list[float]) -> str:
        return comparison_findings(
            final_frame(
                {("grpo", "flip"): [0.7, 0.8], ("grpo_clip_reward", "flip"): control, ("ppo", "flip"): [0.5, 0.6]}
            )
        )

    pair = "GRPO and GRPO, clipped reward"
    assert pair in compared([0.7, 0.8]) and pair not in compared([0.8, 0.7])


def test_training_findings_report_the_share_of_the_gain_that_noise_leaves():
    text = training_findings(final_frame({("ppo", "none"): [0.80] * 4, ("ppo", "spikes"): [0.50] * 4}), BASE)
    assert "+40 points" in text and "25 %" in text  # 0.1 of 0.4 is left
    worse = final_frame({("ppo", "none"): [0.3] * 2, ("ppo", "flip"): [0.3] * 2})
    lines = training_findings(worse, BASE).splitlines()
    assert not any("%" in line for line in lines[2:-1])  # no gain, no share of it


@pytest.mark.parametrize(("under_noise", "lost"), [(0.7, 25), (0.6, 50), (0.8, 0)])
def test_strength_of_a_noise_is_what_ppo_loses(under_noise, lost):
    final = final_frame({("ppo", "none"): [0.8] * 3, ("ppo", "spikes"): [under_noise] * 3})
    text = noise_strength(final, BASE)  # 0.4 before training
    assert "that PPO loses (ID)" in text and text.replace("\N{NO-BREAK SPACE}", " ").endswith(f"spikes {lost} %.")


def test_cost_of_clipping_is_reported_if_there_is_one():
    final = final_frame({("ppo", "none"): [0.95] * 10, ("ppo_clip_reward", "none"): [0.90] * 10})
    text = clip_cost(final, 0.1)
    assert "5 points behind PPO" in text and "10 %" in text
    equal = final_frame({("ppo", "none"): [0.9] * 10, ("ppo_clip_reward", "none"): [0.9] * 10})
    assert "points" not in clip_cost(equal, 0.1) and "PPO" in clip_cost(equal, 0.1)
    assert clip_cost(final[final["method"] == "ppo"], 0.1) == ""
    assert clip_cost(final[final["seed"] < 9], 0.1) == "", "no claim on nine seeds"
    few, spikes = final[final["seed"] < 9], final.assign(noise="spikes")
    assert clip_cost(pd.concat([few, spikes]), 0.1) == "", "ten seeds under another noise are no more seeds of this one"
    assert clip_cost(pd.concat([final, few[few["method"] == "ppo"].assign(method="dvpo")]), 0.1) == clip_cost(
        final, 0.1
    )


def test_report_findings_hold_comparison_failures_and_ablation():
    final = final_frame({("ppo", "none"): [0.95] * 3, ("ppo_clip_reward", "none"): [0.90] * 3})
    ablation = final_frame({("core", "spikes"): [0.5] * 3, ("+ consistency", "spikes"): [0.6] * 3})
    text = report_findings(final, BASE, ablation, 0.1)
    for part in (comparison_findings(final), failure_findings(final, BASE), ablation_findings(ablation)):
        assert text.count(part) == 1
    assert "40 %" in text and "heavy-tailed spikes" in text  # the base policy, the ablation's noise


def test_failures_name_idle_methods_and_gaps_to_the_baseline():
    bad = final_frame({("ppo", "spikes"): [0.6] * 10, ("dvpo", "spikes"): [0.40] * 10})
    idle, behind = failure_findings(bad, BASE).splitlines()
    assert idle.endswith(": DVPO.") and "20 points behind PPO" in behind
    good = final_frame({("ppo", "none"): [0.6] * 10, ("dvpo", "none"): [0.7] * 10})
    assert "PPO" not in failure_findings(good, BASE)
    few = failure_findings(bad[bad["seed"] < 9], BASE)
    assert "9 seeds are too few" in few and "DVPO" not in few


def test_ablation_findings_pair_by_seed_and_count_clear_changes():
    core = np.array([0.1, 0.5, 0.9, 0.3] * 3)
    final = final_frame(
        {
            ("core", "spikes"): core,
            ("+ consistency", "spikes"): core + 0.05,
            ("+ mean shift", "spikes"): core + 0.05 + np.array([0.2, -0.2, 0.2, -0.2] * 3),
            ("without mean shift", "spikes"): core,
        }
    )
    *rows, total = ablation_findings(final).splitlines()
    changes = {name: float(change) for name, change in re.findall(r"\*\*(.+?)\*\*: ([+-][\d.]+)", "\n".join(rows))}
    assert changes == {"+ consistency": 5.0, "+ mean shift": 0.0, "without mean shift": -5.0}
    assert ["not separable" in row for row in rows] == [False, True, True] and "1 of 3" in total


def test_budget_findings_tell_equal_from_unequal_budgets():
    curves = pd.DataFrame({"method": ["ppo", "grpo"], "rollouts": [6144, 6144]})
    final = final_frame({("ppo", "none"): [0.5] * 4, ("grpo", "none"): [0.5] * 4})
    equal = budget_findings(curves, final)
    assert equal.count("6,144") == 1 and "4 seeds" in equal and "GRPO" not in equal
    unequal = budget_findings(curves.assign(rollouts=[6144, 5120]), final)
    assert "not equal" in unequal and "PPO 6,144" in unequal and "GRPO 5,120" in unequal


def test_base_findings_name_the_best_style_and_admit_if_no_style_shows():
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
    found = [int(n) for n in re.findall(r"(\d+) %", text)]
    # the suite, its best of 2, careful, careless, share of careful answers, then from all answers to careful ones
    assert found == [50, 75, 75, 25, 50, 50, 75] and "careful" in text
    untrained = base_findings({"math_id": table.assign(completion="x")}, ("careful", "careless"))
    assert "careful" not in untrained and [int(n) for n in re.findall(r"(\d+) %", untrained)] == [50, 75]


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

    def said(**changes) -> str:
        return noise_findings(pd.DataFrame([{**row, **changes}]), rewards)

    assert re.findall(r"[\d.]+ %", said()) == ["25.0 %", "75.0 %", "25 %", "25 %"] and "0.02" not in said()
    assert "30.0 %" in said(missing=0.3) and "-0.50" in said(length_error=-0.5)
    assert "%" not in said(missing=1.0, accuracy=float("nan"))  # nothing received, nothing to compare


def test_step_findings_tell_style_blindness_and_checking_apart():
    cases = {"style": (-0.01, 0.3), "neither": (-0.01, 0.01), "step": (-0.4, 0.3)}
    texts = {
        name: step_findings({"quantile": {"wrong": wrong, "style": style, "count": 7}}, "none")
        for name, (wrong, style) in cases.items()
    }
    assert len({text.rpartition("). ")[2] for text in texts.values()}) == 3  # three verdicts
    for name, (wrong, _) in cases.items():
        assert f"{wrong:+.2f}" in texts[name] and "7 held-out" in texts[name] and "without noise" in texts[name]


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
    table = beside_paper.ablation_table(final, BASE).set_index("")
    assert table.loc["core", "paper: ALL"] == "36.63" and table.loc["base policy", "here: ID"] == "40.0"
    change = beside_paper.beside_paper(final, BASE).set_index(["row", "source"])["change"]
    assert change["core", "paper"] == pytest.approx(1.99) and change["core", "here"] == pytest.approx(10)
    assert "taken from summaries" in beside_paper.PAPER_NOTE


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
    table = beside_paper.paper_table(both, start, ["math", "science"]).set_index(["trained on", ""])
    assert len(table) == 6 and table.loc[("math", "base policy"), "here: ID"] == "40.0"
    assert table.loc[("math", "DVPO"), "here: ID"].startswith("70.0")
    assert table.loc[("science", "DVPO"), "here: ID"].startswith("90.0")
    assert table.loc[("science", "DVPO"), "paper: ALL"] == "39.63"
    talks = start.assign(suite=["dialogue_id", "dialogue_ood", "math_id", "math_ood"])
    own = beside_paper.paper_table(math.assign(family="dialogue"), talks, ["dialogue"]).set_index("")
    assert own.loc["DVPO", "paper: ID"] == "86.79" and own.loc["DVPO", "paper: ALL"] == ""
    assert own.loc["base policy", "here: transfer"] == "30.0"
    without = beside_paper.paper_table(math, start, ["math", "science"]).set_index(["trained on", ""])
    assert without.loc[("science", "DVPO"), ["paper: ALL", "here: ALL"]].tolist() == ["39.63", ""], "not computed"


def test_dialogues_are_shown_by_domain_with_the_papers_figures_in_brackets():
    names = ("life", "transport", "health", "social", "finance", "sampled")
    rows = [("dialogue_id", name, 0.1 * k) for k, name in enumerate(names, start=1)]
    start = pd.DataFrame(rows, columns=["suite", "metric", "value"])
    runs = [
        start.assign(value=start["value"] + change, method="ppo", noise="none", family="dialogue", seed=seed)
        for seed, change in enumerate((0.1, 0.3))
    ]
    table = beside_paper.domain_table(pd.concat(runs), start).set_index("")
    assert table.loc["PPO", ["life", "health", "mean"]].tolist() == ["30.0", "50.0 (90.87)", "80.0 (85.20)"]
    assert table.loc["base policy", "mean"] == "60.0 (86.26)"
    assert table.loc["DVPO", ["life", "mean"]].tolist() == ["– (88.13)", "– (86.79)"], "the paper's stand without ours"


def test_tables_are_the_same_html_every_time_and_carry_no_index():
    frame = pd.DataFrame({"noise": ["none"], "value": [0.123456]}, index=[7])
    page = tables.show_table(frame, "A caption", {"value": "{:.1%}"}).to_html()
    assert page == tables.show_table(frame, "A caption", {"value": "{:.1%}"}).to_html()
    assert "12.3%" in page and "A caption" in page and ">7<" not in page
    assert "&lt;user&gt; day mon" in tables.show_table(
        pd.DataFrame({"says": ["<user> day mon"]}), ""
    ).to_html().replace("\N{NO-BREAK SPACE}", " ")  # a word of dialogues, no tag


def test_links_to_every_page():
    pages = tables.page_addresses(["dvpo", "ppo"])
    assert len(set(pages.values())) == len(pages) and "../03_dvpo_training/ppo/notebook.html" in pages.values()
    assert tables.page_links(pages).count("\n") == len(pages) - 1


def without(final: pd.DataFrame, **where) -> pd.DataFrame:
    """The frame without the value of the rows that match."""
    chosen = np.logical_and.reduce([final[column] == value for column, value in where.items()])
    return final.assign(value=final["value"].mask(chosen))


def test_missing_numbers_are_called_missing():
    for text in (
        percent_text(np.nan),
        signed_points(np.nan),
        interval_text(np.nan, np.nan, np.nan),
        percent_text(None),
    ):
        assert text == "missing"


def test_findings_name_missing_scores_and_draw_no_conclusion_from_them():
    final = final_frame({(m, n): [0.8, 0.7, 0.9] for m in ("ppo", "dvpo") for n in ("none", "spikes")})
    final = without(final, method="dvpo", noise="spikes", seed=2, suite="math_id")
    whose = "DVPO under heavy-tailed spikes, trained on math, seed 2 (math)"
    for text in (
        comparison_findings(final),
        training_findings(final[final["method"] == "dvpo"], BASE),
        failure_findings(final, BASE),
    ):
        assert whose in text and "nan" not in text
    assert "Nothing of this kind" not in failure_findings(final, BASE)
    under = next(line for line in comparison_findings(final).splitlines() if "spikes" in line)
    assert "DVPO missing" in under.replace("\N{NO-BREAK SPACE}", " ") and "None differs" not in under
    assert "missing" in noise_strength(without(final, method="ppo", noise="spikes", suite="math_id"), BASE)
    lost = final_frame({("ppo", "none"): [0.9] * 10, ("ppo_clip_reward", "none"): [0.8] * 10})
    assert "missing" in clip_cost(without(lost, method="ppo", seed=0), 0.1)


def test_runs_that_diverged_are_counted_and_named_and_never_averaged():
    final = final_frame({(m, n): [0.8, 0.7, 0.9] for m in ("ppo", "dvpo") for n in ("none", "spikes")})
    lost = (final["method"] == "dvpo") & (final["noise"] == "spikes") & (final["seed"] > 0)
    final = final.assign(value=final["value"].mask(lost), diverged=pd.Series(7.0, final.index).where(lost))
    for text in (
        comparison_findings(final),
        training_findings(final[final["method"] == "dvpo"], BASE),
        failure_findings(final, BASE),
    ):
        assert "DVPO under heavy-tailed spikes: 2 of 3 diverged (math, seed 1, at step 7; math, seed 2" in text
        assert "Missing scores" not in text and "nan" not in text
    assert "DVPO 2 of 3 diverged" in comparison_findings(final).replace("\N{NO-BREAK SPACE}", " ")
    table = tables.final_table(final).set_index(["noise", "method"]).loc["heavy-tailed spikes"]
    assert (
        set(table.loc["DVPO", ["ID", "OOD", "ALL"]]) == {"2\xa0of\xa03\xa0diverged"} and table.loc["DVPO", "runs"] == 1
    )
    metrics = tables.final_metrics(final, pd.DataFrame({"rollouts": [10]}))
    assert metrics["diverged"] == 2 and metrics["accuracy"]["dvpo"]["spikes"]["ID"] == {"iqm": None}
    assert "diverged" not in tables.final_metrics(final[~lost], pd.DataFrame({"rollouts": [10]}))
    rows = final.replace({"method": {"ppo": "core", "dvpo": "+ consistency"}})
    rows = rows[rows["noise"] == "spikes"]
    assert "the change is missing" in ablation_findings(rows) and "2 of 3 diverged" in ablation_findings(rows)
    assert "2\xa0of\xa03\xa0diverged" in beside_paper.ablation_table(rows, BASE).to_numpy()


def test_ablation_findings_show_a_missing_change():
    final = final_frame({("core", "spikes"): [0.5] * 3, ("+ consistency", "spikes"): [0.6] * 3})
    row, _, named = ablation_findings(without(final, method="core", seed=1, suite="math_ood")).splitlines()
    assert "missing" in row and "points" not in row and "core" in named and "seed 1" in named


def test_tables_and_metrics_show_missing_scores():
    final = final_frame({("ppo", "none"): [0.8, 0.7], ("dvpo", "none"): [0.9, 0.8]})
    final = final.drop(final[(final["method"] == "dvpo") & (final["seed"] == 1) & (final["role"] == "OOD")].index)
    table = tables.final_table(final, base=BASE).set_index("method")
    assert table.loc["DVPO", ["OOD", "ALL"]].tolist() == ["missing"] * 2
    assert "missing" not in table.loc[["PPO", "base policy"]].to_numpy().ravel()
    curves = pd.DataFrame({"rollouts": [10]})
    accuracy = tables.final_metrics(final, curves)["accuracy"]
    assert accuracy["dvpo"]["none"]["OOD"] == {"iqm": None} and accuracy["dvpo"]["none"]["ID"]["iqm"] > 0
    cut = final.drop(final[(final["method"] == "dvpo") & (final["seed"] == 1) & (final["role"] == "ID")].index)
    shown = tables.headline_metrics(cut)
    assert set(shown) == {"ppo", "dvpo"} and shown["dvpo"] == {"none": None} and shown["ppo"]["none"] > 0


def test_base_policy_without_a_test_set_has_no_mean():
    scores = {"math_id": 0.5, "math_ood": 0.3, "science_id": 0.4}
    base = pd.DataFrame({"suite": list(scores), "metric": "sampled", "value": list(scores.values())})
    by_role = tables.base_by_role(base, ["math"])  # science_ood is absent
    assert by_role["ID"] == 0.5 and np.isnan(by_role["transfer"]) and np.isnan(by_role["ALL"])


def test_critic_tables_show_a_missing_run():
    columns = ["ev_received", "ev_true", "crps", "cover50", "cover80", "cover90"]
    rows = [
        {"noise": "none", "critic": critic, "family": "math", "seed": seed, "at": "last", **dict.fromkeys(columns, 0.5)}
        for critic in ("quantile", "scalar", "constant")
        for seed in (0, 1)
    ]
    scores = pd.DataFrame(rows)
    scores.loc[scores["critic"] == "scalar", ["cover50", "cover80", "cover90"]] = np.nan  # it predicts points
    scores.loc[0, ["crps", "cover80"]] = np.nan
    table = tables.critic_table(scores).set_index("critic")
    assert table.loc["quantile critic", ["inside 80%", "CRPS (of a point: its error)"]].tolist() == ["missing"] * 2
    assert table.loc["scalar critic", "inside 80%"] == "" and table.loc["quantile critic", "inside 50%"] == "50 %"
    metrics = tables.critic_metrics(scores)
    assert metrics["quantile"]["none"]["last"]["crps"] is None and "cover80" not in metrics["scalar"]["none"]["last"]
    assert "missing" in critic_findings(scores) and "it knows" not in critic_findings(scores)
