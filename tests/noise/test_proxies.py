"""Proxies of the true reward: pseudo-labels by majority vote, and a reward model of a chosen accuracy."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from dvpo_lib.chain.params import load_params
from dvpo_lib.experiments import noise_effects as supervision
from dvpo_lib.experiments.run_store import spec_key
from dvpo_lib.experiments.specs import reward_model as reward_model_runs
from dvpo_lib.experiments.specs.critic_pretraining import (
    CriticPretrainingSpec,
    critic_pretraining_spec,
    pretraining_rollouts,
)
from dvpo_lib.experiments.specs.pseudo_labels import PseudoLabelSpec
from dvpo_lib.experiments.specs.reward_model import RewardModelSpec
from dvpo_lib.experiments.specs.training import TrainingSpec, training_reward, training_spec
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.noise.proxies import load_proxies, proxies_folder
from dvpo_lib.noise.pseudo_labels import (
    LABELS_FILE,
    VoteSettings,
    label_reward,
    load_labels,
    majority_answer,
    majority_labels,
    save_labels,
)
from dvpo_lib.noise.reward_model import (
    WEIGHTS_FILE,
    RewardModel,
    RewardModelSettings,
    calibration_table,
    load_reward_model,
    model_reward,
    predict_probabilities,
    search_accuracy,
)
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting.findings import before_training as world_findings
from dvpo_lib.rl.training_settings import TrainingSettings
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.chains import ChainSettings, accuracy_reward, final_answer
from dvpo_lib.tasks.dialogue import DialogueSettings
from dvpo_lib.tasks.evaluation import EvaluationSettings
from dvpo_lib.tasks.suites import load_suites, save_suites

SIZES = dict(demonstrations=200, train=20, test=5)
CFG = tasks.TaskSettings(
    math=ChainSettings(**SIZES), science=ChainSettings(**SIZES), dialogue=DialogueSettings(**SIZES)
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with suites and an untrained policy, whose answers are all wrong or none."""
    root = tmp_path_factory.mktemp("world")
    tokenizer = tasks.build_tokenizer(CFG)
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), 0)
    policy.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    save_suites(tasks.build_suites(CFG), root / "suites")
    return SimpleNamespace(
        root=root, policy=policy, tokenizer=tokenizer, paths=dict(base=str(root / "base"), suites=str(root / "suites"))
    )


# ---- majority vote ----


def test_majority_by_hand():
    rng = np.random.default_rng(0)
    assert majority_answer(["3", "5", "3", None], rng) == ("3", 0.5)
    assert majority_answer([None, None], rng) == (None, 0.0)
    drawn = [majority_answer(["1", "2", "2", "1", "7"], rng) for _ in range(400)]
    assert {d[1] for d in drawn} == {0.4} and {d[0] for d in drawn} == {"1", "2"}
    assert 150 < sum(d[0] == "1" for d in drawn) < 250


def test_vote_counts_prompt_by_prompt_and_ties_depend_on_seed_and_prompt_alone():
    samples = pd.DataFrame(
        {
            "prompt": list("aabbaacc"),
            "completion": ["answer 1", "answer 2", "answer 5", "answer 5", "answer 1", "nothing", "so", ""],
        }
    )
    labels = majority_labels(samples, final_answer, 0)
    assert labels.to_dict("records") == [
        {"prompt": "a", "label": "1", "agreement": 0.5},
        {"prompt": "b", "label": "5", "agreement": 1.0},
        {"prompt": "c", "label": None, "agreement": 0.0},
    ]
    tied = pd.DataFrame([{"prompt": f"p{i}", "completion": f"answer {a}"} for i in range(50) for a in (1, 2)])
    whole, part = majority_labels(tied, final_answer, 3), majority_labels(tied[::-1].head(20), final_answer, 3)
    both = whole.merge(part, on="prompt")
    assert (both["label_x"] == both["label_y"]).all() and set(whole["label"]) == {"1", "2"}
    assert whole["label"].tolist() != majority_labels(tied, final_answer, 4)["label"].tolist()


def test_labels_are_kept_as_text_and_malformed_ones_named(tmp_path):
    labels = pd.DataFrame(
        {"prompt": ["a", "b", "c"], "label": pd.Series(["07", None, "nan"], dtype=object), "agreement": [1.0, 0.0, 0.5]}
    )
    save_labels(labels, tmp_path / LABELS_FILE)
    assert load_labels(tmp_path / LABELS_FILE).to_dict("records") == labels.to_dict("records")
    with open(tmp_path / LABELS_FILE, "a") as file:
        file.write(json.dumps({"prompt": "d", "agreement": 1.0}) + "\n")
    with pytest.raises(ValueError, match="labels.jsonl:4: the field `label` is missing"):
        load_labels(tmp_path / LABELS_FILE)


