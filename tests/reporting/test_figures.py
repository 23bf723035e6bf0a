"""Figures: one look per method, readable by the colour-blind; right numbers on the axes; deterministic files."""

import itertools
import warnings

import matplotlib.colors as mc
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from dvpo_lib.reporting import figures, statistics
from dvpo_lib.reporting.figures import style
from dvpo_lib.reporting.names import TAIL_COLUMNS

DEFAULT = ["dvpo", "dvpo_winsorised", "ppo", "grpo", "ppo_clip_reward"]
# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(scope="module")
def frames():
    """Small tidy frames of the training stages: two methods, two noises, three seeds."""
    rng, curves, final = np.random.default_rng(0), [], []
    for method, noise, seed in itertools.product(["dvpo", "grpo"], ["none", "spikes"], range(3)):
        for i in range(5):
            curves.append(
                {
                    "method": method,
                    "noise": noise,
                    "family": "math",
                    "seed": seed,
                    "iteration": i,
                    "rollouts": 128 * (i + 1),
                    "reward_true": 0.4 + 0.1 * i + 0.02 * rng.normal(),
                    "kl": 0.01 * i,
                    "explained_variance": np.nan if method == "grpo" else 0.1 * i,
                }
            )
        for suite, role in (("math_id", "ID"), ("math_ood", "OOD"), ("science_id", "transfer")):
            final.append(
                {
                    "method": method,
                    "noise": noise,
                    "family": "math",
                    "seed": seed,
                    "suite": suite,
                    "role": role,
                    "metric": "sampled",
                    "value": rng.uniform(0.3, 0.9),
                }
            )
    return pd.DataFrame(curves), pd.DataFrame(final)


def drawings(frames) -> dict:
    """Every public figure once."""
    curves, final = frames
    rng = np.random.default_rng(1)
    base = pd.DataFrame(
        {
            "prompt": np.repeat([f"p{i}" for i in range(12)], 4),
            "steps": rng.integers(2, 4, 48),
            "completion": rng.choice(["careful x", "careless x", "y"], 48),
            "reward": rng.integers(0, 2, 48) * 1.0,
            "length": rng.integers(8, 30, 48),
            "sample": np.tile(range(4), 12),
        }
    )
    shares = {
        "tp": 0.3,
        "fn": 0.1,
        "fp": 0.1,
        "tn": 0.4,
        "missing": 0.1,
        "corrupted": 0.3,
        "accuracy": 0.7,
        "length_error": 0.1,
    }
    confusion = pd.DataFrame([{"noise": "flip", **shares}])
    rewards = pd.DataFrame({"noise": "spikes", "true": rng.integers(0, 2, 90), "received": rng.normal(0, 3, 90)})
    sources = pd.concat([rewards.assign(noise=n) for n in "abcdef"] + [rewards.assign(noise="none", received=np.nan)])
    votes = pd.DataFrame(
        {
            "prompt": [f"p{i}" for i in range(24)],
            "agreement": np.arange(24) % 4 / 4 + 0.25,
            "steps": np.arange(24) % 2 + 2,
            "right": np.arange(24) % 3 > 0,
        }
    )
    looks = pd.DataFrame(
        {"step": [0, 24, 48, 36], "accuracy": [0.44, 0.8, 0.7, 0.72], "taken": [False, False, False, True]}
    )
    tenths = pd.DataFrame({"predicted": np.arange(10) / 10, "right": np.arange(10) / 12, "count": 100})
    pits = pd.DataFrame(
        {
            "critic": ["quantile"] * 50 + ["scalar"] * 50,
            "crps": rng.uniform(0, 1, 100),
            "pit": [*rng.uniform(0, 1, 50), *[np.nan] * 50],
        }
    )
    tokens = "careful a 7 + 5 = 2 answer 2 <eos>".split()
    quantiles = np.sort(rng.normal(size=(len(tokens), 8)), -1)
    level = (2 * np.arange(1, 21) - 1) / 40
    tails = pd.concat([pd.DataFrame({"variant": v, "level": level, "value": level * k}) for k, v in enumerate("ab", 1)])
    change = pd.DataFrame(
        {
            "row": ["core", "core"],
            "source": ["paper", "here"],
            "change": [2.0, 9.0],
            "low": [np.nan, 5],
            "high": [np.nan, 12],
        }
    )
    steps = pd.DataFrame(
        {
            "p": 0.2,
            "kappa": np.repeat([0.0, 1.0], 20),
            "level": np.tile(level, 2),
            "value": np.tile(level, 2),
            "truth": np.tile(level > 0.8, 2) * 1.0,
        }
    )
    truth = pd.DataFrame({"level": level, "value": 9 * level - 4})
    terms = pd.concat(
        [
            truth.assign(term=t, form=f, weight=w)
            for t, f, w in (
                ("core", "", 0.0),
                ("mean_shift", "per sample", 0.1),
                ("mean_shift", "per sample", 1.0),
                ("tail_shape", "previous", 0.1),
            )
        ]
    )
    walk = pd.concat([truth.assign(kind=k, **{"lambda": x}) for k in ("true", "comonotone", "mixture") for x in (0, 1)])
    weights = pd.DataFrame({"readout": "mean", "level": level, "weight": 1.0})
    band = pd.DataFrame({"level": [0.0, 0.0, 0.1, 0.1], "reward": [-1, 1, -1, 1], "used": [-1, 1, 0, 1]})
    return {
        "kappa": figures.kappa_panels(steps),
        "terms": figures.term_curves(terms, truth, truth.assign(form="previous")),
        "walk": figures.walk_panels(walk, 1),
        "readouts": figures.readout_panels(weights, band),
        "lab": figures.lab_curve(truth.assign(truth=truth["value"]), "n"),
        "learning": figures.learning_curves(curves, base={"math": 0.4}, smooth=2),
        "final": figures.final_comparison(final, base={"ID": 0.4}, overall=True),
        "final of one method": figures.final_comparison(final[final["method"] == "dvpo"]),
        "improvement": figures.improvement_intervals(statistics.improvement_table(final, "grpo"), "grpo"),
        "diagnostics": figures.diagnostic_panels(curves[curves["method"] == "dvpo"]),
        "tails": figures.tail_panels(curves.assign(**{name: curves["kl"] for name in TAIL_COLUMNS})),
        "base": figures.base_skill({"math_id": base}, ("careful", "careless")),
        "confusion": figures.confusion_bars(confusion),
        "rewards": figures.reward_histograms(rewards),
        "rewards of many sources": figures.reward_histograms(sources),
        "votes": figures.vote_quality(votes),
        "reward model": figures.reward_model_quality(looks, tenths, 0.718),
        "calibration": figures.calibration_panels(pits),
        "along": figures.value_along_response(quantiles, tokens, 1.0, quantiles.mean(1), marks=[3]),
        "text": figures.token_text([{"tokens": tokens, "values": rng.normal(size=len(tokens)), "title": "t"}]),
        "quantiles": figures.quantile_curves(tails),
        "paper": figures.paper_beside_ours(change, note="n"),
    }


