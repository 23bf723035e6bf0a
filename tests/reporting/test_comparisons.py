"""Comparisons of methods over paired runs, against hand-made numbers and enumeration."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dvpo_lib.reporting.statistics import run_scores
from dvpo_lib.reporting.statistics.comparisons import (
    claim_verdict,
    detectable_difference,
    holm_correction,
    performance_profile,
    run_pairs,
    sign_flip_test,
)


def final(scores: dict[str, list[float]], noise="none", family="math"):
    """A row per method, seed and test set; the OOD set scores 0.1 less."""
    rows = [
        dict(
            method=method,
            noise=noise,
            family=family,
            seed=seed,
            suite=suite,
            role=role,
            metric="sampled",
            value=value - less,
        )
        for method, values in scores.items()
        for seed, value in enumerate(values)
        for suite, role, less in (("math_id", "ID", 0.0), ("math_ood", "OOD", 0.1))
    ]
    return pd.DataFrame(rows).assign(noise=noise, family=family, metric="sampled")


def test_sign_flip_test_counts_all_changes_of_sign():
    x = np.array([0.3, -0.1, 0.25, 0.2, 0.05])
    means = [np.mean(x * signs) for signs in itertools.product((-1, 1), repeat=5)]
    as_far = np.mean([m >= x.mean() - 1e-12 for m in means])
    assert sign_flip_test(x) == pytest.approx(min(1, 2 * as_far))
    assert sign_flip_test(-x) == pytest.approx(sign_flip_test(x))
    assert sign_flip_test(np.zeros(5)) == 1
    many = np.random.default_rng(0).normal(0.05, 0.1, 40)
    assert sign_flip_test(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.01)
    assert sign_flip_test(many) == sign_flip_test(many)


def test_holm_by_hand():
    # sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 -> raised to the one before, 0.5 * 1
    assert holm_correction([0.02, 0.5, 0.01, 0.03]).tolist() == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm_correction([0.9, 0.8]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("n", "level"), [(10, 0.05), (10, 0.05 / 12), (16, 0.01)])
def test_detectable_difference_is_seen_with_its_power(n, level):
    spread = stats.norm.ppf((np.arange(n) + 0.5) / n)
    spread *= 0.05 / spread.std(ddof=1)
    wanted = detectable_difference(spread, level)
    rng = np.random.default_rng(1)
    seen = [sign_flip_test(rng.normal(wanted, 0.05, n)) <= level for _ in range(400)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.06)


def test_too_few_pairs_detect_nothing():
    assert np.isnan(detectable_difference([0.1]))
    assert detectable_difference([0.1, 0.2, 0.3, 0.1], 0.05) == np.inf, "2 of 16 changes of sign are as far"
    assert detectable_difference([0.1] * 4, 0.05) == np.inf
    assert detectable_difference([0.1] * 10, 0.05) == 0


def test_pairs_share_family_noise_and_seed():
    table = pd.concat([final({"dvpo": [0.5, 0.6, 0.7], "ppo": [0.4, 0.7]}), final({"dvpo": [0.9]}, noise="flip")])
    pairs = run_pairs(run_scores(table, overall=True), "dvpo", "ppo")
    own = pairs[pairs["role"] == "ID"]
    assert own["seed"].tolist() == [0, 1] and own["difference"].tolist() == pytest.approx([0.1, -0.1])
    assert set(pairs["role"]) == {"ID", "OOD", "ALL"} and set(pairs["noise"]) == {"none"}
    assert pairs[pairs["role"] == "ALL"]["own"].tolist() == pytest.approx([0.45, 0.55])


def test_verdicts_follow_from_the_numbers():
    rng = np.random.default_rng(0)
    base = rng.normal(0.5, 0.02, 10)
    scores = {"ppo": base, "better": base + 0.05 + rng.normal(0, 0.01, 10), "worse": base - 0.05, "equal": base[::-1]}
    for name, verdict in {"better": "confirmed", "worse": "refuted", "equal": "not confirmed"}.items():
        pairs = run_pairs(run_scores(final(scores), overall=True), name, "ppo").query("role == 'ALL'")
        assert claim_verdict(pairs["difference"].mean(), sign_flip_test(pairs["difference"]), len(pairs)) == verdict
    assert claim_verdict(0.3, 0.001, 9) == "no claim: 9 of 10 seeds"
    assert claim_verdict(float("nan"), float("nan"), 10).startswith("no claim")


def test_planned_comparisons_without_a_p_value_count_as_one():
    known = [0.01, 0.04]
    np.testing.assert_allclose(holm_correction(known, 4), holm_correction([*known, 1.0, 1.0])[:2])
    np.testing.assert_allclose(holm_correction(known, 4), [0.04, 0.12])
    np.testing.assert_allclose(holm_correction(known, 2), holm_correction(known))


def test_performance_profile_counts_runs():
    profile = performance_profile(final({"ppo": [0.2, 0.4, 0.6, 0.8]}), [0.0, 0.5, 0.8, 0.9])
    own = profile[profile["role"] == "ID"]
    assert own["share"].tolist() == [1.0, 0.5, 0.25, 0.0] and own["n"].eq(4).all()
    lost = performance_profile(final({"ppo": [0.2, 0.4, 0.6, float("nan")]}), [0.0, 0.5])
    lost = lost[lost["role"] == "ID"]
    assert lost["share"].tolist() == [0.75, 0.25] and lost["n"].eq(4).all(), "a run that diverged reaches nothing"
