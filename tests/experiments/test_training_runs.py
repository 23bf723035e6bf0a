"""Runs of every family at the smallest scale, from the base policy to the final test; what is shown of dialogues."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from dvpo_lib.experiments.responses import first_training_batch, response_words
from dvpo_lib.experiments.run_store import collect_run_tables, execute_specs
from dvpo_lib.experiments.specs.base_policy import BasePolicySpec
from dvpo_lib.experiments.specs.critic_pretraining import CriticPretrainingSpec, pretraining_rollouts
from dvpo_lib.experiments.specs.training import TrainingSpec, build_trainer, final_test
from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import encode_table, fit_critic, predict_values
from dvpo_lib.models.policy import PolicySettings, fit_language_model, load_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.noise.proxies import corrupt_table
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting import answer_tables as talks
from dvpo_lib.reporting import statistics
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.training_settings import TrainingSettings
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.chains import ChainSettings
from dvpo_lib.tasks.dialogue import DialogueSettings, dialogue_token_limit
from dvpo_lib.tasks.dialogue_rules import split_turns
from dvpo_lib.tasks.evaluation import EvaluationSettings, evaluate_policy, sample_table
from dvpo_lib.tasks.suites import load_suites, save_suites

SIZES = dict(demonstrations=300, train=40, test=20)
CFG = tasks.TaskSettings(
    math=ChainSettings(**SIZES), science=ChainSettings(**SIZES), dialogue=DialogueSettings(**SIZES)
)
CRITIC = CriticSettings(heads=2, quantiles=16, pretrain_rollouts=24, pretrain_epochs=1, batch_size=8)
SPIKES = NoiseSettings("spikes", rate=0.5, scale=5.0)
SETTINGS = TrainingSettings(generation_batch_size=16)
TEST = EvaluationSettings(prompts=6, k=2)
QUICK = EvaluationSettings(prompts=2, k=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of the base policy, folder of the suites): a policy that has seen demonstrations of all families."""
    folder = tmp_path_factory.mktemp("world")
    policy = PolicySettings(hidden_size=32, num_hidden_layers=1, steps=250, batch_size=16, learning_rate=1e-2)
    BasePolicySpec(CFG, policy, 0).execute(folder, folder)
    save_suites(tasks.build_suites(CFG), folder / "suites")
    return str(folder / "base"), str(folder / "suites")


@pytest.fixture(scope="module")
def dialogues(world):
    policy, tokenizer = load_policy(world[0])
    data = load_suites(world[1])["dialogue"]["test"]
    return policy, tokenizer, data, sample_table(policy, tokenizer, data, tasks.FAMILIES["dialogue"], 3, 0)


@pytest.mark.parametrize("family", tasks.GENERATED)
def test_every_family_runs_from_critic_to_final_test(world, family, tmp_path):
    base, suites = world
    folder = tmp_path / "critic"
    folder.mkdir()
    CriticPretrainingSpec(CRITIC, SPIKES, family, 0, 1.0, base, suites).execute(folder, tmp_path)
    file = str(folder / "critic.safetensors")
    spec = TrainingSpec("dvpo", "spikes", "dvpo", SETTINGS, 2, CRITIC, SPIKES, family, 0, TEST, file, base, suites)
    spec.execute(tmp_path, tmp_path)
    curves, final = pd.read_csv(tmp_path / "curves.csv"), pd.read_csv(tmp_path / "final.csv")
    assert curves["rollouts"].tolist() == [24 + 16, 24 + 32] and curves["reward_true"].between(0, 1).all()
    assert final["value"].between(0, 1).all() and len(set(final["suite"])) == 2 * len(tasks.GENERATED)
    roles = final.drop_duplicates("suite").set_index("suite")["role"]
    assert roles[f"{family}_id"] == "ID" and roles[f"{family}_ood"] == "OOD"
    assert set(roles[~roles.index.str.startswith(family)]) == {"transfer"}
    batch = first_training_batch(spec)
    assert all(len(r.tokens) == len(r.advantages) for r in batch.itertuples())
    assert not any("<user>" in tokens and not tokens.index("<user>") for tokens in batch["tokens"])


