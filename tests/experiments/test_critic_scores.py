"""Single responses: wrong steps found, predictions scored, ablation rows composed."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from dvpo_lib.experiments import critic_scores, noise_effects
from dvpo_lib.experiments import responses as examples
from dvpo_lib.experiments.grids.ablation import (
    ABLATED_TERMS,
    CUMULATIVE_TERMS,
    ablation_rows,
    tail_table,
    term_weight_table,
)
from dvpo_lib.experiments.specs import critic_test
from dvpo_lib.experiments.specs.training import TrainingSpec
from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.reporting.method_cards import critic_kinds_text
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.training_settings import TrainingSettings
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.chains import ChainSettings
from dvpo_lib.tasks.dialogue import DialogueSettings
from dvpo_lib.tasks.evaluation import EvaluationSettings
from dvpo_lib.tasks.suites import save_suites

SMALL = ChainSettings(demonstrations=20, train=40, test=10)
TALKS = DialogueSettings(demonstrations=20, train=40, test=10)
CFG = tasks.TaskSettings(math=SMALL, science=SMALL, dialogue=TALKS)
FAMILIES = tasks.build_worlds(CFG)


@pytest.mark.parametrize(
    ("completion", "where"),
    [
        ("careful a +5 = 2 b *3 = 6 answer 6", None),
        ("careful a +5 = 2 so 2 b *3 = 6 answer 6", None),
        ("careful a +5 = 3 b *3 = 9 answer 9", 4),  # the first step is wrong; the second follows from it
        ("careful a +5 = 2 b *3 = 7 answer 7", 8),
        ("careful a +4 = 1 b *3 = 3 answer 3", 2),  # another operation than asked for
        ("careful a +5 = 2 b *3 = 6 answer 5", 10),  # steps right, answer wrong
        ("careful a +5 =", 3),
        ("", None),
    ],
)
def test_first_wrong_word_by_hand(completion, where):
    assert FAMILIES["math"].first_wrong_word({"prompt": "math 7 a +5 b *3 ?"}, completion) == where


@pytest.mark.parametrize(
    ("completion", "where"),
    [
        ("careful ask hour <eos> <user> hour noon price ? <eos> say price 7 book day mon hour noon <eos>", None),
        ("careful ask who <eos> <user> who any price ? <eos> say price 7 book day mon hour noon <eos>", 2),
        ("careful ask hour <eos> <user> hour noon price ? <eos> say price 6 book day mon hour noon <eos>", 11),
        ("ask hour <eos> <user> hour noon price ? <eos> say price 7 book day mon hour dusk <eos>", 10),
        ("ask hour <eos> <user> hour noon price ? <eos> book day mon hour noon <eos>", None),  # left out
        ("ask hour hour <eos>", 2),
        ("<eos>", 0),
        ("", None),
    ],
)
def test_first_wrong_turn_of_a_dialogue_by_hand(completion, where):
    record = dict(prompt="life haircut day mon ?", answer="day mon hour noon", user=["price 7"])
    assert FAMILIES["dialogue"].first_wrong_word(record, completion) == where


@pytest.mark.parametrize("name", list(FAMILIES))
def test_error_free_demonstrations_have_no_wrong_word_and_wrong_ones_have(name):
    world, cfg, rng = FAMILIES[name], getattr(CFG, name), np.random.default_rng(0)
    for _ in range(40):
        record = world.draw(rng, cfg.long, cfg)
        right, wrong = (world.demonstrate(record, "careful", error, 0.5, rng) for error in (0, 1))
        assert world.first_wrong_word(record, right) is None
        assert world.first_wrong_word(record, wrong) == 4 or name == "dialogue"
        assert name != "dialogue" or world.first_wrong_word(record, wrong) > 0


def test_predictions_are_scored_at_the_token_asked_for():
    predictions = [np.array([[0.0], [0.5], [1.0]]), np.array([[0.2]])]
    last = critic_test.score_predictions(predictions, [1.0, 0.0], "last")
    assert last["crps"].tolist() == pytest.approx([0, 0.2]) and last["pit"].isna().all()
    first = critic_test.score_predictions(predictions, [1.0, 0.0], "first")
    assert first["mean"].tolist() == pytest.approx([0, 0.2])


def test_a_right_distribution_has_uniform_pit_even_for_discrete_outcomes():
    rng = np.random.default_rng(0)
    outcomes = (rng.random(4000) < 0.3).astype(float)
    predictions = critic_scores.overall_distribution([0] * 70 + [1] * 30, 4000)
    pit = critic_test.score_predictions(predictions, outcomes, "last")["pit"]
    assert np.abs(np.histogram(pit, 10, (0, 1))[0] / 400 - 1).max() < 0.2
    scores = critic_scores.critic_score_table(
        pd.DataFrame(
            {
                "pit": pit,
                "crps": 0.1,
                "mean": 0.3,
                "received": outcomes,
                "true": outcomes,
                "noise": "none",
                "critic": "constant",
                "family": "math",
                "seed": 0,
                "at": "last",
            }
        )
    )
    assert scores["cover80"].iloc[0] == pytest.approx(0.8, abs=0.03)


def test_an_atom_that_is_nearly_met_counts_as_met():
    outcomes = np.array([0.0, 1.0] * 500)
    near = [np.r_[np.full(50, 0.03), np.full(50, 0.97)][None]] * 1000  # half and half, not quite at 0 and 1
    pit = critic_test.score_predictions(near, outcomes, "last")["pit"]
    assert np.abs(np.histogram(pit, 5, (0, 1))[0] / 200 - 1).max() < 0.25
    strict = critic_test.score_predictions(near, outcomes, "last", tolerance=0.0)["pit"]
    assert ((strict > 0.45) & (strict < 0.55)).mean() < 0.6 and set(strict) <= {0.0, 1.0}


def test_metrics_of_a_critic_by_hand():
    """Ten responses, one in each bin: half of the predictions are 0.1 too high, and right answers rank first."""
    true = np.array([0.0] * 5 + [1.0] * 5)
    means = np.where(true > 0, 0.9, [0.0, 0.01, 0.02, 0.03, 0.04] * 2)
    received = means - np.where(true > 0, 0.1, 0.0)
    assert critic_test.calibration_error(means, received) == pytest.approx(0.05)
    points = [np.full((3, 1), mean) for mean in means]
    found = critic_test.prediction_metrics(points, received, true, "middle")
    assert found["auc_true"] == 1 and found["crps"] == pytest.approx(0.05) and np.isnan(found["covered_80"])
    assert found["explained_true"] == pytest.approx(1 - np.var(true - means) / 0.25)
    assert found["explained_received"] == pytest.approx(1 - 0.05**2 / np.var(received))
    wide = [np.linspace(-1, 2, 20)[None]] * 10
    spread = critic_test.prediction_metrics(wide, received, true, "first")
    assert spread["covered_80"] == 1 and spread["auc_true"] == 0.5


def test_received_rewards_keep_the_truth_beside_every_noise():
    samples = pd.DataFrame(
        {
            "prompt": ["p"] * 400,
            "completion": ["answer 1", "answer 2"] * 200,
            "answer": "1",
            "reward": [1.0, 0.0] * 200,
            "family": ["math"] * 200 + ["science"] * 200,
        }
    )
    noises = {"none": NoiseSettings(), "flip": NoiseSettings("flip", rate=0.5)}
    table = noise_effects.received_rewards(samples, noises, 0)
    by = {n: f.reset_index(drop=True) for n, f in table.groupby("noise")}
    assert (by["none"]["true"] == by["none"]["received"]).all()
    assert 0.4 < (by["flip"]["true"] != by["flip"]["received"]).mean() < 0.6
    assert by["flip"]["true"].tolist() == by["none"]["true"].tolist()
    assert set(table["words"]) == {2}
    errors = noise_effects.confusion_table(table)
    assert set(errors["family"]) == {"math", "science"} and len(errors) == 4
    errors = errors[errors["family"] == "math"].set_index("noise")
    assert errors.loc["none", "corrupted"] == 0 and errors.loc["flip", "false_positives"] == pytest.approx(0.5, abs=0.1)


def test_sources_are_shown_once_their_rate_has_risen_and_with_what_follows():
    samples = pd.DataFrame({"prompt": ["p"] * 400, "completion": "answer 1", "answer": "1", "reward": 1.0})
    late = NoiseSettings("flip", rate=0.5, drift=(10, 30), then=(NoiseSettings("missing", rate=0.3),))
    received = noise_effects.received_rewards(samples, {"late": late}, 0)["received"]
    assert 0.2 < received.isna().mean() < 0.4 and 0.4 < received.mean() < 0.6
    early = noise_effects.received_rewards(samples, {"late": late}, 0, step=0)["received"]
    assert early.mean() == 1 and early.isna().any()
    table = noise_effects.noise_table({"late": late, "length_bias": NoiseSettings("length_bias", scale=0.3)})
    assert table["noise"].tolist() == ["late", "... then", "length bias"]
    assert table["rate rises in steps"].tolist() == ["10 to 30", "", ""] and table["scale"].tolist() == ["", "", "0.3"]


def test_examples_show_a_right_and_a_wrong_answer_to_one_prompt():
    said = ["answer 2", "answer 2", "answer 1", "answer 3"]
    samples = pd.DataFrame({"prompt": list("ppqq"), "completion": said, "answer": "1", "reward": [0.0, 0.0, 1.0, 0.0]})
    shown = noise_effects.noise_examples(samples, {"none": NoiseSettings()}, 0)
    assert shown["prompt"].tolist() == ["q", "q"] and shown["none"].tolist() == [1, 0]
    vote = {"none": NoiseSettings(), "majority_vote": NoiseSettings("majority_vote")}
    said = pd.DataFrame({"prompt": list("ppqq"), "completion": "c", "answer": "1", "reward": [1.0, 0.6, 1.0, 0.0]})
    struck = noise_effects.noise_examples(said, {"lenient": NoiseSettings("false_positive")}, 0)  # strikes at q alone
    assert struck["prompt"].tolist() == ["q", "q"] and struck["lenient"].tolist() == [1.0, 1.0]
    beside = noise_effects.transpose_examples(noise_effects.noise_examples(samples, vote, 0)).set_index("")
    assert beside.loc["no noise"].to_dict() == {"the best answer": "1.00", "the worst": "0.00"}
    assert beside.loc["completion", "the worst"] == "answer 3" and set(beside.loc["majority vote"]) == {"–"}


def test_wrong_and_right_marks_the_wrong_word():
    said = [f"careful a +5 = {x} b *3 = {y} answer {y}" for x, y in ((2, 6), (3, 9), (1, 3))]
    responses = pd.DataFrame(
        {"prompt": "math 7 a +5 b *3 ?", "completion": said, "true": [1.0, 0.0, 0.0], "received": [1.0, 0.0, 5.0]}
    )
    responses["completion_ids"] = [tasks.build_tokenizer(CFG)(text).input_ids for text in said]  # cut: without an end
    wrong, right = examples.wrong_and_right_response(responses, FAMILIES["math"])
    assert (wrong["wrong_word"], wrong.name) == (4, 1) and (right["wrong_word"], right.name) == (-1, 0)
    wrong, right = examples.wrong_and_right_response(
        responses.assign(received=0.3), FAMILIES["math"]
    )  # none is uncorrupted
    assert wrong["wrong_word"] == 4 and right["wrong_word"] == -1
    tokenizer = tasks.build_tokenizer(CFG)
    settings = examples.response_plot_arguments(wrong, tokenizer)
    assert settings["tokens"] == said[1].split() and settings["marks"] == [3.5] and "(wrong)" in settings["title"]
    assert examples.response_plot_arguments(right, tokenizer)["marks"] == []


def test_change_at_error_by_hand():
    said = [f"careful a +5 = {x} answer {x}" for x in (2, 3)]
    responses = pd.DataFrame({"prompt": "math 7 a +5 ?", "completion": said})
    flat, falling = np.full((8, 2), 0.5), np.full((8, 2), 0.7)
    falling[5:] = 0.1  # the value before the word after the wrong one
    found = examples.value_change_at_error([flat, falling], responses, FAMILIES["math"], tasks.build_tokenizer(CFG))
    assert found == pytest.approx({"wrong": -0.6, "style": 0.1, "count": 1})


@pytest.mark.parametrize("method", ["dvpo", "grpo"])
def test_first_batch_gives_every_token_its_advantage(method, tmp_path):
    """Without a pretrained critic's file a critic is new; a method without critic gives one number per response."""
    tokenizer = tasks.build_tokenizer(CFG)
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), 0)
    policy.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    save_suites(tasks.build_suites(CFG), tmp_path / "suites")
    spec = TrainingSpec(
        name=method,
        noise_name="spikes",
        method=method,
        training=TrainingSettings(generation_batch_size=16),
        max_steps=1,
        critic=CriticSettings(heads=2, quantiles=8) if METHODS[method].critic else None,
        noise=NoiseSettings("spikes", rate=0.5, scale=9.0, then=(NoiseSettings("missing", rate=0.2),)),
        family="math",
        seed=0,
        evaluation=EvaluationSettings(prompts=1, k=1),
        base=str(tmp_path / "base"),
        suites=str(tmp_path / "suites"),
    )
    torch.manual_seed(1)  # the result must not depend on the global generator
    batch = examples.first_training_batch(spec)
    torch.manual_seed(2)
    assert examples.first_training_batch(spec)["advantages"].tolist() == batch["advantages"].tolist()
    assert 8 < len(batch) < 16 and batch["reward"].notna().all()  # those without reward take no part
    assert set(batch["reward_true"]) <= {0.0, 1.0}
    for row in batch.itertuples():
        assert len(row.tokens) == len(row.advantages) and np.isfinite(row.advantages).all()
        assert len(set(row.advantages)) == 1 or METHODS[method].critic
    shown = examples.telling_responses(batch)
    assert any("corrupted" in r["title"] for r in shown)


