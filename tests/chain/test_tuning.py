"""Tuning: one small grid for every method, a winner by a rule, params.yaml changed where it must be and only there."""

from __future__ import annotations

import difflib
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.chain.cli import main
from dvpo_lib.chain.commands import tune as command
from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.stages import read_stages
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.grids import tuning
from dvpo_lib.experiments.run_store import RunsFailed
from dvpo_lib.experiments.specs.critic_pretraining import CriticPretrainingSpec
from dvpo_lib.experiments.specs.training import TrainingSpec
from dvpo_lib.reporting import figures
from dvpo_lib.reporting.findings import tuning as tuning_report
from dvpo_lib.reporting.names import setting_text
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.training_settings import with_changes

PARAMS = load_params(ROOT / command.SETTINGS_FILES[0], overlaid=ROOT / command.SETTINGS_FILES[1])


def made_up(methods=tuple(tuning.SENSITIVE_SETTINGS), seeds=1, best=None) -> pd.DataFrame:
    """A table as `tune` makes it. best: {method: number of the point that is ahead by 0.1}."""
    rows = []
    for m, k, s in itertools.product(methods, range(9), range(seeds)):
        point = tuning.grid_points(m)[k]
        rate, value = point.values()
        rows.append(
            {
                "method": m,
                "family": "math",
                "learning_rate": rate,
                "setting": tuning.SENSITIVE_SETTINGS[m][0],
                "value": value,
                "seed": tuning.FIRST_DEVELOPMENT_SEED + s,
                "rollouts": 6144,
                "score": 0.8 + 0.001 * k + 0.1 * ((best or {}).get(m) == k) + 0.01 * s,
            }
        )
    return pd.DataFrame(rows)


def stands(methods=tuple(tuning.SENSITIVE_SETTINGS)) -> dict:
    return {m: tuning.current_point(PARAMS, m) for m in methods}


# ---- the grid ----


def test_every_method_is_tuned_with_the_same_effort():
    assert set(tuning.SENSITIVE_SETTINGS) == set(METHODS)
    for method in METHODS:
        points = tuning.grid_points(method)
        assert len(points) == 9 and len({tuple(p.values()) for p in points}) == 9
        assert {p["training.learning_rate"] for p in points} == set(tuning.LEARNING_RATES)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_point_can_be_set_and_is_the_one_meant(method):
    for point in tuning.grid_points(method):
        training, critic = tuning.apply_point(PARAMS, method, point)
        config = with_changes(PARAMS.training, training)
        assert config.learning_rate == point["training.learning_rate"]
        assert (critic.kind if critic else None) == METHODS[method].critic
        for dotted, value in point.items():
            node = {"training": config, "critic": critic}[dotted.partition(".")[0]]
            for name in dotted.split(".")[1:]:
                node = getattr(node, name)
            assert node == value


def test_score_is_the_true_reward_late_in_training():
    assert tuning.late_training_reward(pd.DataFrame({"reward_true": [0, 0, 0, 0, 0, 0, 1, 3]})) == 2
    assert tuning.late_training_reward(pd.DataFrame({"reward_true": [0.5, 1]})) == 1


# ---- the winner ----


def chosen(scores, stood=(1e-4, 0.2)) -> pd.Series:
    """Of the nine points of ppo with these scores."""
    table = made_up(["ppo"]).assign(score=scores)
    where = {"training.learning_rate": stood[0], "training.epsilon": stood[1]}
    return tuning.choose_winners(table, {"ppo": where}).iloc[0]


def test_the_current_point_stays_if_no_other_leads_by_the_margin():
    scores = np.full(9, 0.5)
    scores[4], scores[8] = 0.8, 0.8 + 0.9 * tuning.WINNING_MARGIN  # the fifth point is (1e-4, 0.2)
    row = chosen(scores)
    assert not row["changed"] and (row["learning_rate"], row["value"]) == (1e-4, 0.2)
    assert row["score"] == row["stood"] == 0.8
    scores[8] = 0.8 + 1.1 * tuning.WINNING_MARGIN
    row = chosen(scores)
    assert row["changed"] and (row["learning_rate"], row["value"]) == (2e-4, 0.3)
    assert (row["score"], row["stood"]) == (scores[8], 0.8)
    assert (row["stood_learning_rate"], row["stood_value"]) == (1e-4, 0.2)


def test_of_equal_points_the_current_one_wins_or_else_the_first():
    row = chosen(np.full(9, 0.5))
    assert not row["changed"] and (row["learning_rate"], row["value"]) == (1e-4, 0.2)
    scores = np.full(9, 0.5)
    scores[[3, 7]] = 0.9
    assert tuple(chosen(scores)[["learning_rate", "value"]]) == (1e-4, 0.1)