def test_reward_by_label():
    labels = pd.DataFrame({"prompt": ["a", "b"], "label": ["1", None], "agreement": [1.0, 0.0]})
    reward = label_reward(labels, accuracy_reward)
    assert reward(["a", "a", "b"], ["answer 1", "answer 2", "answer 2"], answer=["2", "2", "2"]) == [1.0, 0.0, None]
    with pytest.raises(ValueError, match="record 1: no pseudo-label for the prompt 'z'"):
        reward(["a", "z"], ["", ""], answer=["1", "1"])


def test_votes_beside_the_truth():
    labels = pd.DataFrame({"prompt": ["a", "b", "c"], "label": ["1", "2", None], "agreement": [1.0, 0.5, 0.0]})
    samples = pd.DataFrame({"prompt": ["a", "a", "b", "c"], "answer": ["1", "1", "9", "3"], "steps": [2, 2, 3, 3]})
    votes = supervision.pseudo_label_quality(samples, labels)
    assert votes["right"].tolist() == [True, False, False]
    text = world_findings.vote_findings(votes, 8)
    assert "wrong on 66.7 %" in text and "(33 % of the prompts) it is wrong on 0.0 %" in text
    assert "3 steps 100 %" in text


def test_label_spec_labels_every_prompt_of_its_family(world, tmp_path):
    spec = PseudoLabelSpec(VoteSettings(k=2), "math", 0, **world.paths)
    spec.execute(tmp_path, tmp_path)
    labels = load_labels(tmp_path / LABELS_FILE)
    suites = load_suites(world.paths["suites"])["math"]
    assert set(labels["prompt"]) == {r["prompt"] for s in ("train", "test", "ood") for r in suites[s]}
    first = (tmp_path / LABELS_FILE).read_bytes()
    spec.execute(tmp_path, tmp_path)
    assert (tmp_path / LABELS_FILE).read_bytes() == first


# ---- the reward model ----

GOOD, BAD = "careful", "careless"


def toy(tokenizer, rows, seed, share=0.8):
    """Answers whose first word tells right from wrong in 4 of 5 cases."""
    rng = np.random.default_rng(seed)
    right = rng.random(rows) < 0.5
    style = np.where((rng.random(rows) < share) == right, GOOD, BAD)
    digits = rng.integers(10, size=(rows, 3)).astype(str)
    texts = [f"{s} a +5 = {x} b *3 = {y} answer {z}" for s, (x, y, z) in zip(style, digits)]
    return encode_completions(tokenizer, ["math 7 a +5 b *3 ?"] * rows, texts), right.astype(float)


@pytest.mark.parametrize(("target", "noise"), [(0.718, 0.2), (0.75, 0.0)])
def test_the_search_reaches_the_target_accuracy(world, target, noise):
    """On fresh answers too: within 1.5 points, and three standard errors of either sample."""
    cfg = RewardModelSettings(accuracy=target, steps=96, check_every=12, batch_size=32, learning_rate=3e-3)
    tokens, right = toy(world.tokenizer, 256, 0)
    held, truth = toy(world.tokenizer, 1000, 1)
    fresh, fresh_truth = toy(world.tokenizer, 2000, 2)
    labels = torch.tensor(np.where(np.random.default_rng(5).random(256) < noise, 1 - right, right), dtype=torch.float32)
    model = RewardModel(world.policy, 0)
    log = search_accuracy(model, tokens, labels, held, truth, cfg, 0)
    accuracy = ((predict_probabilities(model, held) >= 0.5) == (truth >= 0.5)).mean()
    assert abs(accuracy - target) < 0.01  # TOLERANCE, were it not for answers that are all alike
    [taken] = [x for x in log if x["taken"]]
    assert taken["accuracy"] == pytest.approx(accuracy, abs=1e-9)
    assert min(abs(x["accuracy"] - target) for x in log) == pytest.approx(abs(accuracy - target), abs=1e-9)
    measured = ((predict_probabilities(model, fresh) >= 0.5) == (fresh_truth >= 0.5)).mean()
    assert abs(measured - target) < 0.015 + 3 * (0.2 / 1000 + 0.2 / 2000) ** 0.5


def test_the_search_is_seeded(world):
    tokens, right = toy(world.tokenizer, 64, 0)
    cfg = RewardModelSettings(accuracy=0.6, steps=80, check_every=20, batch_size=16, learning_rate=3e-3)
    found = []
    for seed in (0, 0, 1):
        model = RewardModel(world.policy, 0)
        found.append(search_accuracy(model, tokens, torch.tensor(right).float(), tokens, right, cfg, seed))
        torch.rand(1)  # global generators must not matter
    assert found[0] == found[1] != found[2]