def test_ablation_rows_add_one_step_at_a_time_and_end_at_the_full_critic():
    weights = dict(zip(ABLATED_TERMS, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    loss = CriticLossSettings(**weights)
    critic = CriticSettings(loss=loss, heads=5)
    rows = ablation_rows(critic)
    assert list(rows) == list(CUMULATIVE_TERMS) and rows["+ tail shape and curvature"] == critic
    on = [[t for t in ABLATED_TERMS if getattr(c.loss, t)] for c in rows.values()]
    assert [len(o) for o in on] == [0, 1, 2, 3, 5]
    assert rows["+ mean shift"].loss.mean_shift == 0.3 and all(c.heads == 5 for c in rows.values())
    more = ablation_rows(critic, leave_one_out=True)
    for term in ABLATED_TERMS:
        left = more[f"without {term.replace('_', ' ')}"]
        assert left == dataclasses.replace(critic, loss=dataclasses.replace(loss, **{term: 0.0}))
    assert term_weight_table(rows)["mean shift"].tolist() == ["0", "0", "0", "0.3", "0.3"]


def test_tail_table_by_hand():
    curves = pd.DataFrame({"variant": "core", "seed": 0, "level": np.arange(20) / 20 + 0.025, "value": np.arange(20.0)})
    table = tail_table(curves, [0.0, 1.0], mass=0.2).set_index("variant")
    assert table.loc["core", ["mean", "lower tail mean", "upper tail mean"]].tolist() == [9.5, 1.5, 17.5]
    assert table.loc["rewards received", "mean"] == 0.5


def test_kinds_of_critics_cost_less_the_less_they_own():
    """A step through a backbone of its own costs about three forward passes, on the policy's states little over one."""
    tokenizer = tasks.build_tokenizer(CFG)
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_attention_heads=2), 0)
    kinds = critic_scores.critic_kinds(CriticSettings(heads=2, quantiles=8), 2)
    assert list(kinds) == [
        "own backbone",
        "own backbone, light networks",
        "first 1 of 2 layers",
        "policy's hidden states, light networks",
        "policy's hidden states",
    ]
    rows = [{"prompt": "math 3 ?", "completion": "answer 3", "reward": 1.0}] * 4
    costs = {kind: critic_scores.critic_cost(policy, cfg, rows, tokenizer) for kind, cfg in kinds.items()}
    own, light, cut, _, head = (cost["parameters"] for cost in costs.values())
    assert own == policy.base_model.num_parameters() + 17 * 16 and head == 17 * 16
    assert light > own > cut > head
    flops = [cost["gigaflops"] for cost in costs.values()]
    assert flops[1] > flops[0] > flops[2] > flops[3] > flops[4] > 0
    names = dict(noise="none", family="math", seed=0, at="last")
    scores = pd.DataFrame([{"critic": kind, "ev_true": i / 10, **names} for i, kind in enumerate(kinds)])
    scores = pd.concat([scores, scores.assign(seed=1, ev_true=scores["ev_true"] + 0.2), scores.assign(at="first")])
    table = critic_scores.critic_kind_table(scores, costs)
    assert table["none"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    text = critic_kinds_text(table)
    assert text.columns.tolist() == ["kind", "explained, no noise", "parameters trained", "GFLOP a step"]
    assert text["parameters trained"].tolist()[-1] == "272" and text["explained, no noise"].tolist()[0] == "0.100"
