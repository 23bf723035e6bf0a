"""Verdicts on claims, on made-up runs: the hardest rival decides, few runs decide nothing, corrections count."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.chain.params import load_params
from dvpo_lib.experiments.grids.studies import CLAIMED, STUDIES
from dvpo_lib.reporting import tables
from dvpo_lib.reporting.findings import beside_paper, recommended, verdict_page, verdict_sentences
from dvpo_lib.reporting.names import BASE
from dvpo_lib.reporting.statistics import claims, comparisons, verdicts
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS, detectable_difference, sign_flip_test
from dvpo_lib.reporting.statistics.runs import run_scores
from dvpo_lib.reporting.statistics.study_rows import as_methods

LONGER = "DVPO leads PPO on longer problems (OOD), and by more than ID"
OTHERS = "DVPO leads PPO on other families (transfer), and by more than ID"
STEPS = "DVPO's TD errors find a wrong step, and better than those of PPO and Robust PPO"
SUITES = {"math_id": "ID", "math_ood": "OOD", "science_id": "transfer"}


def made_up_runs(means, seeds=10, noise="spikes", study="comparison", spread=0.01, variant=False):
    """Runs whose scores are `means` (of all test sets, or by role) and noise that pairs share in part."""
    rows = []
    for seed in range(seeds):
        shared = np.random.default_rng(seed).normal(0, 0.05)
        for k, (name, mean) in enumerate(means.items()):
            for j, (suite, role) in enumerate(SUITES.items()):
                level = mean if isinstance(mean, float) else mean[role]
                own = np.random.default_rng([seed, k, j]).normal(0, spread)
                label = dict(method="dvpo", variant=name) if variant else dict(method=name, variant="")
                labels = dict(study=study, **label, noise=noise, family="math", seed=seed)
                rows.append(
                    labels
                    | dict(suite=suite, role=role, metric="sampled", value=level + shared + own)
                    | dict(plan=f"{name} {noise} {seed}")
                )
    return pd.DataFrame(rows)


def made_up_steps(means):
    """Runs of the study of wrong steps, with the AUC of each method."""
    rows = made_up_runs(means, study="wrong_steps").query("role == 'ID'")
    return rows.assign(metric="error_td_auc", role="advantages", suite="first batch")


def made_up_rates(means):
    """Runs of the study of learning rates: {rate: {method: mean}}."""
    own = [made_up_runs(m, study="learning_rates").assign(variant=f"learning rate {rate}") for rate, m in means.items()]
    return pd.concat(own)


def scores_of(runs):
    return run_scores(runs, overall=True)


def verdict_of(table, text):
    [row] = table[table["claim"] == text].to_dict("records")
    return row


def test_the_hardest_rival_decides():
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.9, "robust_ppo": 0.8, "cql": 0.5, "rfqi": 0.75})
    table = verdicts.verdict_table({"comparison": runs})
    assert verdict_of(table, "DVPO is better than PPO")["verdict"] == "confirmed"
    assert verdict_of(table, "DVPO is better than GRPO")["verdict"] == "refuted"
    assert verdict_of(table, "DVPO is better than Robust PPO")["verdict"] == "not confirmed"
    offline = verdict_of(table, "DVPO is better than offline worst-case methods")
    assert offline["rival"] == "rfqi" and offline["difference"] == pytest.approx(0.05, abs=0.01)
    each = [sign_flip_test(claims.role_pairs(scores_of(runs), "dvpo", rival)["difference"]) for rival in claims.OFFLINE]
    assert offline["p"] == pytest.approx(max(each)), "both rivals have to be beaten"
    better = made_up_runs({"dvpo": 0.6, "cql": 0.5, "rfqi": 0.62}, spread=0.03)
    refuting = verdict_of(verdicts.verdict_table({"comparison": better}), offline["claim"])
    alone = sign_flip_test(claims.role_pairs(scores_of(better), "dvpo", "rfqi")["difference"])
    assert refuting["p"] == pytest.approx(min(1, 2 * alone)), "either rival may refute the claim"
    assert (table["corrected"].dropna() >= table["p"].dropna()).all()


@pytest.mark.parametrize("seeds, verdict", [(9, "no claim: 9 of 10 seeds"), (10, "confirmed")])
def test_no_claim_rests_on_few_runs(seeds, verdict):
    table = verdicts.verdict_table({"comparison": made_up_runs({"dvpo": 0.8, "ppo": 0.7}, seeds)})
    assert verdict_of(table, "DVPO is better than PPO")["verdict"] == verdict
    assert verdict_of(table, "200 quantiles are best")["n"] == 0, "a study that has not been computed"


def test_gains_out_of_distribution_are_compared_inside_a_run():
    dvpo = {"ID": 0.8, "OOD": 0.7, "transfer": 0.9}
    table = verdicts.verdict_table({"comparison": made_up_runs({"dvpo": dvpo, "ppo": 0.6})})
    row = verdict_of(table, LONGER)
    assert row["verdict"] == "refuted" and row["difference"] == pytest.approx(-0.1, abs=0.01)
    assert row["measure"] == "OOD minus ID"
    row = verdict_of(table, OTHERS)
    assert row["verdict"] == "confirmed" and row["difference"] == pytest.approx(0.1, abs=0.01)


def test_a_smaller_deficit_is_no_lead():
    """A policy that learned less in its own family also differs less elsewhere."""
    dvpo = {"ID": 0.4, "OOD": 0.5, "transfer": 0.6}
    table = verdicts.verdict_table({"comparison": made_up_runs({"dvpo": dvpo, "ppo": 0.6})})
    row = verdict_of(table, LONGER)
    assert row["verdict"] == "refuted" and row["measure"] == "OOD"
    assert row["difference"] == pytest.approx(-0.1, abs=0.01), "behind by 10 points there, by 20 ID"
    assert verdict_of(table, OTHERS)["verdict"] == "not confirmed"
    [shown] = verdict_page.verdict_details(table).query("claim == @LONGER")["rival"]
    assert shown == "PPO (OOD)"


def test_the_best_of_a_row_of_settings():
    counts = {f"M = {m}": v for m, v in {10: 0.6, 50: 0.7, 200: 0.8, 500: 0.79}.items()}
    runs = made_up_runs(counts, study="quantile_counts", variant=True, spread=0.002)
    row = verdict_of(verdicts.verdict_table({"quantile_counts": runs}), "200 quantiles are best")
    assert row["rival"] == "M = 500" and row["verdict"] == "confirmed"
    terms = {"core": 0.7, claims.FULL: 0.8, "without mean shift": 0.85, "without tail shape": 0.8}
    table = verdicts.verdict_table({"ablation": made_up_runs(terms, study="ablation", variant=True)})
    assert verdict_of(table, "The mean-shift term helps")["verdict"] == "refuted"
    assert verdict_of(table, "The tail-shape term helps")["verdict"] == "not confirmed"
    assert "Tail calibration helps" not in set(table["claim"]), "no rival has been computed"


@pytest.mark.parametrize("scored, ran", [(0, True), (1, True), (9, True), (1, False), (9, False)])
def test_a_rival_without_scores_leaves_a_claim_undecided(scored, ran):
    """Runs of a rival that diverged, or are not computed yet, are not beaten."""
    runs = made_up_runs({"dvpo": 0.8, "cql": 0.5, "rfqi": 0.4})
    rest = (runs["method"] == "rfqi") & (runs["seed"] >= scored)
    runs = runs.assign(value=runs["value"].mask(rest)) if ran else runs[~rest]
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), "DVPO is better than offline worst-case methods")
    assert row["verdict"] == f"no claim: {f'{10 - scored} of 10 lost' if ran else f'{scored} of 10 seeds'}"
    assert np.isnan(row["p"]) and np.isnan(row["corrected"])
    assert np.isnan(row["difference"]), "a difference would be half a claim"


def test_claims_are_about_the_family_with_most_seeds():
    other = made_up_runs({"dvpo": 0.2, "ppo": 0.9}, seeds=5).assign(family="science")
    table = verdicts.verdict_table({"comparison": pd.concat([other, made_up_runs({"dvpo": 0.8, "ppo": 0.7})])})
    row = verdict_of(table, "DVPO is better than PPO")
    assert row["verdict"] == "confirmed" and row["difference"] == pytest.approx(0.1, abs=0.01)


def test_ten_seeds_can_confirm_a_claim_with_many_rivals_among_all_claims():
    """Else a claim could never be confirmed, however clear its runs are."""
    means = {"dvpo": 0.9, "ppo": 0.5, "grpo": 0.5, "robust_ppo": 0.5, "cql": 0.5, "rfqi": 0.5}
    means |= dict.fromkeys(claims.CONTROLS, 0.5)
    rows = {
        "ablation": {claims.FULL: 0.9, **{f"without {term}": 0.5 for term in claims.TERMS}},
        "quantile_counts": {"M = 200": 0.9, **{f"M = {m}": 0.5 for m in (10, 25, 50, 100, 500)}},
        "critic_kinds": {"quantiles": 0.9, "categorical": 0.5, "scalar": 0.9},
        "denoised": {"quantile, median, weight 0": 0.9, "quantile, median, weight 1": 0.5}
        | {f"scalar, {centre}, weight 0": 0.5 for centre in ("median", "prompt mean")},
        "risk_weights": {"tail mass 0.1": 0.9, "term weights x 1": 0.9}
        | {f"tail mass {w}": 0.5 for w in (0.05, 0.2, 0.45)}
        | {f"term weights x {w}": 0.5 for w in (0, 0.5, 2, 5)},
    }
    evidence = {study: made_up_runs(own, study=study, variant=True) for study, own in rows.items()}
    rates = made_up_rates({rate: means for rate in claims.RATES})
    evidence["wrong_steps"] = made_up_steps({"dvpo": 0.9, "ppo": 0.5, "robust_ppo": 0.5})
    table = verdicts.verdict_table({"comparison": made_up_runs(means), "learning_rates": rates, **evidence})
    lead = table["claim"].str.contains("leads")
    assert len(table) == len(claims.CLAIMS) and set(table.loc[~lead, "verdict"]) == {"confirmed"}


def test_one_true_claim_among_null_ones_can_be_confirmed():
    terms = {claims.FULL: 0.8, **{f"without {term}": 0.8 for term in claims.TERMS}, "without mean shift": 0.7}
    table = verdicts.verdict_table({"ablation": made_up_runs(terms, study="ablation", variant=True)})
    assert verdict_of(table, "The mean-shift term helps")["verdict"] == "confirmed"
    others = table[(table["n"] > 0) & (table["claim"] != "The mean-shift term helps")]
    assert set(others["verdict"]) == {"not confirmed"} and len(others) == len(claims.TERMS) - 1


def test_one_rival_alone_can_refute_the_best_of_a_row():
    counts = {f"M = {m}": v for m, v in {10: 0.6, 25: 0.6, 50: 0.6, 100: 0.6, 200: 0.8, 500: 0.9}.items()}
    table = verdicts.verdict_table({"quantile_counts": made_up_runs(counts, study="quantile_counts", variant=True)})
    row = verdict_of(table, "200 quantiles are best")
    assert (row["rival"], row["verdict"]) == ("M = 500", "refuted")


def test_the_clearest_of_the_better_rivals_refutes():
    """Not the one with the largest difference, which may be a matter of one lucky run."""
    runs = made_up_runs({"dvpo": 0.7, "cql": 0.75, "rfqi": 0.7})
    lucky = (runs["method"] == "rfqi") & (runs["seed"] == 0)
    runs["value"] += np.where(lucky, 0.9, np.where((runs["method"] == "rfqi") & (runs["seed"] > 5), -0.03, 0.0))
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), "DVPO is better than offline worst-case methods")
    assert (row["rival"], row["verdict"]) == ("cql", "refuted")


def test_a_verdict_does_not_depend_on_what_other_studies_have_computed():
    comparison = made_up_runs({"dvpo": 0.72, "ppo": 0.7}, spread=0.03)
    terms = {claims.FULL: 0.8, **{f"without {term}": 0.8 for term in claims.TERMS}}
    ablation = made_up_runs(terms, study="ablation", variant=True)
    alone, both = (
        verdicts.verdict_table({"comparison": comparison, **more}).set_index("claim").loc["DVPO is better than PPO"]
        for more in ({}, {"ablation": ablation})
    )
    assert alone["corrected"] == both["corrected"] == min(1, 7 * alone["p"]), "seven claims rest on the comparison"
    assert sum(claim.study == "comparison" for claim in claims.CLAIMS) == 7


def test_a_difference_that_these_runs_would_show_is_one_after_correction():
    runs = made_up_runs({"dvpo": 0.705, "ppo": 0.7}, spread=0.03)
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), "DVPO is better than PPO")
    d = claims.role_pairs(scores_of(runs), "dvpo", "ppo")["difference"]
    assert row["detectable"] == pytest.approx(detectable_difference(d, 0.05 / 7))
    assert row["detectable"] > detectable_difference(d)
    runs = made_up_runs({"dvpo": 0.7, "cql": 0.71, "rfqi": 0.7}, spread=0.03)
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), "DVPO is better than offline worst-case methods")
    d = claims.role_pairs(scores_of(runs), "dvpo", row["rival"])["difference"]
    assert row["detectable"] == pytest.approx(detectable_difference(d, 0.05 / 14)), "two rivals, seven claims"


def test_a_claim_is_repeated_at_equal_learning_rates():
    """Tuning gave DVPO and PPO different rates: what looked like the method's may be the rate's."""
    tuned = made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.6})
    equal = made_up_rates({rate: {"dvpo": 0.8, "ppo": 0.8, "grpo": 0.6} for rate in claims.RATES})
    evidence = {"comparison": tuned, "learning_rates": equal}
    table = verdicts.verdict_table(evidence)
    text = "DVPO is better than PPO"
    again = table[table["repeats"] == text]
    assert list(again["claim"]) == [f"{text}, both at learning rate {rate}" for rate in claims.RATES]
    assert set(again["verdict"]) == {"not confirmed"} and verdict_of(table, text)["verdict"] == "confirmed"
    pairs = claims.role_pairs(scores_of(equal[equal["variant"] == "learning rate 1e-4"]), "dvpo", "ppo")["difference"]
    assert again.iloc[0]["difference"] == pytest.approx(pairs.mean()), "runs of one rate alone"
    told = verdict_sentences.settled_findings(table).splitlines()
    [line] = [line for line in told if text in line]
    assert line.startswith(f"- **Confirmed as tuned only**: {text}, under heavy-tailed spikes (+")
    assert told[-1] == line, "what may be due to the rates comes last"
    tuned_only = verdict_page.verdict_matrix(table).set_index("claim")["heavy-tailed spikes"]
    assert tuned_only[text].startswith("confirmed as tuned only (+")
    assert tuned_only["DVPO is better than GRPO"].startswith("confirmed (+"), "so at equal rates"
    assert " points; both at 1e-4 " in line
    assert line.count(", not confirmed") == 2 and line.endswith(", not confirmed).")
    [line] = [line for line in told if "better than GRPO" in line]
    assert line.count(", confirmed") == 2, "the same verdict at both rates, beside the tuned one"
    rows = list(verdict_page.verdict_matrix(table)["claim"])
    assert rows[rows.index(text) + 1] == "the same, both at learning rate 1e-4"


def test_a_claim_that_is_settled_at_equal_rates_alone_is_told():
    tuned = made_up_runs({"dvpo": 0.8, "ppo": 0.8})
    equal = made_up_rates({"1e-4": {"dvpo": 0.8, "ppo": 0.7}, "2e-4": {"dvpo": 0.8, "ppo": 0.8}})
    table = verdicts.verdict_table({"comparison": tuned, "learning_rates": equal})
    [line] = [x for x in verdict_sentences.settled_findings(table).splitlines() if "better than PPO" in x]
    assert line.startswith("- **Confirmed**: DVPO is better than PPO, both at learning rate 1e-4, under heavy-tailed")
    both = {"comparison": made_up_runs({"dvpo": 0.8, "ppo": 0.8, "cql": 0.6, "rfqi": 0.6}), "learning_rates": equal}
    told = verdict_sentences.settled_findings(verdicts.verdict_table(both)).splitlines()
    assert "offline" in told[0] and "both at learning rate" in told[1], "the tuned comparison comes first"


@pytest.mark.parametrize("rates, only", [({"1e-4": 0.7, "2e-4": 0.8}, False), ({"1e-4": 0.9, "2e-4": 0.9}, True)])
def test_a_tuned_verdict_stands_if_one_equal_rate_has_it(rates, only):
    """The other verdict at both rates is no support; without runs at equal rates nothing is known."""
    tuned = made_up_runs({"dvpo": 0.8, "ppo": 0.7})
    equal = made_up_rates({rate: {"dvpo": 0.8, "ppo": ppo} for rate, ppo in rates.items()})
    both = verdict_of(verdicts.verdict_table({"comparison": tuned, "learning_rates": equal}), "DVPO is better than PPO")
    assert (both["verdict"], both["tuned_only"]) == ("confirmed", only)
    few = {"comparison": tuned, "learning_rates": equal[equal["seed"] < 9]}
    for evidence in ({"comparison": tuned}, few):
        assert verdict_of(verdicts.verdict_table(evidence), "DVPO is better than PPO")["tuned_only"] is False


def test_clipped_rewards_are_a_rival_that_can_refute():
    """The control of every claim about heavy tails: better than PPO is not better than PPO on clipped rewards."""
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7, "ppo_clip_reward": 0.9, "grpo_clip_reward": 0.7})
    table = verdicts.verdict_table({"comparison": runs})
    row = verdict_of(table, "DVPO is better than PPO and GRPO on clipped rewards")
    assert (row["rival"], row["verdict"]) == ("ppo_clip_reward", "refuted")
    assert verdict_of(table, "DVPO is better than PPO")["verdict"] == "confirmed"


def made_up_interaction(high, noise="spikes"):
    """Runs at both rates, with random numbers of their own; DVPO leads PPO by 0.1 at the lower one."""
    ends = {"1e-4": {"dvpo": 0.8, "ppo": 0.7, "grpo": 0.6}, "2e-4": {"dvpo": 0.8, "ppo": high, "grpo": 0.6}}
    runs = made_up_rates(ends).assign(noise=noise)
    own = np.random.default_rng(len(noise)).normal(0, 0.02, len(runs))
    return runs.assign(value=runs["value"] + own)


def test_a_difference_that_depends_on_the_learning_rate_is_tested_in_pairs_of_seeds():
    runs = pd.concat([made_up_interaction(0.9), made_up_interaction(0.7, "none")])
    found = verdicts.rate_interactions({"learning_rates": runs.sample(frac=1, random_state=0)})
    assert len(found) == 2 * (1 + 1 + 2 + 2) and set(found["n"]) == {10}, "two noises; four claims, six measures"
    row = found[(found["claim"] == "DVPO is better than PPO") & (found["noise"] == "spikes")].iloc[0]
    scores = scores_of(as_methods(runs[runs["noise"] == "spikes"]))
    low, high = (
        claims.role_pairs(scores, f"DVPO, learning rate {rate}", f"PPO, learning rate {rate}").set_index("seed")
        for rate in claims.RATES
    )
    change = (high["difference"] - low["difference"]).sort_index()
    assert (row["low"], row["high"]) == pytest.approx((low["difference"].mean(), high["difference"].mean()))
    assert row["p"] == pytest.approx(sign_flip_test(change)), "differences of one seed"
    for _, own in found.groupby("noise"):
        assert own["corrected"].tolist() == comparisons.holm_correction(own["p"]).tolist(), "of one noise"
    lines = verdict_sentences.rate_findings(found).splitlines()
    assert lines[0].startswith("- **Depends on the learning rate**: DVPO minus PPO, under heavy-tailed spikes: +")
    assert all("PPO" in line and "spikes" in line for line in lines), "nothing else changes"
    table = verdict_page.interaction_table(found)
    assert list(table) == ["noise", "DVPO minus", "measure", "at 1e-4", "at 2e-4", "p", "corrected", "seeds"]
    shown = table[table["noise"] == "heavy-tailed spikes"].iloc[0]
    assert shown["at 1e-4"] == f"{100 * row['low']:+.1f}" and shown["at 2e-4"] == f"{100 * row['high']:+.1f}"
    assert (shown["DVPO minus"], shown["measure"], shown["seeds"]) == ("PPO", "all test sets", 10)


def test_what_a_seed_does_at_both_rates_cancels():
    runs = made_up_interaction(0.75)
    shift = runs["seed"].map(dict(enumerate(np.linspace(-0.3, 0.3, 10)))) * (runs["method"] == "dvpo")
    found = verdicts.rate_interactions({"learning_rates": runs.assign(value=runs["value"] + shift)}).iloc[0]
    assert found["p"] < 0.05
    turned = (runs["variant"] == "learning rate 2e-4") & (runs["method"] == "dvpo")
    other = runs.assign(value=runs["value"] + shift.where(~turned, -shift))
    assert verdicts.rate_interactions({"learning_rates": other}).iloc[0]["p"] > 0.3, "as if seeds were mixed up"


def test_interactions_are_corrected_for_what_is_planned_and_need_ten_pairs():
    runs = made_up_interaction(0.7)
    half = runs[runs["method"] != "grpo"]
    found = verdicts.rate_interactions({"learning_rates": half})
    assert len(found) == 5 and found["corrected"].min() == pytest.approx(min(1, 6 * found["p"].min()))
    assert verdict_sentences.rate_findings(found) == (
        "- **Equal learning rates**: none of 5 differences between DVPO and a rival is shown to change from 1e-4 "
        "to 2e-4."
    )
    few = verdicts.rate_interactions({"learning_rates": runs[runs["seed"] < 9]})
    assert few.empty and verdict_sentences.rate_findings(few) == "", "nine pairs decide nothing"
    assert verdicts.rate_interactions({}).empty, "the study has not been computed"


def test_the_base_policy_is_no_method_of_a_claim():
    """Its test sets are not those that a run has to have."""
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7})
    base = runs[runs["method"] == "ppo"].assign(method=BASE, suite="other_id", role="ID")
    table = verdicts.verdict_table({"comparison": pd.concat([runs, base])})
    assert verdict_of(table, "DVPO is better than PPO")["verdict"] == "confirmed"


def test_claims_name_whose_they_are():
    """The paper's other test set is of another family, and its lead there is larger than ID for one family of two."""
    own = [claim.text for claim in claims.CLAIMS if claim.source == claims.OURS]
    words = ("longer problems", "categorical", "teaches better", "wrong step", "offline", "clipped")
    assert all(any(word in text for word in words) for text in own) and len(own) == 3 + 1 + 2 + 1 + 1 + 1
    scores, ahead = beside_paper.PAPER_SCORES, {}
    for family in ("science", "math"):
        near, far, _ = (a - b for a, b in zip(scores[family]["dvpo"], scores[family]["ppo"], strict=True))
        ahead[family] = 0 < near < far
    assert ahead == {"science": True, "math": False}
    table = verdicts.verdict_table({"comparison": made_up_runs({"dvpo": 0.8, "ppo": 0.7})})
    shown = verdict_page.verdict_matrix(table).set_index("claim")["source"]
    assert shown["DVPO is better than PPO"] == "paper" and shown[LONGER] == "project"
    assert shown[OTHERS] == "paper (in part)"


