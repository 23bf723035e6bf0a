"""Widths of tails during training: quarters of the evidence, first and last quarter, sentences."""

import itertools

import pandas as pd
import pytest

from dvpo_lib.reporting import figures
from dvpo_lib.reporting.findings import during_training

LOWER, UPPER = during_training.TAIL_COLUMNS


@pytest.fixture
def curves():
    """Eight iterations: the core's lower tail stays at 1, that of all terms falls from 1 to 0.3; upper tails rise."""
    rows = [
        dict(method=method, noise=noise, family="math", seed=seed, rollouts=100 * (i + 1))
        | {LOWER: 1.0 if method == "core" else 1 - 0.1 * i, UPPER: (2 if method == "all" else 1) * (1 + i)}
        for method, noise, seed, i in itertools.product(["core", "all"], ["none", "spikes"], range(2), range(8))
    ]
    scalar = dict(method="scalar", noise="none", family="math", seed=0, rollouts=100)
    return pd.DataFrame([*rows, scalar])


def test_widths_are_those_of_the_first_and_the_last_quarter(curves):
    table = during_training.tail_change_table(curves).set_index(["noise", "method"])
    assert len(table) == 4
    found = table.loc[("spikes", "all")]
    assert found.to_list() == pytest.approx([(1 + 0.9) / 2, (0.4 + 0.3) / 2, 2 * 1.5, 2 * 7.5])


def test_short_runs_have_a_first_and_a_last_quarter_too(curves):
    short = during_training.tail_change_table(curves[curves["rollouts"] <= 200]).set_index(["noise", "method"])
    assert short.loc[("none", "all")].to_list() == pytest.approx([1, 0.9, 2, 4])


def test_sentences_say_how_wide_the_tails_end(curves):
    text = during_training.tail_findings(curves, "core", "all")
    assert text.splitlines()[0] == (
        "- Without noise, in the last quarter of training: lower tail 0.35 with all terms, 1.00 with the core loss "
        "alone; upper tail 15.00 with all terms, 7.50 with the core loss alone (seeds: 2)."
    )
    assert text.splitlines()[1].startswith("- Under heavy-tailed spikes") and len(text.splitlines()) == 2
    assert during_training.tail_findings(curves, "core", "another") == ""
    assert during_training.tail_findings(curves.drop(columns=[LOWER, UPPER]), "core", "all") == "", (
        "no critic has tails"
    )


def test_nothing_is_drawn_if_no_run_has_logged_a_width(curves):
    for empty in (curves.assign(**{LOWER: None, UPPER: None}), curves.drop(columns=[LOWER, UPPER]), curves.head(0)):
        assert "There is nothing to draw" in figures.tail_panels(empty).get_supxlabel()


def test_quarters_of_the_evidence_are_drawn_as_curves():
    keys = dict(family="math", role="training")
    rows = [
        dict(**keys, noise=noise, method=method, seed=seed, suite=f"quarter {quarter}", metric=metric)
        | dict(value=quarter + seed)
        for noise, method, seed, quarter, metric in itertools.product(
            ["spikes", "none"], ["without b", "all"], range(2), range(1, 5), ["lower_tail", "upper_tail"]
        )
    ]
    rows.append(dict(**keys, noise="none", method="all", seed=0, suite="training", metric="entropy", value=3.0))
    frame = during_training.tails_by_quarter(pd.DataFrame(rows))
    assert len(frame) == 32 and list(dict.fromkeys(frame["method"])) == ["without b", "all"]
    assert list(frame["noise"].unique()) == ["spikes", "none"], "the order of the rows"
    assert frame.groupby("quarter")[LOWER].mean().to_list() == [1.5, 2.5, 3.5, 4.5]
    shown = figures.tail_panels(frame, x="quarter").axes
    assert len(shown) == 4 and all(len(ax.get_lines()) == 2 for ax in shown)
    assert list(shown[0].get_lines()[0].get_xdata()) == [1, 2, 3, 4]


def made_up_quarters(ends, seeds=10):
    """Widths in four quarters: {(noise, method): ((lower at first, at the end), (upper at first, at the end))}."""
    rows = []
    for (noise, method), (lower, upper) in ends.items():
        for seed, quarter in itertools.product(range(seeds), range(1, 5)):
            share = (quarter - 1) / 3
            widths = {LOWER: lower[0] + share * (lower[1] - lower[0]), UPPER: upper[0] + share * (upper[1] - upper[0])}
            jitter = 0.01 * (-1) ** seed * share
            keys = dict(noise=noise, method=method, family="math", seed=seed, quarter=quarter)
            rows.append(keys | {side: width + jitter for side, width in widths.items()})
    return pd.DataFrame(rows)


def test_the_trend_counts_noises_under_which_a_tail_has_changed():
    """A change that half the seeds do not have is none, though the mean moves."""
    ends = {
        ("none", "dvpo"): ((0.5, 0.3), (0.1, 0.1005)),
        ("spikes", "dvpo"): ((0.2, 0.4), (0.1, 0.3)),
        ("flip", "ppo"): ((0.9, 0.1), (1, 2)),
    }
    told = during_training.tail_trend(made_up_quarters(ends))
    assert told == (
        "DVPO, from the first to the last quarter: its lower tail became narrower under 1 of 2 kinds of reward, and "
        "wider under 1; its upper tail became narrower under 0 of 2 kinds of reward, and wider under 1 "
        "(p < 0.05, Holm over kinds of reward)."
    )
    assert during_training.tail_trend(made_up_quarters(ends, seeds=9)) == "", "too few seeds for a claim"
    assert during_training.tail_trend(made_up_quarters({("none", "ppo"): ((0.2, 0.1), (0.1, 0.2))})) == ""


def test_ten_seeds_give_the_effect_of_the_terms_a_p_value():
    ends = {("spikes", "core"): ((1, 1), (1, 1)), ("spikes", "all"): ((1, 0.5), (1, 1.0))}
    told = during_training.tail_findings(made_up_quarters(ends), "core", "all", x="quarter")
    assert "0.50 with all terms, 1.00 with the core loss alone, p = 0.002" in told
    assert "upper tail 1.00 with all terms, 1.00 with the core loss alone, p = 1.000 (seeds: 10)" in told
