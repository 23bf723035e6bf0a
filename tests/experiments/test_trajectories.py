"""An agent's conversations: reading, whose tokens are valued, folds without a leak, the study from end to end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from sklearn.metrics import roc_auc_score

from dvpo_lib.experiments.import_graph import reachable_files
from dvpo_lib.experiments.real import download, files, pretraining
from dvpo_lib.experiments.real.score_tables import estimate_metric
from dvpo_lib.experiments.real.settings import RealSettings, TrajectorySettings
from dvpo_lib.experiments.real.trajectories import data, report, specs, study
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.reporting import figures

HERE = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    data.find_trajectories(HERE) is None,
    reason="the real data is not here: set DVPO_REAL_DATA to a folder that holds taubench/",
)
LIST, LINES = files.TRAJECTORY_FILES
CRITICS = {"scalar": CriticSettings(kind="scalar"), "quantile": CriticSettings(heads=2, quantiles=8)}


def conversations(tasks: int = 10, trials: int = 4) -> list[dict]:
    """Made-up conversations in the published format; every task has a word of its own."""
    rng, records = np.random.default_rng(0), []
    for task in range(tasks):
        for trial in range(trials):
            good = bool(rng.random() < (task % 5) / 4)
            records.append(
                {
                    "task_id": task,
                    "trial": trial,
                    "reward": float(good),
                    "traj": [
                        {"role": "user", "content": f"Please book the trip zq{task}x"},
                        {"role": "assistant", "content": f"Which day, zq{task}x?"},
                        {"role": "user", "content": f"On day {trial}"},
                        {
                            "role": "assistant",
                            "content": None,
                            "tool_calls": [{"name": "seats", "arguments": f"zq{task}x"}],
                        },
                        {"role": "tool", "content": '{"seats": 3}'},
                        {"role": "assistant", "content": "It is booked." if good else "That is not possible."},
                        {"role": "user", "content": "Bye ###STOP###"},
                    ],
                }
            )
    return records


def write(folder: Path, records: list[dict], name: str = LINES) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(records, indent=1) if name == LIST else "".join(json.dumps(r) + "\n" for r in records)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# ---- reading ----


def test_messages_become_turns_that_alternate():
    traj = [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"name": "find", "arguments": "b" * 400}, {"function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "content": ""},
        {"role": "tool", "content": "t" * 700},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "a" * 700},
        {"role": "user", "content": "Bye"},
    ]
    prompt, turns = data.conversation_turns(traj)
    assert prompt == "Hello\n"
    assert turns == [
        f"call find {'b' * 300}\ncall look {{}}",
        f"tool: \ntool: {'t' * 100}\nuser: And?",
        f"One.\n{'a' * 600}",
    ]


def test_both_file_formats_give_equal_tables_and_the_published_one_is_preferred(tmp_path):
    records = conversations(3)
    lines = write(tmp_path, list(reversed(records)))
    assert data.find_trajectories(tmp_path) == lines and data.find_trajectories(None) is None
    published = write(
        tmp_path, [r | {"traj": [{"role": "system", "content": "rules"}, *r["traj"]]} for r in records], LIST
    )
    assert data.find_trajectories(tmp_path) == published
    table = data.read_trajectories(lines)
    pd.testing.assert_frame_equal(table, data.read_trajectories(published))
    assert table[["task", "trial"]].values.tolist() == [[t, k] for t in range(3) for k in range(4)]


def spoilt(**changes) -> dict:
    return conversations(1)[1] | changes


USER, AGENT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "a record is expected, not '[1]'"),
        ({"task_id": 1}, "the field `trial` is missing"),
        (spoilt(task_id="1"), "`task_id` should be a whole number, not '1'"),
        (spoilt(trial=True), "`trial` should be a whole number, not True"),
        (spoilt(reward=0.5), "`reward` should be 0 or 1, not 0.5"),
        (spoilt(reward=None), "`reward` should be 0 or 1, not None"),
        (spoilt(trial=0), "`task_id` and `trial`: trial 0 of task 0 occurs twice"),
        (spoilt(traj="x"), "`traj` should be a list of messages, not 'x'"),
        (spoilt(traj=[]), "`traj` should be a list of messages, not '[]'"),
        (spoilt(traj=[USER, "x"]), "traj, message 2: a record is expected, not 'x'"),
        (spoilt(traj=[USER, {"role": "critic", "content": ""}]), "traj, message 2: `role` should be user, assistant"),
        (spoilt(traj=[USER, {"role": [], "content": ""}]), "traj, message 2: `role` should be user, assistant or tool"),
        (spoilt(traj=[USER, {"role": "system", "content": ""}]), "traj, message 2: `role` should be user"),
        (spoilt(traj=[USER, AGENT | {"content": 3}]), "traj, message 2: `content` should be a text or null, not 3"),
        (spoilt(traj=[USER, AGENT | {"tool_calls": [{"name": "find"}]}]), "traj, message 2: `tool_calls` should be"),
        (
            spoilt(traj=[USER, AGENT | {"tool_calls": 3}]),
            "traj, message 2: `tool_calls` should be records with `name` and",
        ),
        (spoilt(traj=[AGENT, USER]), "`traj` should begin with a user's message that is not empty"),
        (spoilt(traj=[USER | {"content": None}, AGENT]), "`traj` should begin with a user's message that is not empty"),
        (spoilt(traj=[USER, USER]), "`traj` holds no message of the assistant"),
    ],
)
def test_a_malformed_conversation_is_named_by_file_line_and_field(tmp_path, record, message):
    records = [conversations(1)[0], record]
    for name, place in ((LINES, f"{LINES}:2: "), (LIST, f"{LIST}: record 2: ")):
        with pytest.raises(ValueError) as caught:
            data.read_trajectories(write(tmp_path, records, name))
        assert str(caught.value).startswith(place + message) and "\n" not in str(caught.value)


def test_unreadable_files_are_named(tmp_path):
    cases = {
        b"": ": not valid JSON",
        b"[1,": ": not valid JSON",
        b"{}": ": a list of records is expected",
        b"[]": ": a list of records is expected",
        b"\xff": ": not valid UTF-8",
    }
    path = write(tmp_path, [], LIST)
    for content, message in cases.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=LIST + message):
            data.read_trajectories(path)
    with pytest.raises(ValueError, match="no such file; `make real-data`"):
        data.read_trajectories(tmp_path / "absent.json")


# ---- whose tokens ----


@pytest.fixture(scope="module")
def tokenizer():
    return pretraining.byte_level_tokenizer([m["content"] or "" for r in conversations(3) for m in r["traj"]], 300)


def valued(traj: list[dict], tokenizer, limit: int | None = None) -> str:
    """The tokens that a critic values, as text."""
    prompt, turns = data.conversation_turns(traj)
    table, _ = data.tokenize_turns(pd.DataFrame({"prompt": [prompt], "turns": [turns]}), tokenizer, limit)
    tokens = encode_completions(tokenizer, table["prompt"].tolist(), table["completion_ids"].tolist())
    return tokenizer.decode(tokens.input_ids[:, -tokens.completion_length :][tokens.mask])


def test_only_the_agents_tokens_are_valued(tokenizer):
    traj = conversations(1)[0]["traj"]
    own = f"{traj[1]['content']}<eos>call seats zq0x<eos>{traj[5]['content']}<eos>"
    assert valued(traj, tokenizer) == own
    for text in ("", None, "no", "a much longer text\nuser: of two lines", "<eos>", "x<eos><eos>y"):
        others = [m if m["role"] == "assistant" else m | {"content": text} for m in traj]
        assert valued([traj[0], *others[1:]], tokenizer) == own, text
    spelt = [m | {"content": "say <eos> twice"} if m is traj[1] else m for m in traj]
    assert valued(spelt, tokenizer) == own.replace(traj[1]["content"], "say <eos> twice")


def test_truncated_conversations_keep_their_end_and_the_side_of_each_token(tokenizer):
    traj = conversations(1)[0]["traj"]
    whole = valued(traj, tokenizer)
    turns = data.conversation_turns(traj)[1]
    length = sum(len(tokenizer(t).input_ids) + 1 for t in turns)
    seen = set()
    for limit in range(1, length + 1):
        kept = valued(traj, tokenizer, limit)
        assert whole.endswith(kept) and len(kept) > 0
        ids = data.tokenize_turns(pd.DataFrame({"turns": [turns]}), tokenizer, limit)[0]["completion_ids"][0]
        assert len(ids) <= limit
        seen.add(kept)
    assert whole in seen and "<eos>" in seen and len(seen) > 10


# ---- folds ----


def test_every_task_is_held_out_once_with_all_its_trials():
    table = pd.DataFrame({"task": np.repeat(np.arange(52), 4)})
    parts = [data.split_by_task(table, 5, fold, 3) for fold in range(5)]
    assert sorted(t for _, held in parts for t in held["task"]) == table["task"].tolist()
    for training, held in parts:
        assert not set(training["task"]) & set(held["task"]) and len(training) + len(held) == len(table)
        assert held["task"].nunique() in (10, 11) and (held["task"].value_counts() == 4).all()
    assert (data.assign_folds(table["task"], 5, 3) != data.assign_folds(table["task"], 5, 4)).any()
    shuffled = table.sample(frac=1, random_state=0)
    found = pd.Series(data.assign_folds(shuffled["task"], 5, 3), shuffled.index).sort_index()
    assert found.tolist() == data.assign_folds(table["task"], 5, 3).tolist(), "the file's order does not matter"
    with pytest.raises(ValueError, match="real.trajectories.folds = 5, but there are 4 tasks"):
        data.assign_folds(range(4), 5, 0)


SMALL = TrajectorySettings(folds=2, seeds=2, hidden_size=16, num_hidden_layers=1, max_tokens=60)
OTHERS = dict(vocabulary=300, language_model_passes=1, batch_size=4, trajectories=SMALL)


def test_no_held_out_text_or_outcome_reaches_training(tmp_path):
    """Held-out tasks may say and get what they want: backbone, tokenizer and critic are the same byte by byte."""
    records = conversations(6)
    settings = RealSettings(dir=str(tmp_path), **OTHERS)
    learned = {}
    fold = dict(zip(range(6), data.assign_folds(range(6), 2, 0), strict=True))
    for k in range(2):
        for name in ("as logged", "changed"):
            own = [
                r
                if name == "as logged" or fold[r["task_id"]] != k
                else r
                | {
                    "reward": 1 - r["reward"],
                    "traj": [m | {"content": f"{m['content']} ünheard {r['task_id']}"} for m in r["traj"]],
                }
                for r in records
            ]
            path = write(tmp_path / f"{name} {k}", own)
            base = path.parent / "backbone"
            base.mkdir()
            specs.trajectory_backbone_specs(settings, 0, path)[k].execute(base, base)
            critics = specs.trajectory_critic_specs(settings, CRITICS, 0, path, [base / "base"] * 2)
            (path.parent / "critic").mkdir()
            critics["quantile", 0, k].execute(path.parent / "critic", tmp_path)
            paths = sorted(p for part in ("backbone/base", "critic") for p in (path.parent / part).rglob("*"))
            learned[k, name] = {
                p.relative_to(path.parent): p.read_bytes()
                for p in paths
                if p.is_file() and p.name != "held_out.safetensors"
            }
        assert learned[k, "as logged"] == learned[k, "changed"] and len(learned[k, "changed"]) > 4
        vocabulary = json.loads((tmp_path / f"as logged {k}" / "taubench/backbone/base/tokenizer.json").read_text())
        assert vocabulary["model"]["merges"], "a tokenizer was learned"
    assert learned[0, "changed"] != learned[1, "changed"], "other training tasks, another critic"


# ---- the study ----


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write(folder / "real", conversations())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVPO_STORE", str(folder / "store"))
        settings = RealSettings(dir=str(folder / "real"), **OTHERS)
        return study.run_trajectory_study(settings, CRITICS, 0, workers=1, progress=None, resamples=100)


def test_scores_are_means_over_folds_and_seeds(done):
    table = done.scores.set_index(["critic", "at", "metric"])
    outcome, fold = done.table["correct"], done.table["fold"]
    read = done.quantiles["quantile"]
    assert read.shape == (2, 40, 3, 8)
    within = [roc_auc_score(outcome[fold == f], q[fold == f, 2].mean(1)) for q in read for f in range(2)]
    assert table.loc[("quantile", "last", "auc_within"), "value"] == pytest.approx(np.mean(within))
    brier = np.mean([(q[:, 0].mean(1) - outcome) ** 2 for q in read])
    assert table.loc[("quantile", "first", "brier"), "value"] == pytest.approx(brier, rel=1e-5)
    assert ("scalar", "last", "cover80") not in table.index and set(table["n"]) == {10}
    gaps = done.differences.set_index(["contrast", "at", "metric"])["value"]
    expected = table.loc[("scalar", "last", "brier"), "value"] - table.loc[("constant", "any", "brier"), "value"]
    assert gaps["scalar - constant", "last", "brier"] == pytest.approx(expected)


def test_a_constant_is_at_chance_inside_folds_and_seems_worse_over_all(done):
    row = done.scores.set_index(["critic", "at", "metric"]).loc[("constant", "any", "auc_within")]
    assert row["value"] == row["low"] == row["high"] == 0.5
    uneven = done.table.assign(fold=done.table["task"] % 5 // 3)  # good tasks in one fold, bad ones in the other
    means = [q.mean() for q in study.constant_predictions(uneven)]
    assert roc_auc_score(uneven["correct"], means) < 0.4
    frame = pd.DataFrame({"mean": means})
    assert estimate_metric(study.TRAJECTORY_DESIGN, "auc_within", [frame], uneven, 100).point == 0.5


def test_sibling_success_leaves_out_the_trial_itself():
    table = pd.DataFrame({"task": [0, 0, 0, 1, 1, 1], "correct": [1.0, 0, 0, 1, 1, 1]})
    assert study.sibling_success(table)["mean"].tolist() == [0, 0.5, 0.5, 1, 1, 1]


def test_report_of_a_study(done, tmp_path):
    text = report.trajectory_findings(done)
    assert "nan" not in text and "10 tasks" in text and "(2 seeds)" in text and text.count("\n- ") == 3
    assert "40 conversations on 10 tasks" in report.trajectory_data_findings(done)
    cells = report.trajectory_score_table(done)
    assert cells["token"].tolist() == ["first", "middle", "last"] * 2 + ["any"]
    tree = report.trajectory_metrics(done)["real_trajectories"]
    assert set(tree) == {"scalar", "quantile", "constant"} and tree["constant"]["any"]["auc_within"] == 0.5
    assert report.trajectory_metrics(None) == {}
    tasks = report.task_quantiles(done)
    own = tasks[tasks["at"] == "last"].set_index("task")
    assert own["success"].to_dict() == done.table.groupby("task")["correct"].mean().to_dict()
    assert (tasks[["q05", "q25", "q75", "q95"]].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    figure = figures.task_intervals(tasks)
    drawn = np.concatenate([line.get_ydata() for line in figure.axes[0].get_lines()[1:]])
    assert sorted(drawn) == sorted(own["success"])
    figures.save_figure(figure, tmp_path / "a.png")
    shown = [*done.file.astype(str).to_numpy().flatten(), text, report.trajectory_data_findings(done)]
    assert not any("real/" in t for t in shown), "results never name a path"


def test_verdicts_follow_the_intervals():
    words = ("above", "below", "inside")
    assert [report.interval_verdict(*span, 0.5, words) for span in ((0.6, 0.7), (0.3, 0.4), (0.4, 0.6))] == [*words]


def test_no_study_without_its_file(tmp_path):
    assert study.run_trajectory_study(RealSettings(), CRITICS, 0) is None
    assert study.run_trajectory_study(RealSettings(dir=str(tmp_path)), CRITICS, 0) is None
    assert "make real-data" in report.NO_TRAJECTORIES


def test_run_keys_ignore_figures_and_scores():
    used = reachable_files(["dvpo_lib.experiments.real.trajectories.specs"], ROOT)
    assert "dvpo_lib/experiments/real/pretraining.py" in used
    assert not [f for f in used if "/reporting/" in f or "/chain/" in f or "study" in f]


@needs_data
def test_the_published_conversations_are_what_the_code_expects(capsys):
    path = data.find_trajectories(HERE)
    if path.name in {Path(name).name for name in download.TAUBENCH_SHA256}:
        assert files.sha256_of(path) == download.TAUBENCH_SHA256[LIST]
    table = data.read_trajectories(path)
    assert len(table) == 200 and table.groupby("task").size().tolist() == [4] * 50
    assert table["correct"].mean() == pytest.approx(0.42)
    assert all(len(turns) % 2 == 1 for turns in table["turns"]), "the agent has the first and the last word"
    if all((HERE / name).is_file() for name in files.GSM8K_FILES):
        download.describe_files(HERE)
        assert "200 conversations on 50 tasks, 42.0 % successful" in capsys.readouterr().out