def test_what_is_settled_stands_out():
    table = verdicts.verdict_table(
        {"comparison": made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.8, "robust_ppo": 0.9})}
    )
    table = table[table["n"] > 0]
    cells = verdict_page.verdict_matrix(table).set_index("claim")["heavy-tailed spikes"]
    assert cells["DVPO is better than PPO"].startswith("confirmed (+")
    assert cells["DVPO is better than GRPO"][0] in "+-", "a number alone is not confirmed"
    bold = verdict_page.verdict_matrix(table, markdown=True).set_index("claim")["heavy-tailed spikes"]
    assert bold["DVPO is better than Robust PPO"].startswith("**refuted** (-")
    html = tables.show_table(verdict_page.verdict_matrix(table), "Claims", marks=verdict_page.SETTLED).to_html()
    assert html.count(verdict_page.SETTLED["confirmed"]) == 1 and html.count(verdict_page.SETTLED["refuted"]) == 1
    assert {"confirmed", "refuted"} == set(verdict_page.SETTLED), "the verdicts of claim_verdict that decide"


def test_differences_by_test_set_and_where_they_disagree():
    dvpo = {"ID": 0.7, "OOD": 0.7, "transfer": 0.9}
    runs = made_up_runs({"dvpo": dvpo, "ppo": 0.8, "grpo": 0.6})
    table = comparisons.role_differences(runs, "dvpo", ["ppo", "grpo"]).set_index(["method", "role"])
    for role in ("ID", "OOD", "transfer"):
        for rival, level in (("ppo", 0.8), ("grpo", 0.6)):
            d = comparisons.run_pairs(scores_of(runs), "dvpo", rival)
            d = d[d["role"] == role]["difference"]
            row = table.loc[(rival, role)]
            assert row["difference"] == pytest.approx(d.mean()) and row["low"] < d.mean() < row["high"]
            assert row["difference"] == pytest.approx(dvpo[role] - level, abs=0.02)
    shown = tables.role_difference_table(table.reset_index()).set_index("DVPO minus")
    assert shown.loc["PPO", "ID"].startswith("-") and shown.loc["PPO", "other families (transfer)"].startswith("+")
    [line] = verdict_sentences.disagreement_findings(table.reset_index()).splitlines()
    assert "DVPO minus PPO" in line, "GRPO is beaten on all"
    assert "heavy-tailed spikes, ID -" in line and "and other families (transfer) +" in line