def test_the_best_point_wins_if_the_current_one_is_not_on_the_grid():
    row = chosen(np.arange(9) / 10, stood=(3e-4, 0.25))
    assert row["changed"] and (row["learning_rate"], row["value"]) == (2e-4, 0.3)
    assert np.isnan(row["stood"]) and row["stood_learning_rate"] == 3e-4


def test_seeds_are_averaged_before_points_are_compared():
    table = made_up(["ppo"], seeds=2)
    table["score"] = [s for k in range(9) for s in ((1.0, 0.0) if k == 0 else (0.6, 0.6) if k == 8 else (0.3, 0.3))]
    row = tuning.choose_winners(table, stands(["ppo"])).iloc[0]
    assert row["score"] == 0.6 and row["learning_rate"] == 2e-4


def test_every_method_gets_one_winner_from_what_is_shipped():
    won = tuning.choose_winners(made_up(best=dict.fromkeys(METHODS, 8)), stands())
    assert list(won["method"]) == list(tuning.SENSITIVE_SETTINGS)
    on_grid = {m: tuning.current_point(PARAMS, m) in tuning.grid_points(m) for m in METHODS}
    assert list(won["stood"].notna()) == [on_grid[m] for m in won["method"]]
    at_best = [tuning.current_point(PARAMS, m) == tuning.grid_points(m)[8] for m in won["method"]]
    assert list(won["changed"]) == [not there for there in at_best]


# ---- params.yaml ----


@pytest.fixture
def copies(tmp_path):
    for file in command.SETTINGS_FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    return tmp_path


def reload(root):
    return load_params(root / command.SETTINGS_FILES[0], overlaid=root / command.SETTINGS_FILES[1])


def changed_lines(root, file) -> list[tuple[str, str]]:
    before, after = ((folder / file).read_text().splitlines() for folder in (ROOT, root))
    assert len(before) == len(after)
    return [(a, b) for a, b in zip(before, after) if a != b]


def test_files_stay_untouched_if_nothing_won(copies):
    won = tuning.choose_winners(made_up().assign(score=0.5), stands()).query("stood == stood")
    before = {file: (copies / file).stat().st_mtime_ns for file in command.SETTINGS_FILES}
    assert command.write_winners(won, copies) == []
    for file in command.SETTINGS_FILES:
        assert (copies / file).read_bytes() == (ROOT / file).read_bytes()
        assert (copies / file).stat().st_mtime_ns == before[file]


@pytest.mark.parametrize("number", [0, 5, 8])
def test_winners_change_only_their_own_rows(copies, number):
    won = tuning.choose_winners(made_up(best=dict.fromkeys(METHODS, number)), stands())
    written = command.write_winners(won, copies)
    assert len(written) == won["changed"].sum()
    params = reload(copies)  # valid
    for method in METHODS:
        assert tuning.current_point(params, method) == tuning.grid_points(method)[number]
        was, now = PARAMS.methods[method], params.methods[method]
        assert now.critic == was.critic
        dotted = {"learning_rate", tuning.SENSITIVE_SETTINGS[method][0].removeprefix("training.")}
        assert {k: v for k, v in now.training.items() if k not in dotted} == {
            k: v for k, v in was.training.items() if k not in dotted
        }
        for key in now.training.keys() - was.training.keys():  # what did not change is not repeated
            assert now.training[key] != getattr(PARAMS.training, key)
    for section in ("seed", "budget", "noises", "training", "policy", "evaluation", "ablation", "runtime"):
        assert getattr(params, section) == getattr(PARAMS, section)
    for file in command.SETTINGS_FILES:
        for before, after in changed_lines(copies, file):
            assert re.split(r"[:{]", before)[0] == re.split(r"[:{]", after)[0], (before, after)
            assert before.partition("#")[2] == after.partition("#")[2]
            row = before.strip().partition(":")[0]
            assert row in {*METHODS, "tail_calibration", "conservative_q", "robust_q"}, before
        assert not (copies / f"{file}.new").exists()


