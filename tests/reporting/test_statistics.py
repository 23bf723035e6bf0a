"""Statistics against numbers worked out by hand, and against simulations of known truth."""

import numpy as np
import pandas as pd
import pytest

from dvpo_lib.reporting import statistics
from dvpo_lib.reporting.prediction_quality import explained_variance, interval_coverage, weighted_auc
from dvpo_lib.reporting.statistics import bootstrap


def final_frame(scores: dict, suites=(("math_id", "ID"),), noise="none", family="math") -> pd.DataFrame:
    """Tidy frame from {method: {seed: score or list of scores per suite}}."""
    rows = []
    for method, runs in scores.items():
        for seed, values in runs.items():
            for (suite, role), v in zip(suites, np.atleast_1d(values), strict=True):
                rows.append((method, noise, family, seed, suite, role, "sampled", float(v)))
    return pd.DataFrame(rows, columns=["method", "noise", "family", "seed", "suite", "role", "metric", "value"])


def test_iqm_by_hand():
    assert statistics.interquartile_mean([0, 1, 2, 100]) == 1.5  # one value is cut at either end
    assert statistics.interquartile_mean([5, 1, 3]) == 3  # fewer than four: nothing is cut
    assert statistics.interquartile_mean([-50, 1, 2, 3, 4, 5, 6, 90]) == 3.5  # two at either end
    np.testing.assert_allclose(statistics.interquartile_mean([[0, 1, 2, 100], [4, 4, 4, 4]]), [1.5, 4])


def test_interval_is_seeded_contains_the_point_and_is_missing_for_one_run():
    x = [0.2, 0.5, 0.4, 0.9, 0.7]
    a, b = statistics.bootstrap_interval(x, seed=1), statistics.bootstrap_interval(x, seed=1)
    assert a == b and a.low < a.point < a.high and a.n == 5
    few = [statistics.bootstrap_interval(x, statistic=np.mean, resamples=20, seed=s) for s in (1, 2)]
    assert few[0] != few[1]
    one = statistics.bootstrap_interval([0.3])
    assert one.point == 0.3 and np.isnan(one.low) and np.isnan(one.high)
    assert statistics.bootstrap_interval([0.3, 0.3, 0.3])[:3] == pytest.approx((0.3, 0.3, 0.3))


def test_strata_are_resampled_by_themselves():
    """Two strata far apart: pooled resampling would let their shares vary, stratified resampling does not."""
    low, high = np.zeros(6), np.ones(6)
    kept = statistics.bootstrap_interval([low, high], statistic=np.mean)
    assert kept.low == kept.high == 0.5
    pooled = statistics.bootstrap_interval(np.concatenate([low, high]), statistic=np.mean)
    assert pooled.high - pooled.low > 0.3


@pytest.mark.parametrize("bad", [[], [[]], [[0.1, np.nan]], [[0.1], []]])
def test_bad_scores_are_refused(bad):
    with pytest.raises(ValueError, match="bootstrap_interval"):
        statistics.bootstrap_interval(bad)


def test_probability_of_improvement_by_hand():
    assert statistics.probability_of_improvement([3, 4], [1, 2]).point == 1
    assert statistics.probability_of_improvement([1, 1], [1, 1]).point == 0.5
    # Pairs of {1, 3} against {1, 2, 3}: 1 ties 1; 3 beats 1 and 2 and ties 3; wins 2, ties 2 of 6.
    assert statistics.probability_of_improvement([1, 3], [1, 2, 3]).point == pytest.approx(3 / 6)
    # Two strata count equally whatever their sizes: (1 + 0) / 2.
    assert statistics.probability_of_improvement([[2], [0, 0, 0]], [[1], [1]]).point == 0.5
    with pytest.raises(ValueError, match="strata"):
        statistics.probability_of_improvement([[1], [2]], [[1]])


def test_exchanging_the_sides_mirrors_the_probability():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=6).round(1), rng.normal(size=7).round(1)
    assert statistics.probability_of_improvement(x, y).point + statistics.probability_of_improvement(
        y, x
    ).point == pytest.approx(1)


def test_the_level_is_expanded_by_hand():
    """n = 2: t of 1 degree of freedom times sqrt(2); n large: the level itself; strata share degrees of freedom."""
    assert bootstrap.expanded_level([10], 0.95) == pytest.approx(1 - 2 * 0.00856, abs=1e-4)  # sqrt(10/9) * 2.262
    assert bootstrap.expanded_level([100_000], 0.9) == pytest.approx(0.9, abs=1e-4)
    assert 1 - 1e-8 < bootstrap.expanded_level([2], 0.95) < 1
    assert bootstrap.expanded_level([10, 10], 0.95) < bootstrap.expanded_level([10], 0.95)