def test_test_sets_disagree_only_after_correction():
    rows = [
        dict(noise="spikes", method="ppo", role=role, difference=d, low=d - 0.01, high=d + 0.01, n=10)
        for role, d in (("ID", -0.05), ("transfer", 0.05))
    ]
    clear, doubtful = (pd.DataFrame(rows).assign(corrected=p) for p in (0.01, 0.2))
    assert "disagree" in verdict_sentences.disagreement_findings(clear)
    assert verdict_sentences.disagreement_findings(doubtful) == "", "intervals alone are not corrected"
    table = comparisons.role_differences(made_up_runs({"dvpo": 0.8, "ppo": 0.7}), "dvpo", ["ppo"]).set_index("role")
    assert np.isnan(table.loc["ALL", "corrected"]) and table.loc["ID", "corrected"] == pytest.approx(3 * 2 / 2**10)


def test_every_claim_names_rows_that_its_study_computes():
    """A claim about a setting that no cell has would stay without a verdict for ever."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    for claim in claims.CLAIMS:
        cells = pd.DataFrame([cell.labels for cell in STUDIES[claim.study].cells(params)])
        names = list(dict.fromkeys(as_methods(cells)["method"]))
        assert claim.own in names and claim.rivals(names), claim.text
        assert claim.own not in claim.rivals(names)
        rows = [cell for cell in STUDIES[claim.study].cells(params) if STUDIES[claim.study].decides(cell)]
        decided = as_methods(pd.DataFrame([cell.labels for cell in rows]))["method"]
        assert {claim.own, *claim.rivals(names)} <= {*decided}, f"{claim.text}: too few seeds for a claim"
    assert CLAIMED >= FEWEST_SEEDS


def test_the_measure_that_decides_is_shown_with_its_own_p_value():
    """Means of different scatter say nothing of which comparison is the weakest."""
    runs = made_up_runs({"dvpo": {"ID": 0.6, "OOD": 0.8, "transfer": 0.7}, "ppo": 0.6}, spread=0.001)
    wide = (runs["method"] == "dvpo") & (runs["role"] == "ID")
    runs.loc[wide, "value"] += np.where(runs.loc[wide, "seed"] % 2, 0.3, -0.3) - 0.1  # a doubtful, larger difference
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), LONGER)
    d = claims.beyond_id_pairs(scores_of(runs), "dvpo", "ppo", "OOD")["difference"]
    assert (row["measure"], row["p"]) == ("OOD minus ID", pytest.approx(sign_flip_test(d))) and row["p"] > 0.002
    assert row["difference"] == pytest.approx(d.mean()) and row["difference"] > 0.25
    assert row["detectable"] == pytest.approx(detectable_difference(d, 0.05 / 7)), "to confirm, all have to be shown"
    table = verdicts.verdict_table({"comparison": runs})
    shown = verdict_page.verdict_matrix(table[table["n"] > 0]).set_index("claim").loc[LONGER].iloc[1]
    near, far = (claims.role_pairs(scores_of(runs), "dvpo", "ppo", role)["difference"].mean() for role in ("ID", "OOD"))
    assert shown == f"OOD {100 * far:+.1f}, ID {100 * near:+.1f}", "a loss ID is no lead on other test sets"
    assert "(OOD minus ID)" in verdict_page.verdict_details(table).set_index("claim").loc[LONGER, "rival"]


def test_advantages_below_chance_find_nothing():
    worse = verdicts.verdict_table({"wrong_steps": made_up_steps({"dvpo": 0.42, "ppo": 0.35, "robust_ppo": 0.35})})
    row = verdict_of(worse, STEPS)
    assert row["verdict"] == "refuted" and row["measure"] == "AUC minus chance"
    assert row["difference"] == pytest.approx(-0.08, abs=0.05)
    better = verdicts.verdict_table({"wrong_steps": made_up_steps({"dvpo": 0.9, "ppo": 0.5, "robust_ppo": 0.5})})
    assert verdict_of(better, STEPS)["verdict"] == "confirmed"
    cell = verdict_page.verdict_matrix(better[better["n"] > 0]).iloc[0]["heavy-tailed spikes"]
    assert cell.startswith("confirmed (+0.4") and "AUC" in cell, "no percentage points"


def test_a_claim_with_a_lost_run_has_no_verdict_and_says_why():
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7}, seeds=11)
    runs.loc[(runs["method"] == "ppo") & (runs["seed"] < 2), "value"] = np.nan
    row = verdict_of(verdicts.verdict_table({"comparison": runs}), "DVPO is better than PPO")
    assert row["verdict"] == "no claim: 2 of 11 lost", "nine pairs of eleven are no matter of seeds"
    text = verdict_sentences.verdict_limits(pd.DataFrame([row]))
    assert text == "- 1 claim has runs that diverged under at least one noise, and no verdict there."


def test_no_runs_of_the_base_policy_alone_are_described():
    assert verdict_page.outcome_text(made_up_runs({BASE: 0.5})) == ""


def test_the_page_for_the_readme_holds_the_judged_claims_and_the_number_of_runs():
    assert verdict_page.verdict_page({"comparison": pd.DataFrame()}) == ""
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7, BASE: 0.9})
    page = verdict_page.verdict_page({"comparison": runs, "heads": pd.DataFrame()})
    lines = page.splitlines()
    assert lines[0].startswith(
        "For the claims, policies were trained on `math`. A score is the mean over 3 test sets, 1 of them"
    )
    assert "*Refuted*" in lines[0] and lines[2].startswith("- **Confirmed**: DVPO is better than PPO")
    assert lines[4].startswith("| claim | source | heavy-tailed spikes |") and lines[5].startswith("| --- |")
    assert "| DVPO is better than PPO | paper | **confirmed** (+10.0) |" in page and "GRPO" not in page
    again = runs[runs["method"] == "dvpo"].assign(study="heads", variant="3 heads")
    more = verdict_page.verdict_page({"comparison": runs, "heads": again})
    assert "30 runs" in more, "a run that studies share is one run"
    assert "30 runs" in page and "| heavy-tailed spikes | DVPO |" in page.split("30 runs")[1]


def test_the_matrix_and_the_sentences_hold_every_verdict():
    runs = pd.concat(
        [made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.9}), made_up_runs({"dvpo": 0.8, "ppo": 0.8}, 4, noise="none")]
    )
    table = verdicts.verdict_table({"comparison": runs})
    shown = verdict_page.verdict_matrix(table).set_index("claim")
    assert shown.loc["DVPO is better than PPO", "heavy-tailed spikes"].startswith("confirmed (+")
    assert shown.loc["DVPO is better than PPO", "no noise"] == "4 of 10 seeds"
    assert shown.loc["DVPO is better than GRPO", "no noise"] == ""
    text = verdict_sentences.verdict_findings(table, verdicts.rate_interactions({}))
    assert "**Confirmed**: DVPO is better than PPO, under heavy-tailed spikes (+10" in text
    assert "**Refuted**: DVPO is better than GRPO" in text and "fewer than 10 seeds" in text


def test_methods_that_cannot_be_told_from_the_best_are_named():
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.5, "grpo": 0.8001}, spread=0.05)
    [row] = recommended.recommended_methods(runs).to_dict("records")
    assert {row["best"], *row["as_good"]} == {"dvpo", "grpo"} and row["n"] == 10
    runs.loc[0, "value"] = np.nan
    [row] = recommended.recommended_methods(runs).to_dict("records")
    assert row["best"] != runs.loc[0, "method"], "a missing score is not averaged away"


def test_a_rival_that_lost_a_run_is_not_as_good_as_the_best():
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.5, "grpo": 0.8001}, spread=0.05)
    lost = (runs["method"] == "grpo") & (runs["seed"] == 3)
    [row] = recommended.recommended_methods(runs.assign(value=runs["value"].mask(lost))).to_dict("records")
    assert row["best"] == "dvpo" and row["as_good"] == [], "its other runs alone would be a selection"


@pytest.mark.parametrize("original", ["grpo", "dvpo"], ids=["a rival's copy", "the best one's copy"])
def test_equal_rivals_count_once_in_the_correction(original):
    """PPO is worse with a corrected p-value that one more rival would raise above the level."""
    runs = made_up_runs({"dvpo": 0.8, "grpo": 0.8, "ppo": 0.8}, spread=0.0001)
    ppo, better = runs["method"] == "ppo", runs["seed"].isin([0, 1])
    runs["value"] += np.where(ppo & better, 0.07, np.where(ppo, -0.1, 0.0))
    p = sign_flip_test(-claims.role_pairs(scores_of(runs), "ppo", "dvpo")["difference"])
    assert 2 * p < 0.05 < 3 * p
    copy = runs[runs["method"] == original].assign(method="grpo_clip_reward")
    found = [recommended.recommended_methods(r).iloc[0] for r in (runs, pd.concat([runs, copy]))]
    assert "ppo" not in found[0]["as_good"] and "ppo" not in found[1]["as_good"]
    assert "grpo_clip_reward" in found[1]["as_good"]
    text = recommended.copied_findings(pd.concat([runs, copy]))
    assert len(text.splitlines()) == 1 and "GRPO, clipped reward" in text
    assert recommended.copied_findings(runs) == ""


def test_runs_that_many_claims_share_are_counted():
    runs = made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.7})
    text = verdict_sentences.shared_run_findings({"comparison": runs})
    assert "up to 4 claims" in text and "(under heavy-tailed spikes)" in text
    assert verdict_sentences.shared_run_findings({"critic_kinds": made_up_runs({"quantiles": 0.8}, variant=True)}) == ""
    assert verdict_sentences.shared_run_findings({"comparison": made_up_runs({"ppo": 0.7, "grpo": 0.7})}) == "", (
        "none of DVPO"
    )
    half = runs[(runs["method"] == "dvpo") & (runs["seed"] < 5)].assign(variant=claims.FULL)
    more = {"comparison": runs, "ablation": pd.concat([half, half.assign(variant="without mean shift", plan="other")])}
    assert "up to 5 claims" in verdict_sentences.shared_run_findings(more), "a study that has some of the runs counts"


def test_each_claim_names_its_section_of_the_page():
    headings = [
        line.removeprefix("## ")
        for cell in json.loads((ROOT / "notebooks" / "06_evidence.ipynb").read_text("utf-8"))["cells"]
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("## ")
    ]
    assert set(verdict_page.SECTIONS) == {claim.study for claim in claims.CLAIMS}
    assert set(verdict_page.SECTIONS.values()) <= set(headings)
    table = verdicts.verdict_table({"comparison": made_up_runs({"dvpo": 0.8, "ppo": 0.7})})
    [link] = set(verdict_page.verdict_matrix(table[table["n"] > 0], markdown=True)["figure"])
    assert link == "[comparison](reports/06_evidence/notebook.html#The-comparison)"


def test_differences_stand_side_by_side_for_both_sizes_of_the_policy():
    small = [made_up_runs({"dvpo": 0.8, "ppo": 0.7, "grpo": 0.6}, noise=n) for n in ("none", "flip", "spikes")]
    large = [made_up_runs({"dvpo": 0.7, "ppo": 0.7, "grpo": 0.6}, seeds=5, noise=n) for n in ("none", "spikes")]
    sizes = {"small": pd.concat(small), "large": pd.concat(large)}
    table = tables.size_difference_table(sizes, ["ppo", "grpo"])
    assert list(table) == ["noise", "DVPO minus", "small (10 seeds)", "large (5 seeds)"]
    assert list(zip(table["noise"], table["DVPO minus"], strict=True)) == [
        (noise, rival) for noise in ("no noise", "heavy-tailed spikes") for rival in ("PPO", "GRPO")
    ], "noises of both, in the order of the runs"
    assert table.iloc[0]["small (10 seeds)"].startswith("+10")
