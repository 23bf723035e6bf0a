"""Widths of tails during training: quarters of the evidence, first and last quarter, sentences."""

import itertools

import pandas as pd
import pytest

from dvpo_lib.reporting import figures
from dvpo_lib.reporting.findings import tails

LOWER, UPPER = tails.TAIL_COLUMNS


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
    table = tails.tail_change_table(curves).set_index(["noise", "method"])
    assert len(table) == 4
    found = table.loc[("spikes", "all")]
    assert found.to_list() == pytest.approx([(1 + 0.9) / 2, (0.4 + 0.3) / 2, 2 * 1.5, 2 * 7.5])


def test_sentences_say_which_tails_are_wider(curves):
    text = tails.tail_findings(curves, "core", "all")
    assert text.splitlines()[0] == (
        "- At the end of training without noise, with all terms the lower tail is 65 % narrower and the upper tail is "
        "100 % wider than with the core loss alone."
    )
    assert "under heavy-tailed spikes" in text.splitlines()[1] and len(text.splitlines()) == 2
    assert tails.tail_findings(curves, "core", "another") == ""


def test_quarters_of_the_evidence_are_drawn_as_curves():
    keys = dict(noise="spikes", family="math", role="training")
    rows = [
        dict(**keys, method=method, seed=seed, suite=f"quarter {quarter}", metric=metric, value=quarter + seed)
        for method, seed, quarter, metric in itertools.product(
            ["without b", "all"], range(2), range(1, 5), ["lower_tail", "upper_tail"]
        )
    ]
    rows.append(dict(**keys, method="all", seed=0, suite="training", metric="entropy", value=3.0))
    frame = tails.tails_by_quarter(pd.DataFrame(rows))
    assert len(frame) == 16 and list(dict.fromkeys(frame["method"])) == ["without b", "all"]
    assert frame.groupby("quarter")[LOWER].mean().to_list() == [1.5, 2.5, 3.5, 4.5]
    shown = figures.tail_panels(frame, x="quarter").axes
    assert len(shown) == 2 and all(len(ax.get_lines()) == 2 for ax in shown)
    assert list(shown[0].get_lines()[0].get_xdata()) == [1, 2, 3, 4]
