"""Figures and tables of the evidence on made-up runs of every cell that the studies have."""

import pandas as pd
import pytest
from conftest import ROOT
from test_verdicts import SUITES

from dvpo_lib.chain.commands.evidence import EVIDENCE_FOLDER, write_plan
from dvpo_lib.chain.params import load_params
from dvpo_lib.experiments.grids.ablation import CUMULATIVE_TERMS
from dvpo_lib.experiments.grids.evidence import PLAN, read_plan
from dvpo_lib.experiments.grids.studies import BASE, CLAIMED, SHOWN, STUDIES
from dvpo_lib.experiments.grids.study_sections import study_section
from dvpo_lib.reporting import figures, tables
from dvpo_lib.reporting.figures.evidence import setting_curves
from dvpo_lib.reporting.findings import during_training, recommended, verdict_page, verdict_sentences
from dvpo_lib.reporting.statistics import claims, comparisons, run_scores, study_rows


def runs_of_study(study, seeds=2):
    """Made-up scores of every cell of a study."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{STUDIES[study].profile}.yaml")
    return pd.DataFrame(
        [
            dict(study=study, **cell.labels, seed=seed, suite=suite, role=role, metric="sampled", key="k", machine="m")
            | dict(value=0.5 + 0.03 * (k % 11) + 0.01 * seed)
            for seed in range(seeds)
            for k, cell in enumerate(STUDIES[study].cells(params))
            for suite, role in SUITES.items()
            if cell.method != BASE
        ]
    )


def test_lost_runs_are_counted_by_method_and_noise():
    runs = runs_of_study("comparison")
    runs = runs[runs["noise"].isin(["none", "spikes"])].assign(value=0.8)
    base = runs[(runs["method"] == "ppo") & (runs["noise"] == "none")].assign(method=BASE, value=0.5)
    runs.loc[(runs["method"] == "ppo") & (runs["noise"] == "spikes") & (runs["role"] == "ID"), "value"] = None
    runs.loc[(runs["method"] == "grpo") & (runs["seed"] == 1) & (runs["role"] == "ID"), "value"] = 0.4
    runs.loc[(runs["method"] == "cql") & (runs["role"] == "OOD"), "value"] = 0.4
    table = during_training.lost_runs(runs, base).set_index(["method", "noise"])
    assert table["runs"].eq(6).all() and table.loc[("grpo", "none"), "lost"] == 3
    assert table.loc[("ppo", "spikes"), "lost"] == 6 and table.loc[("dvpo", "spikes"), "lost"] == 0
    text = during_training.lost_findings(runs, base)
    assert "PPO 6 of 6" in text and "GRPO 3 of 6" in text and "DVPO" not in text and "CQL" not in text
    fewer = runs[(runs["noise"] != "spikes") | (runs["family"] != "dialogue") | (runs["method"] != "grpo")]
    table = during_training.lost_runs(fewer, base).set_index(["method", "noise"])
    assert table.loc[("grpo", "spikes")].tolist() == [2, 4], "runs that do not exist are not counted"
    quiet = during_training.lost_findings(runs[runs["method"] == "dvpo"], base)
    assert quiet == "None of 12 runs diverged or ended below the base policy (ID)."


def with_training(runs):
    """The same runs with rows of their training."""
    keys = ["study", "method", "variant", "noise", "family", "seed", "key", "machine"]
    own = runs.drop_duplicates(keys)[keys].assign(suite="training", role="training")
    numbers = {"entropy": 0.1, "reward_true": 0.8, "kl": 0.1}
    return pd.concat([runs, *(own.assign(metric=name, value=value) for name, value in numbers.items())])


def test_runs_are_drawn_by_two_of_their_numbers():
    runs = with_training(runs_of_study("comparison"))
    figure = figures.run_scatter(runs, ("entropy", "training"), ("sampled", "ID"), "entropy", "score")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == runs["noise"].nunique()
    methods = runs["method"].nunique()
    assert all(len(ax.collections) == methods for ax in shown)
    assert sum(len(c.get_offsets()) for ax in shown for c in ax.collections) == study_rows.run_count(runs)


def test_the_strongest_control_is_the_one_with_the_higher_scores():
    runs = runs_of_study("comparison")
    mean = runs.groupby("method")["value"].mean()
    better = max(claims.CONTROLS, key=mean.get)
    assert recommended.strongest_control(runs) == better
    [other] = set(claims.CONTROLS) - {better}
    assert recommended.strongest_control(runs[runs["method"] != better]) == other
    assert recommended.strongest_control(runs[~runs["method"].isin(claims.CONTROLS)]) is None


def test_a_control_with_a_lost_run_is_not_the_strongest():
    runs = runs_of_study("comparison")
    best = recommended.strongest_control(runs)
    lost = (runs["method"] == best) & (runs["noise"] == "spikes") & (runs["seed"] == 0)
    assert recommended.strongest_control(runs.assign(value=runs["value"].mask(lost))) != best


def test_a_rival_without_pairs_is_not_told_from_the_best():
    runs = runs_of_study("comparison", seeds=10)
    runs = runs[(runs["noise"] == "flip") & (runs["family"] == "math")]
    whole = recommended.recommended_methods(runs).iloc[0]
    [told] = [m for m in ("dvpo", "cql") if m not in whole["as_good"]][:1]
    fewer = recommended.recommended_methods(runs[(runs["method"] != told) | (runs["seed"] == 0)]).iloc[0]
    assert told in fewer["as_good"] and (whole["n"], fewer["n"]) == (10, 1)


def panel_titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_visible()]


def test_the_breakdown_shows_both_cuts_at_every_rate():
    figure = figures.breakdown_curves(runs_of_study("breakdown"))
    assert panel_titles(figure) == ["DVPO winsorised", "PPO, clipped reward"]
    for ax in figure.axes:
        assert len(ax.containers) == 5, "a line for each level, and one for no cut"
        assert {tuple(line[0].get_xdata()) for line in ax.containers} == {(0.05, 0.1, 0.2, 0.3, 0.4)}


def test_the_denoised_readout_is_drawn_against_its_weight():
    figure = figures.denoised_curves(runs_of_study("denoised"))
    assert panel_titles(figure) == ["no noise", "flipped labels", "heavy-tailed spikes", "reward model"]
    for ax in figure.axes:
        lines = {container.get_label(): tuple(container[0].get_xdata()) for container in ax.containers}
        assert lines["quantile critic"] == lines["scalar critic"] == (0.0, 0.2, 1.0)
        assert lines["quantile critic, mean"] == (0.0,) and lines["quantile critic, winsorised"] == (1.0,)


def test_the_denoised_readout_is_drawn_against_the_rate_of_noise_and_against_the_critic():
    runs = runs_of_study("denoised_rates", seeds=4)
    drawn = drawn_points(figures.denoised_rate_curves(runs))
    assert len(drawn) == len(runs[["variant", "noise"]].drop_duplicates()) == 24
    assert ("heavy-tailed spikes", "scalar, its view", 0.05) in drawn
    runs = runs_of_study("denoised_critics", seeds=4)
    drawn = drawn_points(figures.denoised_critic_curves(runs))
    assert len(drawn) == len(runs[["variant", "noise"]].drop_duplicates()) == 20
    own = runs[(runs["variant"] == "layers 1, weight 1") & (runs["noise"] == "flip")].groupby("seed")["value"].mean()
    point = drawn["layers of the critic", "flipped labels, as received", 1.0]
    assert point == pytest.approx(own.sort_values().iloc[1:3].mean())


@pytest.mark.parametrize(
    "settings, ticked", [((1, 2), True), ((512, 1024, 2048), True), ((0.8, 0.95, 1.0), True), ((0.0, 0.9, 1.0), False)]
)
def test_each_setting_has_a_tick_unless_their_numbers_would_overlap(settings, ticked):
    runs = runs_of_study("denoised_critics", seeds=4)
    cell = runs[(runs["variant"] == "layers 1, weight 1") & (runs["noise"] == "flip")]
    runs = pd.concat([cell.assign(variant=f"at {x:g}", x=float(x), panel="one", line="one") for x in settings])
    [ax] = setting_curves(runs, "x", "line", "panel", "").axes
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert (labels == [f"{x:g}" for x in settings]) is ticked


def drawn_points(figure):
    """{(panel, line, x): y}."""
    lines = [(ax.get_title(), line.get_label(), line[0].get_data()) for ax in figure.axes for line in ax.containers]
    return {(panel, label, x): y for panel, label, data in lines for x, y in zip(*data, strict=True)}


@pytest.mark.parametrize(
    "study, line, variant, noise, point",
    [
        ("quantile_counts", "noise", "M = 200", "spikes", ("M", "heavy-tailed spikes", 200.0)),
        ("risk_weights", "noise", "tail mass 0.05", "reward_model", ("tail mass", "reward model", 0.05)),
        ("risk_weights", "noise", "term weights x 0", "spikes", ("term weights", "heavy-tailed spikes", 0.0)),
        ("lambdas", "method", "DVPO, lambda of the actor 0.8", "flip", ("lambda of the actor", "DVPO", 0.8)),
        ("lambdas", "method", "PPO, 2048 pretraining rollouts", "flip", ("pretraining rollouts", "PPO", 2048.0)),
    ],
)
def test_swept_settings_are_drawn_at_their_numbers(study, line, variant, noise, point):
    runs = study_rows.as_methods(runs_of_study(study, seeds=4))
    own = runs[(runs["method"] == variant) & (runs["noise"] == noise)]
    drawn = drawn_points(figures.swept_curves(runs_of_study(study, seeds=4), line))
    assert len(drawn) == len(runs[["method", "noise"]].drop_duplicates()), "a point for each setting and noise"
    middle = own.groupby("seed")["value"].mean().sort_values().iloc[1:3]
    assert drawn[point] == pytest.approx(middle.mean()), "the interquartile mean of four seeds"


def test_settings_of_different_sizes_are_on_a_logarithmic_axis():
    [ax] = figures.swept_curves(runs_of_study("quantile_counts"), "noise").axes
    assert ax.get_xscale() == "log"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "25", "50", "100", "200", "500"]
    assert {ax.get_xscale() for ax in figures.swept_curves(runs_of_study("risk_weights"), "noise").axes} == {"linear"}


def test_a_verdict_breaks_only_before_its_difference():
    shown = tables.show_table(pd.DataFrame({"claim": ["not confirmed (+1.0)"]}), "Claims").to_html()
    assert "not\N{NO-BREAK SPACE}confirmed (+1.0)" in shown


def test_a_missing_score_is_marked_and_named():
    runs = runs_of_study("breakdown")
    runs.loc[runs.index[0], "value"] = None
    figure = figures.breakdown_curves(runs)
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["missing"] and "not cut, DVPO winsorised, 0.05" in figure._supxlabel.get_text().replace("\n", " ")


def test_critics_are_compared_at_every_rate_of_noise():
    runs = runs_of_study("calibration", seeds=2)
    runs = runs[runs["suite"] == "math_id"].assign(suite="last", role="critic")
    runs = pd.concat([runs.assign(metric=name) for name in ("auc_true", "explained_true", "covered_80", "crps")])
    runs.loc[(runs["metric"] == "covered_80") & (runs["method"] == "ppo"), "value"] = None
    axes = critic_axes(figures.critic_quality_curves(runs))
    assert len(axes) == 2 * 4, "a row for flips, one for spikes"
    assert [len(lines) for lines in axes] == [4, 4, 0, 3, 4, 4, 0, 3]  # dots and a mean for each critic; a level
    assert axes[0][1] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.45] and axes[4][1] == [0.05, 0.1, 0.2, 0.3, 0.4]


def critic_axes(figure):
    return [[list(line.get_xdata()) for line in ax.get_lines()] for ax in figure.axes]


def test_profiles_have_a_panel_for_each_noise_and_a_line_for_each_method():
    runs = runs_of_study("comparison")
    figure = figures.performance_profiles(runs)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == runs["noise"].nunique()
    assert {len(ax.lines) for ax in shown} == {runs["method"].nunique()}
    for line in shown[0].lines:
        share = line.get_ydata()
        assert share[0] == 1 and share[-1] == 0 and (share[1:] <= share[:-1]).all()


@pytest.mark.parametrize("study", STUDIES)
def test_names_of_settings_stay_apart_in_figures_and_tables(study):
    """Long names are cut there."""
    names = [*dict.fromkeys(study_rows.as_methods(runs_of_study(study, seeds=1))["method"])]
    assert len({figures.look_of(name, names).name for name in names}) == len(names)


OWN_LABELS = {"comparison", "breakdown", "denoised", "denoised_rates", "calibration", "wrong_steps"}  # of their figures


@pytest.mark.parametrize("study", sorted(set(STUDIES) - OWN_LABELS))
def test_variants_of_every_other_study_can_be_compared(study):
    """No two cells of a figure have one name."""
    runs = runs_of_study(study)
    scores = run_scores(study_rows.as_methods(runs), overall=True)
    assert len(scores) == runs.drop_duplicates(study_rows.RUN_LABELS).shape[0] * 4 and scores["value"].notna().all()
    named = set(study_rows.as_methods(runs)["method"])
    assert study != "lambdas" or {"DVPO, lambda of the actor 0.5", "PPO, lambda of the actor 0.5"} <= named


def test_a_study_of_variants_is_drawn():
    runs = study_rows.as_methods(runs_of_study("targets"))
    for rows in (runs, runs.iloc[::-1]):  # in any order
        titles = panel_titles(figures.final_comparison(rows, overall=True))
        assert titles[:4] == [figures.display_name(role) for role in ("ID", "OOD", "transfer", "ALL")]


def test_a_section_has_best_settings_only_if_ten_seeds_can_tell_them():
    few, some, many = (runs_of_study("heads", seeds) for seeds in (SHOWN - 1, SHOWN, CLAIMED))
    [text] = study_section("heads", few)
    assert "a figure needs 5 seeds" in text.data
    assert "`make evidence STUDY=heads` computes the others" in text.data
    assert [type(part).__name__ for part in study_section("heads", some)] == ["Figure", "Styler", "Markdown"]
    figure, scores, table = study_section("heads", many, paper={"3 heads": "best"})
    assert "highest mean score" in table.to_html() and len(study_section("heads", many, numbers=False)) == 1
    rows = scores.data.map(lambda cell: cell.replace("\N{NO-BREAK SPACE}", " ")).set_index("setting")
    assert list(rows) == ["paper", "heavy-tailed spikes", "reward model", "seeds"] and len(rows) == 5
    assert rows.loc["3 heads", "paper"] == "best" and rows.loc["1 head", "paper"] == ""
    mixed = pd.concat([many[many["variant"] == "3 heads"], some[some["variant"] != "3 heads"]])
    assert set(zip(*[study_section("heads", mixed)[1].data[c] for c in ("seeds",)], strict=True)) == {("10",), ("5",)}
    base = runs_of_study("comparison", CLAIMED).query("method == 'ppo'").assign(method=BASE)
    assert "a figure needs 5 seeds" in study_section("comparison", base)[0].data, "the base policy is no method"
    assert "a figure needs 5 seeds" in study_section("heads", few.head(0))[0].data


def test_what_scores_are_means_of_is_counted():
    runs = runs_of_study("comparison")
    text = verdict_page.outcome_text(runs[runs["family"] == "math"])
    assert text.startswith(
        "For the claims, policies were trained on `math`. A score is the mean over 3 test sets, 1 of them of families"
    )


def test_scores_of_the_base_policy_are_means_of_its_tests():
    runs = runs_of_study("breakdown", 2)
    base = runs[runs["variant"] == "level 0.1"].query("method == 'ppo_clip_reward' and noise == 'spikes 0.1'")
    base = base.assign(method=BASE, value=base["seed"] * 0.5)
    found = study_rows.base_scores(pd.concat([runs, base])).set_index("suite")["value"]
    assert found.to_dict() == dict.fromkeys(SUITES, 0.25)
    again = base[base["seed"] == 1].assign(family="science")  # the same test, of the file's other families
    twice = study_rows.base_scores(pd.concat([runs, base, again])).set_index("suite")["value"]
    assert twice.to_dict() == found.to_dict(), "a seed that more families have counts no more"


def test_methods_and_noises_stand_in_the_order_of_all_pages():
    runs = study_rows.in_display_order(runs_of_study("comparison").sort_values(["method", "noise"]))
    assert list(runs["noise"].unique())[:3] == ["none", "flip", "spikes"]
    assert list(runs["method"].unique())[:3] == ["dvpo", "dvpo_winsorised", "ppo"]
    assert list(runs["role"].unique()) == ["ID", "OOD", "transfer"]
    counts = study_rows.in_display_order(runs_of_study("quantile_counts"))["variant"].unique()
    assert list(counts) == [f"M = {m}" for m in (10, 25, 50, 100, 200, 500)]
    rows = [*study_rows.in_display_order(runs_of_study("ablation").sort_values("variant"))["variant"].unique()]
    assert rows[: len(CUMULATIVE_TERMS)] == list(CUMULATIVE_TERMS) and all(r.startswith("without") for r in rows[5:])
    rates = study_rows.in_display_order(runs_of_study("breakdown"))["noise"].unique()
    assert list(rates) == [f"spikes {rate:g}" for rate in (0.05, 0.1, 0.2, 0.3, 0.4)]


def test_cells_that_are_still_being_computed_are_left_out():
    runs = runs_of_study("comparison", seeds=3)
    late = (runs["method"] == "rfqi") & (runs["noise"] == "flip") & (runs["seed"] == 2)
    absent = (runs["method"] == "ppo") & (runs["noise"] == "spikes") & (runs["family"] == "science")
    runs = runs[~late & ~absent]
    covered = study_rows.covered_cells(runs, 3)[["noise", "family"]].drop_duplicates()
    there = runs[["noise", "family"]].drop_duplicates()
    left_out = {*map(tuple, there.to_numpy())} - {*map(tuple, covered.to_numpy())}
    assert left_out == {("flip", "math"), ("flip", "science"), ("flip", "dialogue"), ("spikes", "science")}
    assert len(study_rows.covered_cells(runs, 4)) == 0


def test_the_table_of_studies_counts_settings_and_seeds():
    evidence = {"breakdown": runs_of_study("breakdown", 3), "heads": runs_of_study("heads").head(0)}
    planned = {"breakdown": 250, "heads": 50}
    table = study_rows.study_table({"breakdown": "?", "heads": "!"}, evidence, planned).set_index("study")
    assert table["runs"].tolist() == ["150 of 250", "0 of 50"]
    assert table.loc["breakdown", ["settings", "seeds"]].tolist() == [50, "3"]
    assert table.loc["heads", ["settings", "seeds"]].tolist() == [0, "0"]
    few = evidence["breakdown"]
    few = few[(few["seed"] < 2) | (few["method"] == "dvpo_winsorised")]
    assert study_rows.study_table({"breakdown": "?"}, {"breakdown": few}, planned)["seeds"].tolist() == ["2 to 3"]
    runs = runs_of_study("comparison")
    runs = runs[runs["noise"].isin(["none", "flip"]) & runs["method"].isin(["dvpo", "ppo", "grpo"])]
    shown = recommended.recommendation_table(recommended.recommended_methods(runs))
    assert shown["noise"].tolist() == ["no noise", "flipped labels"]


def test_families_that_lack_runs_are_named():
    runs = runs_of_study("comparison", 2)
    counts = runs.drop_duplicates(study_rows.RUN_LABELS)["family"].value_counts()
    assert verdict_sentences.missing_run_findings(runs, counts.to_dict()) == ""
    rest = runs[runs["family"] != "dialogue"]
    text = verdict_sentences.missing_run_findings(rest, counts.to_dict() | {"math": 999})
    assert text == (
        f"**Still being computed**: policies that are trained on math ({counts['math']} of 999 runs) and "
        f"dialogue (0 of {counts['dialogue']} runs)."
    )


def test_the_plan_beside_the_files_is_todays(tmp_path):
    (tmp_path / "reports" / "evidence").mkdir(parents=True)
    for name in ("params.yaml", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_plan(tmp_path)
    written, kept = ((root / EVIDENCE_FOLDER / PLAN).read_text("utf-8") for root in (tmp_path, ROOT))
    assert written == kept and "comparison,math,780" in kept
    assert read_plan(tmp_path / EVIDENCE_FOLDER).equals(read_plan(ROOT / EVIDENCE_FOLDER))
    assert read_plan(tmp_path).empty, "a folder of another project has none"


def test_settings_without_a_claim_are_compared_by_the_number_that_they_differ_in():
    runs = study_rows.as_methods(runs_of_study("lambdas", 5))
    lines = recommended.spread_findings(runs).splitlines()
    assert sum(line.startswith("- Under flipped labels") for line in lines) == 6, "three settings of two methods"
    own = runs[runs["method"].str.startswith("DVPO, lambda of the actor")]
    means = own.groupby("method")["value"].mean()
    first = next(line for line in lines if "DVPO, lambda of the actor" in line)
    best, worst = means.idxmax(), means.idxmin()
    assert first.index(f"that of {best} (") < first.index(f"that of {worst} (") and "higher in 5 of 5 seeds" in first
    assert "this is no claim. 5 pairs cannot have a p-value below 0.062" in lines[-1]
    few = recommended.spread_findings(runs[runs["seed"] < 3])
    assert f"3 pairs cannot have a p-value below {comparisons.sign_flip_test([0.1, 0.2, 0.3]):.2g}" in few
    alike = recommended.spread_findings(study_rows.as_methods(runs_of_study("heads", 5))).splitlines()
    assert sum(line.startswith("- ") for line in alike) == 2, "a line for each noise"
    assert recommended.spread_findings(own[own["method"] == best]) == "", "one setting has no rival"


def test_variety_is_told_by_rank_correlations():
    runs = with_training(runs_of_study("comparison")).query("family == 'math' and noise == 'flip'")
    scores = runs[runs["metric"] == "sampled"]
    ranks = scores.groupby(["method", "seed"])["value"].transform("mean")
    opposite = scores.assign(metric="pass_at_k", value=1 - ranks)
    start = study_rows.base_scores(opposite.assign(method=BASE, value=opposite["value"].median()))
    told = during_training.variety_findings(pd.concat([runs, opposite]), start).splitlines()
    assert told[0] == "- Score and pass@k, rank correlation over runs: under flipped labels -1.00."
    assert during_training.variety_findings(runs, start) == "", "no run has a pass@k"
    per_run = opposite[opposite["role"] == "ID"].groupby(["method", "seed"])["value"].mean()
    below = (per_run < start.set_index("suite")["value"]["math_id"]).sum()
    assert 0 < below and f"{below} of {len(per_run)} runs end below it" in told[-1]


def test_aucs_of_critics_stand_side_by_side():
    rows = [
        ("spikes 0.1", "dvpo", 0.8),
        ("spikes 0.1", "dvpo", 0.9),
        ("spikes 0.1", "ppo", 0.6),
        ("flip 0.1", "ppo", 0.5),
    ]
    runs = pd.DataFrame(rows, columns=["noise", "method", "value"]).assign(metric="auc_true", suite="last")
    table = tables.critic_auc_table(pd.concat([runs, runs.assign(suite="first", value=0.0)])).set_index("noise")
    assert table.loc["spikes 0.1", "quantile critic"] == "0.85 (0.80 to 0.90)"
    assert table.loc["flip 0.1", "scalar critic"] == "0.50 (0.50 to 0.50)"


def test_metrics_of_a_run_become_columns_in_the_order_of_its_rows():
    rows = [("ppo", "auc", 0.5), ("dvpo", "auc", 0.6), ("dvpo", "td", 0.7), ("ppo", "other", 1.0), ("ppo", "td", 0.4)]
    runs = pd.DataFrame(rows, columns=["method", "metric", "value"]).assign(
        variant="", noise="none", family="m", seed=0
    )
    wide = study_rows.metric_columns(runs, {"td": "second", "auc": "first"})
    assert wide[["method", "second", "first"]].values.tolist() == [["ppo", 0.4, 0.5], ["dvpo", 0.7, 0.6]]
    assert list(wide) == [*study_rows.RUN_LABELS, "second", "first"]
    assert list(study_rows.metric_columns(runs.head(0), {"td": "second"})) == [*study_rows.RUN_LABELS, "second"]


@pytest.mark.parametrize(
    "cell, lines",
    [
        ("OOD -5.7, ID +0.5", ["OOD -5.7,", "ID +0.5"]),
        ("+0.3 [-1.2, +1.5]", ["+0.3 [-1.2, +1.5]"]),
        ("GRPO, clipped reward", ["GRPO,", "clipped reward"]),
        ("refuted (-4.5)", ["refuted", "(-4.5)"]),
    ],
)
def test_lines_of_a_cell_end_between_its_parts(cell, lines):
    """Narrow columns, so that wide tables fit the page; an interval stays whole."""
    [shown] = tables.show_table(pd.DataFrame({"a": [cell]}), "").data["a"]
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in shown.split(" ")] == lines