def test_an_accuracy_out_of_reach_is_named(world):
    tokens, right = toy(world.tokenizer, 64, 0)
    cfg = RewardModelSettings(accuracy=0.99, steps=6, check_every=3)
    with pytest.raises(ValueError, match=r"reward_model.accuracy: 99.0% is not reached in 6 steps \(at most"):
        search_accuracy(RewardModel(world.policy), tokens, torch.tensor(right).float(), tokens, right, cfg, 0)


def test_a_response_is_judged_by_its_last_token_whatever_the_padding(world):
    prompts, completions = ["math 7 a +5 ?", "math 1 ?"], ["careful a +5 = 2 answer 2", "careless answer 3"]
    model = RewardModel(world.policy, 0)
    with torch.no_grad():
        model.head.weight.mul_(50)
    both = predict_probabilities(model, encode_completions(world.tokenizer, prompts, completions))
    alone = [
        predict_probabilities(model, encode_completions(world.tokenizer, [p], [c]))[0]
        for p, c in zip(prompts, completions)
    ]
    judge = model_reward(model, world.tokenizer)
    assert both == pytest.approx(alone, abs=1e-6) and abs(both[0] - both[1]) > 1e-3
    assert judge(prompts, completions, answer=["1", "1"]) == pytest.approx(alone, abs=1e-6)


def test_calibration_by_hand():
    p = pd.DataFrame({"probability": np.repeat([0.1, 0.9], 50), "right": [0.0] * 40 + [1.0] * 60})
    table = calibration_table(p, 2)
    assert table.to_dict("list") == {"predicted": pytest.approx([0.1, 0.9]), "right": [0.2, 1.0], "count": [50, 50]}
    said = world_findings.reward_model_findings(p, pd.DataFrame({"step": [0, 1], "accuracy": [0.5, 0.93]}), 0.718)
    assert "**90.0 %**" in said and "more than the 1.5 points" in said and "reached 93.0 %" in said


@pytest.mark.parametrize("family", ["math", "dialogue"])
def test_parts_of_the_model_spec_share_no_prompt(world, family):
    spec = RewardModelSpec(RewardModelSettings(examples=60, held_out=60), family, 0, **world.paths)
    parts = {name: set(t["prompt"]) for name, t in spec.examples(world.policy, world.tokenizer).items()}
    assert list(parts) == ["training", "search", "measurement"] and len(set.union(*parts.values())) == sum(
        map(len, parts.values())
    )
    trained = {r["prompt"] for r in load_suites(world.paths["suites"])[family]["train"]}
    assert not trained & set.union(*parts.values())


def test_the_spec_writes_a_model_that_can_be_loaded(world, tmp_path):
    """All answers of the base are wrong: the model moves from "all right" through the target to "all wrong"."""
    cfg = RewardModelSettings(
        accuracy=0.6, label_noise=0.0, examples=32, held_out=40, steps=100, check_every=5, learning_rate=1e-2
    )
    spec = RewardModelSpec(cfg, "math", 0, **world.paths)
    spec.execute(tmp_path, tmp_path)
    predictions = pd.read_csv(tmp_path / "predictions.csv")
    assert list(predictions) == ["probability", "right", "words"] and len(predictions) == 40
    assert {"step", "accuracy", "taken"} == set(pd.read_csv(tmp_path / "search.csv"))
    model = load_reward_model(tmp_path / WEIGHTS_FILE, world.policy)
    fresh = spec.examples(world.policy, world.tokenizer)["measurement"]
    said = model_reward(model, world.tokenizer)(fresh["prompt"].tolist(), fresh["completion"].tolist())
    assert said == pytest.approx(predictions["probability"].tolist(), abs=1e-5)


def test_a_model_under_autocast_says_nearly_the_same(world):
    model = RewardModel(world.policy)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    table = RewardModelSpec(RewardModelSettings(examples=20, held_out=20), "math", 0, **world.paths)
    answers = table.examples(world.policy, world.tokenizer)["training"]
    tokens = encode_completions(world.tokenizer, answers["prompt"].tolist(), answers["completion"].tolist())
    exact, rounded = (predict_probabilities(model, tokens, bf16=bf16) for bf16 in (False, True))
    assert rounded == pytest.approx(exact, abs=0.05) and (rounded != exact).any() and exact.std() > 0.01


# ---- in runs ----