@pytest.mark.parametrize("rate, step", [(10.0, None), (1e38, 1)])
def test_a_run_that_diverges_is_stored_as_diverged_once_and_the_others_go_on(
    world, rate, step, tmp_path, monkeypatch, caplog
):
    """Whatever a learning rate of 10 does, the run ends with finite scores or is called diverged."""
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    settings = dataclasses.replace(SETTINGS, learning_rate=rate)
    specs = [
        TrainingSpec(
            f"rate {own.learning_rate}", "none", "grpo", own, 2, None, NoiseSettings(), "math", 4, QUICK, None, *world
        )
        for own in (settings, SETTINGS)
    ]
    folders = execute_specs(specs, 1, None)
    curves, final = (collect_run_tables(folders, table, specs) for table in ("curves", "final"))
    assert final.loc[final["method"] == f"rate {SETTINGS.learning_rate}", "value"].between(0, 1).all()
    own = final[final["method"] == f"rate {rate}"]
    diverged = (folders[0] / "diverged.json").exists()
    assert diverged == own["value"].isna().all() == (not (folders[0] / "policy.safetensors").exists())
    if step is not None:
        found = json.loads((folders[0] / "diverged.json").read_text())
        assert (found["method"], found["seed"], found["step"]) == ("grpo", 4, step)
        assert "grpo, seed 4, step 1: " in found["error"] and "diverged" in caplog.text
        assert set(own["diverged"]) == {step} and statistics.diverged_runs(final)["seed"].tolist() == [4]
        assert statistics.missing_scores(final).empty
        summary = statistics.summarise_scores(final).set_index("method")
        assert summary.loc[f"rate {rate}", "iqm"].isna().all() and summary.loc[f"rate {rate}", "n"].eq(0).all()
        assert curves.loc[curves["method"] == f"rate {rate}", "rollouts"].tolist() == [
            16
        ]  # of the iteration that it broke off
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    assert execute_specs(specs, 1, None) == folders  # not again
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_damaged_checkpoint_is_deleted_and_the_run_starts_anew(world, tmp_path, caplog):
    spec = TrainingSpec("grpo", "none", "grpo", SETTINGS, 1, None, NoiseSettings(), "math", 0, QUICK, None, *world)
    left = tmp_path / "scratch/checkpoints/checkpoint-80"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text('{"files": {"model.safetensors": "0"}}')  # all that reached the disk
    (tmp_path / "scratch/checkpoints/.checkpoint-84.new").mkdir()
    for folder in ("clean", "result"):
        (tmp_path / folder).mkdir()
        spec.execute(tmp_path / folder, tmp_path / ("scratch" if folder == "result" else "other"))
    assert "checkpoint-80" in caplog.text and not left.exists()
    for file in ("curves.csv", "final.csv", "policy.safetensors"):
        assert (tmp_path / "result" / file).read_bytes() == (tmp_path / "clean" / file).read_bytes()


def test_numbers_gone_wrong_in_supervised_training_and_critics_are_errors_with_their_step(world):
    policy, tokenizer = load_policy(world[0])
    data = [{"prompt": r["prompt"], "completion": "answer 1"} for r in load_suites(world[1])["math"]["test"]]
    tokens = encode_completions(tokenizer, [r["prompt"] for r in data], [r["completion"] for r in data])
    critic = build_critic(policy, CRITIC, 0)
    with torch.no_grad():
        critic.backbone.embed_tokens.weight[:] = float("nan")
        policy.lm_head.weight[:] = float("inf")
    with pytest.raises(FloatingPointError, match="supervised training, seed 3, step 0: loss nan"):
        fit_language_model(policy, tokens, PolicySettings(steps=2, batch_size=8), 3)
    with pytest.raises(FloatingPointError, match="quantile critic, seed 5, step 0: .* not finite; lower learning_rate"):
        fit_critic(critic, [{**r, "reward": 1.0} for r in data], tokenizer, CRITIC, 5)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_on_dialogues_as_the_chain_does(world, method):
    kind = METHODS[method].critic
    critic = dataclasses.replace(CRITIC, kind=kind) if kind else None
    noise = NoiseSettings()
    spec = TrainingSpec(method, "none", method, SETTINGS, 1, critic, noise, "dialogue", 0, TEST, None, *world)
    trainer = build_trainer(spec)
    assert trainer.args.max_completion_length == dialogue_token_limit(2)
    logs = trainer.step()
    if not METHODS[method].offline:  # they log the truth of what the policy in training says
        assert logs["reward"] == pytest.approx(logs["reward_true"])
    turns = [len(split_turns(c)) for c in trainer.sample()[0].completions]
    assert max(turns) >= 3


def test_tables_keep_tokens_as_they_were_sampled(dialogues, world):
    """Critics read what was sampled: whoever wrote it, and without an end where the length cut it off."""
    policy, tokenizer, data, table = dialogues
    eos = tokenizer.eos_token_id
    for row in table.itertuples():
        assert tokenizer.decode(row.completion_ids) == row.completion
    assert encode_table(table.to_dict("records"), tokenizer).tokens.mask.sum(1).tolist() == table["length"].tolist()
    shortened = tasks.FAMILIES["math"]._replace(max_completion_tokens=lambda steps: 3)
    chains = load_suites(world[1])["math"]["test"]
    cut = sample_table(policy, tokenizer, chains, shortened, 1, 0).to_dict("records")
    ids = encode_table(cut, tokenizer).tokens.input_ids[:, -3:]
    assert ids.tolist() == [r["completion_ids"] for r in cut] and (ids[:, -1] != eos).any()
    texts = [{k: v for k, v in r.items() if k != "completion_ids"} for r in cut]
    assert (encode_table(texts, tokenizer).tokens.input_ids[:, -1] == eos).any()  # a text alone cannot tell