@pytest.mark.parametrize(
    ("runs", "statistic", "plain", "raised"),
    [
        (5, np.mean, 0.84, 0.92),
        (10, np.mean, 0.90, 0.95),
        (5, statistics.interquartile_mean, 0.90, 0.94),
        (10, statistics.interquartile_mean, 0.94, 0.97),
    ],
)
def test_raised_levels_cover_what_the_docstring_says(runs, statistic, plain, raised, monkeypatch):
    """Nominal 95 %, normal runs; plain percentiles of the same draws cover less (binomial error: 0.008 to 0.015)."""

    def cover():
        rng, hits = np.random.default_rng(0), 0
        for i in range(600):
            e = statistics.bootstrap_interval(rng.normal(0.5, 1, runs), statistic=statistic, resamples=600, seed=i)
            hits += e.low <= 0.5 <= e.high
        return hits / 600

    found = cover()
    monkeypatch.setattr(bootstrap, "expanded_level", lambda sizes, level: level)
    before = cover()
    assert before < found - 0.015
    assert (before, found) == pytest.approx((plain, raised), abs=0.025)


@pytest.mark.parametrize("runs", [2, 3, 4])
def test_intervals_of_few_runs_are_their_range(runs):
    """It misses a symmetric distribution's mean if all runs lie on one side of it: 2 of 2^n patterns of signs."""
    values = 0.1 + 0.3 * np.arange(runs) / (runs - 1)
    for statistic in (np.mean, statistics.interquartile_mean):
        e = statistics.bootstrap_interval(values, statistic=statistic)
        assert (e.low, e.high) == pytest.approx((0.1, 0.4))
    signs = np.array(np.meshgrid(*[[-1, 1]] * runs)).reshape(runs, -1)
    assert np.mean((signs.min(0) < 0) & (signs.max(0) > 0)) == 1 - 2.0 ** (1 - runs)


def test_cover_of_other_statistics_in_simulations():
    """Nominal 95 % at eight runs (binomial error of 300 simulations: 0.013)."""
    rng = np.random.default_rng(0)
    mean_hits = better_hits = 0
    for i in range(300):
        x, y = rng.normal(0.5, 1, 8), rng.normal(0, 1, 8)
        e = statistics.bootstrap_interval(x, resamples=1000, seed=i)
        p = statistics.probability_of_improvement(x, y, resamples=1000, seed=i)
        mean_hits += e.low <= 0.5 <= e.high
        better_hits += p.low <= 0.63816 <= p.high  # Phi(0.5/sqrt(2))
    assert 0.93 < mean_hits / 300 < 0.995
    assert 0.93 < better_hits / 300 < 0.995


def test_suites_of_a_role_are_averaged_inside_the_run_before_the_interval():
    suites = (("math_id", "ID"), ("math_ood", "OOD"), ("science_ood", "OOD"))
    frame = final_frame({"ppo": {0: [0.8, 0.2, 0.4], 1: [0.6, 0.0, 0.2]}}, suites)
    table = statistics.summarise_scores(frame, overall=True).set_index("role")
    assert table.loc["ID", "iqm"] == pytest.approx(0.7)
    assert table.loc["OOD", "iqm"] == pytest.approx(0.2)  # (0.3 + 0.1) / 2, two runs and not four values
    assert table.loc["OOD", "n"] == 2
    assert table.loc["ALL", "iqm"] == pytest.approx((1.4 / 3 + 0.8 / 3) / 2)
    # The interval of two runs spans exactly the two run scores.
    assert table.loc["OOD", ["low", "high"]].tolist() == pytest.approx([0.1, 0.3])


def test_wrong_frames_are_refused_by_name():
    frame = final_frame({"ppo": {0: 0.5}})
    with pytest.raises(ValueError, match="suite"):
        statistics.summarise_scores(frame.drop(columns="suite"))
    with pytest.raises(ValueError, match="greedy"):
        statistics.summarise_scores(frame, metric="greedy")
    with pytest.raises(ValueError, match="two values"):
        statistics.summarise_scores(pd.concat([frame, frame]))


def test_improvement_table_compares_within_the_same_noise():
    none = final_frame({"ppo": {0: 0.5, 1: 0.6}, "dvpo": {0: 0.7, 1: 0.8}})
    spikes = final_frame({"ppo": {0: 0.9, 1: 0.9}, "dvpo": {0: 0.1, 1: 0.9}}, noise="spikes")
    table = statistics.improvement_table(pd.concat([none, spikes])).set_index("noise")
    assert table["method"].tolist() == ["dvpo", "dvpo"]
    assert table.loc["none", "probability"] == 1
    assert table.loc["spikes", "probability"] == pytest.approx(0.25)  # one loses to both, one ties both


def test_pairing_cancels_what_the_seed_does_to_both():
    base = {s: v for s, v in enumerate([0.1, 0.5, 0.9, 0.3])}
    frame = final_frame({"ppo": base, "dvpo": {s: v + 0.05 for s, v in base.items()}})
    row = statistics.paired_differences(frame).iloc[0]
    assert row["difference"] == pytest.approx(0.05) and row["high"] - row["low"] == pytest.approx(0, abs=1e-12)
    unpaired = statistics.improvement_table(frame).iloc[0]
    assert unpaired["low"] < 0.5 < unpaired["high"]