def test_every_figure_draws_without_a_warning_and_with_equal_bytes(frames, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in ("first", "second"):
            (tmp_path / turn).mkdir()
            for name, figure in drawings(frames).items():
                style.save_figure(figure, tmp_path / turn / f"{name}.png")
        style.save_figure(drawings(frames)["final"], tmp_path / "first" / "final.svg")
        style.save_figure(drawings(frames)["final"], tmp_path / "second" / "final.svg")
    for path in (tmp_path / "first").iterdir():
        assert path.stat().st_size > 2_000, path.name
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def distance(one: str, other: str, matrix) -> float:
    """Euclidean distance of two colours in CIE L*a*b* as a reader with `matrix` sees them."""

    def lab(color):
        rgb = np.array(mc.to_rgb(color))
        linear = np.clip(matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
        t = xyz / np.array([0.9505, 1.0, 1.089])
        f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    return float(np.linalg.norm(lab(one) - lab(other)))


@pytest.mark.parametrize("reader", BLINDNESS)
def test_default_methods_differ_in_colour_for_every_reader_and_all_methods_in_marker(reader):
    matrix = np.array(BLINDNESS[reader])
    for one, other in itertools.combinations(DEFAULT, 2):
        assert distance(style.METHOD_LOOKS[one].color, style.METHOD_LOOKS[other].color, matrix) > 20, (one, other)
    for one, other in itertools.combinations(style.METHOD_LOOKS, 2):
        assert distance(style.METHOD_LOOKS[one].color, style.METHOD_LOOKS[other].color, matrix) > 10, (one, other)
    assert len({s.marker for s in style.METHOD_LOOKS.values()}) == len(style.METHOD_LOOKS)


def test_all_methods_of_the_comparison_have_a_look():
    from dvpo_lib.rl.methods import METHODS

    assert set(METHODS) <= set(style.METHOD_LOOKS)


def test_a_method_keeps_its_colour_whatever_else_is_drawn(frames):
    curves, final = frames
    both, one = figures.learning_curves(curves), figures.learning_curves(curves[curves["method"] == "grpo"])
    wanted = mc.to_hex(style.METHOD_LOOKS["grpo"].color)
    for figure in (both, one):
        assert wanted in {mc.to_hex(line.get_color()) for line in figure.axes[0].get_lines()}
    rows = ["core", "+ consistency", "+ mean shift"]
    looks = [style.look_of(r, rows) for r in rows]
    assert len({k.color for k in looks}) == len({k.marker for k in looks}) == 3


def test_final_comparison_shows_every_seed_and_the_interquartile_mean(frames):
    _, final = frames
    figure = figures.final_comparison(final)
    panel = figure.axes[0]  # no noise, in distribution
    own = final[(final["noise"] == "none") & (final["role"] == "ID")]
    dots = np.concatenate([c.get_offsets()[:, 0] for c in panel.collections])
    np.testing.assert_allclose(np.sort(dots), np.sort(own["value"]))
    points = [line.get_xdata()[0] for line in panel.get_lines() if len(line.get_xdata()) == 1]
    np.testing.assert_allclose(points, own.groupby("method", sort=False)["value"].mean())  # three seeds: nothing is cut


def test_learning_curves_show_every_seed_and_leave_out_what_a_method_does_not_have(frames):
    curves, _ = frames
    assert len(figures.learning_curves(curves).axes[0].get_lines()) == 2 * (3 + 1)
    without = figures.learning_curves(curves, y="explained_variance")  # grpo has no critic
    assert len(without.axes[0].get_lines()) == 3 + 1
    assert np.isfinite(without.axes[0].get_lines()[0].get_ydata()).all()


def test_smoothing_stays_inside_a_seed(frames):
    curves, _ = frames
    shown = figures.learning_curves(curves, smooth=2).axes[0].get_lines()[0].get_ydata()
    own = curves[(curves["method"] == "dvpo") & (curves["noise"] == "none") & (curves["seed"] == 0)]["reward_true"]
    np.testing.assert_allclose(shown, [own.iloc[0], *((own.to_numpy()[1:] + own.to_numpy()[:-1]) / 2)])


def test_value_fan_writes_the_tokens_and_nests_its_bands():
    quantiles = np.tile(np.linspace(-1, 1, 40), (3, 1))
    ax = figures.value_along_response(quantiles, ["a", "b", "c"]).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    tops = [c.get_paths()[0].vertices[:, 1].max() for c in ax.collections]
    assert tops == sorted(tops, reverse=True) and tops[0] == pytest.approx(0.925, abs=0.01)  # level 0.95 of U(-1, 1)


def test_token_text_shows_each_token_once_and_wraps_lines():
    words = [f"w{i}" for i in range(30)]
    figure = figures.token_text([{"tokens": words, "values": np.linspace(-1, 1, 30), "title": "head"}], width=40)
    texts = [t for t in figure.axes[0].texts if t.get_text() != "head"]
    assert [t.get_text() for t in texts] == words
    assert len({t.get_position()[1] for t in texts}) > 1
    with pytest.raises(ValueError):
        figures.token_text([{"tokens": words, "values": [0.0], "title": "short"}])


def test_tokens_stand_apart_whatever_the_length_of_their_heading():
    words = ["has", "_", "seat", "ing", "_", "outdoors", "=", "none"] * 3
    figures.set_figure_theme()
    heading = "Works for me, do they have vegetarian options? " * 10
    figure = figures.token_text([{"tokens": words, "values": [0.1] * len(words), "title": heading}])
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if t.get_bbox_patch()]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 <= right.x0 or right.y1 < left.y1, "on the same line, no box covers the next"


HOSTILE = {
    "dollars": "$5 and $10",
    "open brace": r"$\frac{$",
    "unknown command": r"$\nosuch$",
    "control character": "a\x00b",
    "lone surrogate": "a\ud800b",
    "direction marks": "a\u202eb\u200fc",
    "long": "x" * 10_000,
    "line feeds": "a\n\nb\r",
    "other script": "\u65e5\u672c\U0001f600",
}


def hostile_figures(text: str, frames) -> dict:
    """Figures with a text of the data at every place that can hold one."""
    tokens, values = ["a", text, "b"], [0.1, -0.2, 0.3]
    level = np.linspace(0.05, 0.95, 5)
    quantiles = np.tile(np.linspace(-1, 1, 4), (3, 1))
    solution = {"tokens": tokens, "quantiles": quantiles, "correct": 1, "generator": text}
    of_lists = {
        "tokens": figures.token_text([{"tokens": tokens, "values": values, "title": text}], title=text, note=text),
        "along": figures.value_along_response(quantiles, tokens, title=text, note=text),
        "over": figures.value_over_text([solution], 0.5, note=f"Problem: {text}"),
    }
    if text.encode(errors="replace") != text.encode(errors="surrogatepass"):  # no column of pandas can hold it
        return of_lists
    renamed = {"dvpo": text, "grpo": "grpo", "none": text, "spikes": "spikes"}
    curves, final = (f.assign(**{c: f[c].astype(object).map(renamed) for c in ("method", "noise")}) for f in frames)
    base = pd.DataFrame(
        {"prompt": ["p", "q"] * 4, "steps": 2, "completion": text, "reward": 1.0, "length": range(8), "sample": 0}
    )
    pits = pd.DataFrame({"critic": text, "pit": [0.1, 0.6], "crps": [0.2, 0.3]})
    rewards = pd.DataFrame({"noise": text, "true": [0, 1], "received": [0.1, 0.9]})
    change = pd.DataFrame({"row": [text], "source": ["here"], "change": [2.0], "low": [1.0], "high": [3.0]})
    weights = pd.DataFrame({"readout": text, "level": level, "weight": 1.0})
    band = pd.DataFrame({"level": [0.0, 0.0], "reward": [-1, 1], "used": [-1, 1]})
    variants = pd.concat([pd.DataFrame({"variant": v, "level": level, "value": level}) for v in (text, "other")])
    terms = pd.DataFrame({"term": text, "form": text, "weight": 1.0, "level": level, "value": level})
    return of_lists | {
        "learning": figures.learning_curves(curves, note=text),
        "final": figures.final_comparison(final, note=text),
        "improvement": figures.improvement_intervals(statistics.improvement_table(final, "grpo"), "grpo"),
        "diagnostics": figures.diagnostic_panels(curves, columns=["kl"]),
        "tails": figures.tail_panels(curves.assign(**{name: curves["kl"] for name in TAIL_COLUMNS}), note=text),
        "base": figures.base_skill({text: base}, ("careful",)),
        "calibration": figures.calibration_panels(pits),
        "quantiles": figures.quantile_curves(variants),
        "rewards": figures.reward_histograms(rewards),
        "paper": figures.paper_beside_ours(change, note=text),
        "readouts": figures.readout_panels(weights, band),
        "terms": figures.term_curves(terms, pd.DataFrame({"level": level, "value": level})),
    }


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_text_of_the_data_is_drawn_as_it_stands(text, frames, monkeypatch):
    """No part of it is read as a formula, nothing fails or warns, and no figure grows with it."""

    def refuse(parser, formula, *_, **__):
        assert "mathdefault" in formula, f"{formula[:40]!r} is read as a formula"  # powers of ten of a log axis
        return parse(parser, formula, *_, **__)

    parse = MathTextParser.parse
    monkeypatch.setattr(MathTextParser, "parse", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, figure in hostile_figures(text, frames).items():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            shown = [t for t in figure.findobj(Text) if t.get_text()]
            assert any(style.data_text(text, 8)[:5] in t.get_text() for t in shown), name
            assert max(len(line) for t in shown for line in t.get_text().splitlines()) <= 250, name


def test_what_cannot_be_drawn_is_shown_by_its_code_and_long_text_is_cut():
    assert style.data_text("$5 and $10") == "$5 and $10" and style.data_text(r"\frac{a}") == r"\frac{a}"
    assert style.data_text("a\x00\n\ud800\u200fb") == r"a\x00\n\ud800\u200fb"
    assert style.data_text("\u65e5") == r"\u65e5"  # the fonts lack it
    assert style.data_text("x" * 10_000, 10) == "x" * 9 + "\N{HORIZONTAL ELLIPSIS}"
    assert len(style.data_text("\x00" * 10_000, 10)) <= 10
    assert style.data_text("x" * 10, 10) == "x" * 10 and style.data_text(7) == "7"


def test_figures_mark_and_name_missing_values(frames):
    curves, final = frames
    gap = (final["method"] == "dvpo") & (final["noise"] == "none") & (final["seed"] == 1) & (final["role"] == "OOD")
    final = final.assign(value=final["value"].mask(gap))
    for figure in (
        figures.final_comparison(final),
        figures.improvement_intervals(statistics.improvement_table(final, "grpo"), "grpo"),
    ):
        assert sum(t.get_text() == "missing" for t in figure.findobj(Text)) == 1
        assert "DVPO" in figure.get_supxlabel() and "no" in figure.get_supxlabel()
    holed = curves.assign(reward_true=curves["reward_true"].mask((curves["seed"] == 1) & (curves["iteration"] == 2)))
    figure = figures.learning_curves(holed, smooth=2)
    bold = [line for line in figure.axes[0].get_lines() if line.get_label() == "DVPO"]
    assert np.isnan(bold[0].get_ydata()).tolist() == [False, False, True, True, False]
    assert "DVPO, no noise" in figure.get_supxlabel()
    empty = figures.diagnostic_panels(curves.assign(kl=np.nan), columns=["kl"])  # all runs diverged at once
    assert "There is nothing to draw" in empty.get_supxlabel()
    figure = figures.diagnostic_panels(holed[holed["method"] == "dvpo"], columns=["reward_true"])
    assert "true reward, no noise" in figure.get_supxlabel().replace("\n", " ")
    pits = pd.DataFrame({"critic": "quantile", "pit": [0.1, np.nan, 0.7], "crps": [0.1, 0.2, np.nan]})
    assert "1 of 3" in figures.calibration_panels(pits).get_supxlabel()