def test_critics_value_the_policys_own_tokens(dialogues):
    policy, tokenizer, _, table = dialogues
    rows, critic = table.to_dict("records"), build_critic(policy, CRITIC, 0)
    assert np.isfinite([h["loss"] for h in fit_critic(critic, rows, tokenizer, CRITIC, 0)]).all()
    values = predict_values(critic, rows, tokenizer)
    for value, row in zip(values, rows, strict=True):
        own = response_words(row, tokenizer)
        assert len(value) == row["length"] == len(own)
        turns = [words for words in row["completion"].split(" <eos>")[::2]]
        assert [w for w in own if w != "<eos>"] == " ".join(turns).split()


def test_metrics_of_dialogues_add_up(dialogues):
    policy, tokenizer, data, table = dialogues
    found, _ = evaluate_policy(policy, tokenizer, data, tasks.FAMILIES["dialogue"], 3, 0)
    assert found["sampled"] == pytest.approx(table["reward"].mean())
    assert found["sampled"] == pytest.approx((found["tcr"] + found["acr"] + found["gcr"]) / 3)
    assert found["pass_at_k"] == pytest.approx(table.groupby("prompt")["reward"].max().mean())
    assert found["pass_at_k"] > found["sampled"] > 0
    shares = table["domain"].value_counts(normalize=True)
    assert sum(shares[d] * found[d] for d in shares.index) == pytest.approx(found["sampled"])
    scores = talks.scores_by_group(table)
    overall = scores[scores["dialogues"] == "overall"]
    assert len(overall) == 1 and overall["mean"].iloc[0] == pytest.approx(found["sampled"])
    assert set(scores.loc[scores["by"] == "domain", "dialogues"]) == set(shares.index)


def test_pass_at_k_of_right_and_wrong_is_the_usual_one(world):
    policy, tokenizer = load_policy(world[0])
    data, family = load_suites(world[1])["math"]["test"], tasks.FAMILIES["math"]
    table = sample_table(policy, tokenizer, data, family, 3, 0)
    solved = [bool((own["reward"] == 1).any()) for _, own in table.groupby("prompt")]
    assert evaluate_policy(policy, tokenizer, data, family, 3, 0)[0]["pass_at_k"] == pytest.approx(np.mean(solved))


def test_pretraining_keeps_truth_and_noise_of_dialogues_apart(world):
    policy, tokenizer = load_policy(world[0])
    table = pretraining_rollouts(CriticPretrainingSpec(CRITIC, SPIKES, "dialogue", 0, 1.0, *world), policy, tokenizer)
    assert table["reward_true"].between(0, 1).all() and len(table) == 24
    assert 0.2 < (table["reward"] != table["reward_true"]).mean() < 0.8


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("flip", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("false_positive", [1.0, 1.0, 0.5, 0.75, 1.0]),
        ("false_negative", [0.0, 0.25, 0.0, 0.0, 0.0]),
        ("none", [0.0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_label_noise_of_rewards_between_0_and_1(kind, expected):
    table = pd.DataFrame({"prompt": "p", "completion": "c", "reward": [0.0, 0.25, 0.5, 0.75, 1.0]})
    assert corrupt_table(table, NoiseSettings(kind, rate=1.0), 0).tolist() == expected


def test_final_test_needs_no_more_than_suites(world):
    policy, tokenizer = load_policy(world[0])
    by_family = {f: final_test(policy, tokenizer, load_suites(world[1]), f, TEST, 0) for f in ("science", "math")}
    kept, again = ({(r.suite, r.metric): r.value for r in rows.itertuples()} for rows, _ in by_family.values())
    assert kept == again
    answers = by_family["math"][1]
    greedy = answers.groupby("suite")["reward"].mean()
    assert all(greedy[suite] == pytest.approx(kept[suite, "greedy"]) for suite in greedy.index)
    torch.manual_seed(5)
    assert ("dialogue_ood", "tcr") in kept and ("math_id", "tcr") not in kept


def test_a_dialogue_is_shown_turn_by_turn():
    record = dict(prompt="life haircut day mon ?", answer="day tue hour noon", user=["day tue price 7"], domain="life")
    text = (
        "careful ask hour <eos> <user> hour noon rather day tue price ? <eos> "
        "say price 6 ask who <eos> <user> who any <eos> book day tue hour noon <eos>"
    )
    shown = talks.turn_by_turn(record, text)
    assert shown["who"].tolist() == ["policy", "user", "policy", "user", "policy"]
    assert shown["counts"].tolist() == ["right acts: 1", "", "needless acts: 1", "", "booked"]
    assert shown["says"][1] == "<user> hour noon rather day tue price ?"
    samples = pd.DataFrame([{**record, "completion": text, "reward": 0.8}, {**record, "completion": "", "reward": 0.0}])
    assert talks.verdict_text(talks.telling_dialogue(samples)) == "TCR 1.00, ACR 0.33, GCR 1.00: reward 0.78"
    assert talks.turn_by_turn(record, "ask ask <eos>")["counts"].tolist() == ["not understood"]