def test_curve_bands_show_a_missing_value_as_missing():
    curves = pd.DataFrame(
        {
            "method": "ppo",
            "noise": "none",
            "family": "math",
            "iteration": [0, 0, 1, 1, 2],
            "seed": [0, 1, 0, 1, 0],
            "reward_true": [0.1, 0.3, 0.5, np.nan, 0.7],
        }
    )
    bands = statistics.curve_bands(curves, "reward_true").set_index("iteration")
    assert bands.loc[0, "iqm"] == pytest.approx(0.2) and bands.loc[0, "n"] == 2
    for iteration in (1, 2):  # a value is missing; the row of a run is missing
        assert np.isnan(bands.loc[iteration, "iqm"]) and bands.loc[iteration, "n"] == 1
    critics = curves.assign(explained_variance=np.nan)  # no value at all: the method has no critic
    assert statistics.curve_bands(critics, "explained_variance").empty


SUITES = (("math_id", "ID"), ("math_ood", "OOD"), ("science_ood", "OOD"))


@pytest.mark.parametrize("how", ["no value", "no row"])
def test_a_missing_score_is_never_averaged_away(how):
    frame = final_frame(
        {"ppo": {0: [0.8, 0.2, 0.4], 1: [0.6, 0.0, 0.2]}, "dvpo": {0: [0.9, 0.3, 0.5], 1: [0.9, 0.2, 0.4]}}, SUITES
    )
    place = frame[(frame["method"] == "ppo") & (frame["seed"] == 1) & (frame["suite"] == "science_ood")].index
    frame = frame.drop(place) if how == "no row" else frame.assign(value=frame["value"].mask(frame.index == place[0]))

    scores = statistics.run_scores(frame, overall=True).set_index(["method", "seed", "role"])["value"]
    lost = {("ppo", 1, "OOD"), ("ppo", 1, "ALL")}
    assert set(scores[scores.isna()].index) == lost and len(scores) == 2 * 2 * 3
    table = statistics.summarise_scores(frame, overall=True).set_index(["method", "role"])
    assert table.loc[("ppo", "ID"), "iqm"] == pytest.approx(0.7)
    for role in ("OOD", "ALL"):
        assert table.loc[("ppo", role), ["iqm", "low", "high"]].isna().all() and table.loc[("ppo", role), "n"] == 1
        assert np.isfinite(table.loc[("dvpo", role), "iqm"])
    for compare in (statistics.improvement_table, statistics.paired_differences):
        found = compare(frame).set_index("role").iloc[:, 2]
        assert np.isfinite(found["ID"]) and np.isnan(found["OOD"])
    [named] = statistics.missing_scores(frame).to_dict("records")
    assert (named["method"], named["seed"], named["suite"]) == ("ppo", 1, "science_ood")


def test_a_run_without_any_row_of_a_metric_is_missing():
    frame = final_frame({"ppo": {0: 0.8, 1: 0.6}})
    greedy = frame[frame["seed"] == 0].assign(metric="greedy")
    table = statistics.summarise_scores(pd.concat([frame, greedy]), "greedy")
    assert np.isnan(table["iqm"].item()) and table["n"].item() == 1


def test_nothing_is_missing_if_families_have_different_test_sets():
    frames = [
        final_frame({"ppo": {0: 0.8}}),
        final_frame({"ppo": {0: [0.7, 0.5]}}, (("science_id", "ID"), ("science_ood", "OOD")), family="science"),
    ]
    frame = pd.concat(frames)
    assert statistics.missing_scores(frame).empty and len(statistics.run_scores(frame)) == 3


def test_predictions_with_a_missing_value_have_no_quality():
    assert interval_coverage([0.5, np.nan], [0.5])[["covered", "low", "high"]].isna().all(axis=None)
    weights = np.ones((2, 3))
    assert np.isnan(weighted_auc([0.1, 0.9, 0.5], [0, 1, np.nan], weights)).all()
    assert np.isnan(weighted_auc([0.1, np.nan, 0.5], [0, 1, 1], weights)).all()
    assert weighted_auc([0.1, 0.9, 0.5], [0, 1, 1], weights).tolist() == [1, 1]
    estimate = statistics.cluster_bootstrap(lambda w: w @ np.array([0.1, np.nan, 0.3]), ["a", "b", "c"])
    assert np.isnan(estimate[:3]).all()


def test_explained_variance_by_hand():
    assert explained_variance([1, 2, 3], [1, 2, 3]) == 1
    assert explained_variance([2, 2, 2], [1, 2, 3]) == 0
    assert explained_variance([3, 2, 1], [1, 2, 3]) == pytest.approx(-3)
    assert np.isnan(explained_variance([1, 2], [1, 1]))


def test_coverage_by_hand_and_for_the_uniform():
    table = interval_coverage([0.05, 0.3, 0.5, 0.74, 0.99], levels=[0.5, 0.95])
    assert table["covered"].tolist() == [0.6, 0.8]
    uniform = interval_coverage((np.arange(1000) + 0.5) / 1000)
    np.testing.assert_allclose(uniform["covered"], uniform["level"], atol=0.002)
    assert ((uniform["low"] < uniform["level"]) & (uniform["level"] < uniform["high"])).all()