def test_runs_read_the_proxies_that_their_noise_needs(world, tmp_path):
    folder = tmp_path / "noise"
    folder.mkdir()
    assert load_proxies(None) == {} == load_proxies(tmp_path / "absent")
    suites = load_suites(world.paths["suites"])["math"]
    records = [r for s in ("train", "test", "ood") for r in suites[s]]
    labels = pd.DataFrame([{"prompt": r["prompt"], "label": "7", "agreement": 1.0} for r in records])
    save_labels(labels, folder / LABELS_FILE)
    assert list(load_proxies(folder, world.paths["base"])) == ["majority_vote"]
    noise = NoiseSettings("majority_vote", then=(NoiseSettings("missing", rate=0.25),))
    cfg = CriticSettings(heads=2, quantiles=8, pretrain_rollouts=64, pretrain_epochs=1)
    spec = CriticPretrainingSpec(cfg, noise, "math", 0, 1.0, **world.paths, proxies=str(folder))
    table = pretraining_rollouts(spec, world.policy, world.tokenizer)
    assert 30 < len(table) < 60 and table["reward"].notna().all()  # without those that got none
    spec.execute(tmp_path, tmp_path)
    key = spec_key(spec)
    assert spec_key(dataclasses.replace(spec, proxies=None)) != key
    (folder / LABELS_FILE).write_text((folder / LABELS_FILE).read_text().replace('"7"', '"8"'))
    assert spec_key(spec) != key
    train = TrainingSpec(
        "ppo",
        "n",
        "ppo",
        TrainingSettings(),
        1,
        None,
        noise,
        "math",
        0,
        EvaluationSettings(),
        **world.paths,
        proxies=str(folder),
    )
    prompt = records[0]["prompt"]
    rewards = training_reward(train)([prompt] * 40, ["answer 8"] * 40, answer=["1"] * 40)
    assert set(rewards) == {1.0, None}


def test_only_noises_that_need_proxies_are_keyed_by_them():
    assert proxies_folder(NoiseSettings("spikes"), "math") is None
    nested = NoiseSettings("flip", then=(NoiseSettings("reward_model"),))
    assert proxies_folder(nested, "science") == "data/noise/science" and nested.proxies == ("reward_model",)


def test_a_family_without_single_answers_cannot_be_voted_on(world):
    """It has no label of its own among the proxies, is left out where sources are shown, and refused as supervision."""
    samples = pd.DataFrame({"prompt": ["p"], "answer": ["1"], "completion": ["answer 1"], "reward": [1.0]})
    noises = {"none": NoiseSettings(), "vote": NoiseSettings("majority_vote")}
    assert set(supervision.received_rewards(samples, noises, 0)["noise"]) == {"none"}
    assert supervision.noise_examples(samples, noises, 0)["vote"].isna().all()
    assert tasks.FAMILIES["dialogue"].answer_of is None


def test_specs_name_the_folder_of_their_proxies():
    params = load_params(ROOT / "params.yaml")
    args = dict(critic=None, critic_file=None)
    for noise, folder in (("spikes", None), ("majority_vote", "data/noise/science")):
        assert training_spec(params, "grpo", "grpo", noise, "science", 0, **args).proxies == folder
        assert critic_pretraining_spec(params, params.critics["quantile"], noise, "science", 0).proxies == folder


def test_critics_are_pretrained_before_any_drift(world):
    """Pretraining is step 0: a rate that rises in training has not risen yet."""
    late = NoiseSettings("flip", rate=1.0, drift=(10, 30))
    cfg = CriticSettings(heads=2, quantiles=8, pretrain_rollouts=40, pretrain_epochs=1)
    spec = CriticPretrainingSpec(cfg, late, "dialogue", 0, 1.0, **world.paths)
    table = pretraining_rollouts(spec, world.policy, world.tokenizer)
    assert len(table) == 40 and (table["reward"] == table["reward_true"]).all()


def test_a_share_of_the_reward_models_labels_is_flipped(world, tmp_path, monkeypatch):
    """And its prompts have the steps of training problems."""
    seen = {}

    def record_labels(model, tokens, labels, held, truth, cfg, seed):
        seen[cfg.label_noise] = labels
        return [{"step": 0, "accuracy": 0.5}]

    monkeypatch.setattr(reward_model_runs, "search_accuracy", record_labels)
    for noise in (0.0, 0.25):
        cfg = RewardModelSettings(examples=200, held_out=4, label_noise=noise)
        RewardModelSpec(cfg, "math", 0, **world.paths).execute(tmp_path, tmp_path)
    assert 0.15 < (seen[0.0] != seen[0.25]).float().mean() < 0.35
    parts = RewardModelSpec(cfg, "math", 0, **world.paths).examples(world.policy, world.tokenizer)
    assert set(parts["training"]["steps"]) == {2, 3}