def test_a_critics_setting_goes_into_the_file_that_holds_its_row(copies):
    best = {}  # the learning rate that stands, and another value of the critic's setting
    for method in ("dvpo", "cql"):
        rate, value = tuning.current_point(PARAMS, method).values()
        best[method] = next(
            k
            for k, p in enumerate(tuning.grid_points(method))
            if p["training.learning_rate"] == rate and list(p.values())[1] != value
        )
    won = tuning.choose_winners(made_up(best, best=best), stands(best))
    assert won["changed"].all()
    command.write_winners(won, copies)
    params = reload(copies)
    for method, number in best.items():
        assert tuning.current_point(params, method) == tuning.grid_points(method)[number]
    base = load_params(copies / command.SETTINGS_FILES[0])
    assert base.critics["quantile"].loss == params.critics["quantile"].loss and "cql" not in base.methods
    old = {f: (ROOT / f).read_text().splitlines() for f in command.SETTINGS_FILES}
    new = {f: (copies / f).read_text().splitlines() for f in command.SETTINGS_FILES}
    for file, what in zip(command.SETTINGS_FILES, ("tail_calibration", "conservatism")):
        removed = [d for d in difflib.ndiff(old[file], new[file]) if d.startswith("- ")]
        assert len(removed) == 1 and what in removed[0]


def test_winners_that_cannot_be_written_leave_the_files_alone(copies):
    top = copies / command.SETTINGS_FILES[1]
    top.write_text(top.read_text().replace("critics:\n", "critics:\n  quantile: {loss: {tail_calibration: 0.03}}\n", 1))
    before = {file: (copies / file).read_bytes() for file in command.SETTINGS_FILES}
    won = tuning.choose_winners(made_up(["dvpo"], best={"dvpo": 5}), stands(["dvpo"])).assign(value=0.1, changed=True)
    with pytest.raises(ConfigError, match="dvpo: .* another row overrides it"):
        command.write_winners(won, copies)
    won["value"] = -1.0  # no weight
    with pytest.raises(ConfigError):
        command.write_winners(won, copies)
    assert {file: (copies / file).read_bytes() for file in command.SETTINGS_FILES} == before
    assert not list(copies.rglob("*.new"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-5, "5e-5"),
        (1e-4, "1e-4"),
        (2.5e-4, "2.5e-4"),
        (1e-3, "1e-3"),
        (0.01, "0.01"),
        (0.95, "0.95"),
        (1.0, "1.0"),
        (0.0, "0.0"),
    ],
)
def test_numbers_are_spelled_as_in_params_yaml(value, text):
    assert setting_text(value) == text and float(text) == value


# ---- a small grid, trained ----


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Two methods, four points each, runs of two updates."""
    from dvpo_lib.models.policy import PolicySettings, build_policy
    from dvpo_lib.tasks.chains import ChainSettings
    from dvpo_lib.tasks.dialogue import DialogueSettings
    from dvpo_lib.tasks.families import TaskSettings, build_suites, build_tokenizer
    from dvpo_lib.tasks.suites import save_suites

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(tuning, "LEARNING_RATES", (1e-4, 2e-4))
    monkeypatch.setattr(
        tuning,
        "SENSITIVE_SETTINGS",
        {"grpo": ("training.beta", (0.0, 0.01)), "dvpo": ("critic.loss.tail_calibration", (0.01, 0.03))},
    )
    small = ChainSettings(demonstrations=1, train=20, test=4)
    cfg = TaskSettings(math=small, science=small, dialogue=DialogueSettings(demonstrations=1, train=20, test=4))
    save_suites(build_suites(cfg), "data/suites")
    tokenizer = build_tokenizer(cfg)
    build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), 0).save_pretrained("data/base")
    tokenizer.save_pretrained("data/base")
    changes = {
        "budget": 48,
        "training.generation_batch_size": 16,
        "critics.quantile.pretrain_rollouts": 16,
        "critics.quantile.quantiles": 16,
        "runtime.workers": 1,
    }
    tracked = ["families", "noises", "budget", "training", "critics", "methods", "evaluation"]
    return load_params(ROOT / "params.yaml", tracked, changes=changes)


def test_the_grid_is_trained_once_and_with_equal_budgets(toy, monkeypatch):
    table = tuning.train_grid(toy, ["grpo", "dvpo"], seeds=1)
    assert len(table) == 8 and set(table["seed"]) == {tuning.FIRST_DEVELOPMENT_SEED} and set(table["rollouts"]) == {48}
    assert list(table["method"]) == ["grpo"] * 4 + ["dvpo"] * 4 and table["score"].between(0, 1).all()
    points = list(itertools.product(tuning.LEARNING_RATES, tuning.SENSITIVE_SETTINGS["dvpo"][1]))
    assert list(zip(table["learning_rate"], table["value"]))[4:] == points
    text = tuning.describe_grid(toy, ["grpo", "dvpo"], seeds=1)
    assert "8 runs (2 methods, 4 points each, 1 development seed a point), pretrains 2 critics before" in text
    stored = sorted(Path("store").iterdir())
    assert len([p for p in stored if p.is_dir() and p.name != "unfinished"]) == 8 + 2

    def again(*_):
        raise AssertionError("trained twice")

    for spec in (CriticPretrainingSpec, TrainingSpec):
        monkeypatch.setattr(spec, "execute", again)
    pd.testing.assert_frame_equal(tuning.train_grid(toy, ["grpo", "dvpo"], seeds=1), table)
    with pytest.raises(RunsFailed, match="trained twice"):
        tuning.train_grid(toy, ["grpo"], seeds=2)


# ---- the appendix ----


def test_appendix_has_equal_bytes_for_equal_tables(project):
    shutil.copyfile(ROOT / command.TUNING_NOTEBOOK, project / command.TUNING_NOTEBOOK)
    out = project / command.TUNING_FOLDER
    out.mkdir(parents=True)
    table = made_up(best={"ppo": 8, "cql": 0})
    table.to_csv(out / "grid.csv", index=False)
    tuning.choose_winners(table, stands()).to_csv(out / "winners.csv", index=False)
    program = (
        "from dvpo_lib.chain.commands.tune import render_appendix\n"
        "assert render_appendix().read_bytes() == render_appendix().read_bytes()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (out / "notebook.html").read_text()
    assert page.count("<img") == 1 and "<table" in page and str(project) not in page
    assert {p.name for p in out.iterdir()} == {"grid.csv", "winners.csv", "notebook.html"}
    assert not (project / "work/run/tuning").exists()


def test_sentences_say_what_the_tables_say():
    table = made_up(["ppo", "grpo"], best={"ppo": 8})
    won = tuning.choose_winners(table, stands(["ppo", "grpo"]))
    text = tuning_report.tuning_findings(table, won, tuning.WINNING_MARGIN)
    changed = won.loc[won["changed"], "method"].tolist()
    assert f"{len(changed)} of 2 methods" in text and "one development seed a point" in text
    assert "From the worst point to the best it is 5.8 points (median; at most 10.8 points, PPO)" in text
    assert "standard deviation of 0.7 points" in tuning_report.tuning_findings(made_up(["ppo"], seeds=2), won, 0.01)
    nowhere = won.assign(stood=np.nan)
    assert "median over methods" not in tuning_report.tuning_findings(table, nowhere, tuning.WINNING_MARGIN)
    assert "not on the grid" in tuning_report.winner_table(nowhere).to_string()
    assert "Points a method: 9." in tuning_report.effort_findings(table) and "6,144" in tuning_report.effort_findings(
        table
    )
    assert "not equal" in tuning_report.effort_findings(table[:-1])


def test_every_cell_of_the_grid_is_drawn_on_one_scale():
    table = made_up(best={"ppo": 8})
    figure = figures.tuning_grid(table, tuning.choose_winners(table, stands()))
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert len(panels) == len(METHODS)
    assert all(len(ax.texts) == 9 for ax in panels)
    assert len({ax.collections[0].norm.vmax for ax in panels}) == 1
    assert all(ax.get_xlabel() for ax in panels)


def test_no_stage_of_the_chain_tunes():
    for spec in read_stages(ROOT).values():
        assert spec.notebook != command.TUNING_NOTEBOOK
        assert not any(Path(out).is_relative_to(command.TUNING_FOLDER) for out in spec.outs)
    assert "tun" not in (ROOT / "dvc.yaml").read_text()


def test_makefile_and_guide_announce_the_same_duration():
    for file in ("Makefile", "docs/guide/chain.md"):
        (line,) = [t for t in (ROOT / file).read_text().splitlines() if t.startswith(("tune:", "| `make tune`"))]
        assert f"about {tuning.TUNING_MINUTES} minutes" in line


@pytest.mark.parametrize(("arguments", "message"), [(["--seeds", "0"], "at least 1"), (["--methods", "pp"], "pp")])
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        sys.exit(main(["tune", *arguments]))
    assert message in capsys.readouterr().err


def test_a_missing_base_policy_names_the_command_to_run(project, capsys):
    for file in command.SETTINGS_FILES:
        (project / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / file, project / file)
    assert main(["tune"]) == 1
    assert "error: data/base is missing: run `make repro STAGE=data` first" in capsys.readouterr().err


def test_the_learning_rate_of_each_method_is_read_from_the_file():
    won = pd.read_csv(ROOT / "reports/tuning/winners.csv").set_index("method")["learning_rate"]
    text = tuning_report.tuned_rates(won.reset_index(), ["dvpo", "grpo"])
    told = [setting_text(won[method]) for method in ("dvpo", "grpo")]
    assert text == f"As tuned, DVPO learns at {told[0]} and GRPO learns at {told[1]}." and told[0] != told[1]
