"""Dialogues sampled turn by turn: whose token is whose, log-probabilities, bounds, and losses that see no user."""

import copy
import math
from itertools import groupby

import pytest
import torch
from chat_families import tokenizer_of
from conftest import run_settings
from test_trainer import update_on
from tiny_models import tiny_model

from dvpo_lib.functional.advantages import generalised_advantages, quantile_targets
from dvpo_lib.functional.critic_losses import CriticLossSettings, critic_loss
from dvpo_lib.functional.policy_losses import policy_loss, value_loss
from dvpo_lib.models.chat_templates import ChatTemplate
from dvpo_lib.models.critic import Critic, CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, token_logprobs
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.sampling.rollouts import sample_answers, sample_dialogues, sample_rollouts
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks import dialogue
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.dialogue_rules import split_turns, user_reply
from dvpo_lib.tasks.dialogue_scores import dialogue_reward, score_dialogue
from dvpo_lib.tasks.suites import build_split

CFG = dialogue.DialogueSettings(demonstrations=200, train=40, test=20)
FAMILY = dialogue.dialogue_world(CFG)
PROMPT = "life haircut day mon place north ?"
TEXT = "careful ask hour <eos> <user> hour noon <eos> book day mon hour noon place north <eos>"


@pytest.fixture(scope="module")
def tokenizer():
    return tasks.build_tokenizer(tasks.TaskSettings(dialogue=CFG))


@pytest.fixture(scope="module")
def shown():
    return list(build_split(FAMILY, "demonstrations", CFG))


@pytest.fixture(scope="module")
def records():
    return list(build_split(FAMILY, "train", CFG))


@pytest.fixture(scope="module")
def policy(tokenizer, shown):
    """Taught for a moment, so that its turns are short and some of them are understood."""
    cfg = PolicySettings(hidden_size=32, num_hidden_layers=1, steps=120, batch_size=16, learning_rate=1e-2)
    tokens = encode_completions(tokenizer, [r["prompt"] for r in shown], [r["completion"] for r in shown])
    policy = build_policy(tokenizer, cfg, seed=0)
    fit_language_model(policy, tokens, cfg, seed=0)
    return policy.eval()


@pytest.fixture(scope="module")
def rollouts(tokenizer, policy, records):
    return sample_dialogues(policy, tokenizer, records, user_reply, 48, 0.9, 0)


def segments(mask):
    """Of one row: the number of separate stretches of true."""
    return int((mask & ~torch.cat([torch.zeros(1, dtype=torch.bool), mask[:-1]])).sum())


# ---- texts to tokens ----


def test_encoded_dialogue_by_hand(tokenizer):
    tokens = encode_completions(tokenizer, [PROMPT, "math 3 ?"], [TEXT, "careful answer 3"])
    assert tokenizer.decode(tokens.input_ids[0]) == f"{PROMPT} {TEXT}"
    assert tokens.mask[0].tolist() == [True] * 4 + [False] * 4 + [True] * 8
    assert tokens.attention_mask[0].tolist() == [1] * (7 + 16)  # the user is attended to
    assert tokens.mask[1].tolist() == [True] * 4 + [False] * 12  # one answer, closed by an end of sequence
    one = encode_completions(tokenizer, ["math 3 ?"], ["careful answer 3"])
    cut = tokens.rows(torch.tensor([1]))
    for name in ("input_ids", "attention_mask", "mask"):
        assert torch.equal(getattr(cut, name), getattr(one, name)), name
    assert encode_completions(tokenizer, [PROMPT], [TEXT], 10).mask.tolist() == [[True] * 4 + [False] * 4 + [True] * 2]
    with pytest.raises(ValueError, match="record 1: the prompt is empty"):
        encode_completions(tokenizer, [PROMPT, ""], [TEXT, TEXT])


def test_a_cut_dialogue_gets_no_end_of_sequence(tokenizer):
    tokens = encode_completions(tokenizer, [PROMPT], [TEXT.removesuffix(" <eos>")])
    assert tokens.input_ids[0, -1] != tokenizer.eos_token_id and tokens.mask[0, -1]


def test_masks_of_demonstrations_are_the_policys_turns(tokenizer, shown):
    tokens = encode_completions(tokenizer, [r["prompt"] for r in shown], [r["completion"] for r in shown])
    assert tokenizer.unk_token_id not in tokens.input_ids
    for i, record in enumerate(shown):
        completion = tokens.input_ids[i, -tokens.completion_length :]
        own = tokenizer.decode(completion[tokens.mask[i]])
        turns = [" ".join(words) for words in split_turns(record["completion"])[::2]]
        assert own == " ".join(f"{turn} <eos>" for turn in turns)


# ---- sampling ----


def test_rollouts_are_what_their_texts_say(tokenizer, rollouts, records):
    """Tokens, masks and texts agree: encoding the texts again gives the same tokens."""
    assert rollouts.prompts == [r["prompt"] for r in records]
    ended = [i for i, c in enumerate(rollouts.completions) if "<eos>" in c]
    again = encode_completions(tokenizer, rollouts.prompts, rollouts.completions)
    for i in ended:
        a, b = rollouts.tokens.rows(torch.tensor([i])), again.rows(torch.tensor([i]))
        for name in ("input_ids", "attention_mask", "mask"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert max(segments(mask) for mask in rollouts.tokens.mask) >= 3


def test_the_user_says_what_the_simulator_says(rollouts, records):
    heard = 0
    for record, completion in zip(records, rollouts.completions):
        turns = split_turns(completion)
        for i in range(1, len(turns), 2):
            before = " ".join(" ".join([*words, "<eos>"]) for words in turns[:i])
            assert " ".join(turns[i]) == user_reply(record, before)
            heard += 1
    assert heard > 20


def test_attention_has_no_holes_between_turns(rollouts):
    for row in rollouts.tokens.attention_mask:
        real = row.nonzero().squeeze(1)
        assert torch.equal(real, torch.arange(real[0], real[-1] + 1))
    positions = rollouts.tokens.model_inputs()["position_ids"]
    for row, seen in zip(positions, rollouts.tokens.attention_mask):
        assert row[seen.bool()].tolist() == list(range(int(seen.sum())))


def test_sampled_logprobs_are_those_of_one_forward(policy, rollouts):
    with torch.no_grad():
        logprobs, _ = token_logprobs(policy, rollouts.tokens, 0.9)
    mask = rollouts.tokens.mask
    torch.testing.assert_close(rollouts.logprobs[mask], logprobs[mask], atol=1e-5, rtol=1e-5)
    assert (rollouts.logprobs[~mask] == 0).all()


@pytest.mark.parametrize("length", [48, 12])
def test_batched_is_one_by_one(tokenizer, policy, records, length):
    together = sample_dialogues(policy, tokenizer, records[:12], user_reply, length, temperature=0.0)
    for i, record in enumerate(records[:12]):
        alone = sample_dialogues(policy, tokenizer, [record], user_reply, length, temperature=0.0)
        assert alone.completions == [together.completions[i]]
        row = together.tokens.rows(torch.tensor([i]))
        assert torch.equal(row.input_ids, alone.tokens.input_ids) and torch.equal(row.mask, alone.tokens.mask)
        logprobs = together.logprobs[i, : alone.logprobs.shape[1]]
        torch.testing.assert_close(logprobs, alone.logprobs[0], atol=1e-5, rtol=1e-5)


def test_without_replies_it_is_generate(tokenizer, policy, records):
    seeds = [3, 3]
    ours = sample_dialogues(policy, tokenizer, records, lambda record, text: None, 20, 1.0, seeds[0])
    theirs = sample_answers(policy, tokenizer, [r["prompt"] for r in records], 20, 1.0, seeds[1])
    assert torch.equal(ours.tokens.input_ids, theirs.tokens.input_ids)
    assert torch.equal(ours.tokens.mask, theirs.tokens.mask)
    assert torch.equal(ours.logprobs, theirs.logprobs)
    assert [c.removesuffix("<eos>").strip() for c in ours.completions] == theirs.completions


def test_one_path_serves_answers_and_dialogues(tokenizer, policy, records):
    prompts = [r["prompt"] for r in records]
    for reply in (None, user_reply):
        seeds = [4, 4]
        ours = sample_rollouts(policy, tokenizer, records, 30, 0.8, seeds[0], reply)
        theirs = (
            sample_answers(policy, tokenizer, prompts, 30, 0.8, seeds[1])
            if reply is None
            else sample_dialogues(policy, tokenizer, records, reply, 30, 0.8, seeds[1])
        )
        assert ours.completions == theirs.completions and torch.equal(ours.logprobs, theirs.logprobs)
        for i, ids in enumerate(ours.completion_ids()):
            row = ours.tokens.rows(torch.tensor([i]))
            assert ids == row.input_ids[0, -row.completion_length :].tolist()
        again = encode_completions(tokenizer, prompts, ours.completion_ids())
        assert torch.equal(again.input_ids, ours.tokens.input_ids) and torch.equal(again.mask, ours.tokens.mask)


def test_equal_seeds_give_equal_dialogues(tokenizer, policy, records):
    runs = [sample_dialogues(policy, tokenizer, records, user_reply, 40, 1.0, s) for s in (0, 0, 1)]
    assert runs[0].completions == runs[1].completions != runs[2].completions
    assert torch.equal(runs[0].tokens.input_ids, runs[1].tokens.input_ids)


def test_sampling_leaves_no_trace(tokenizer, policy, records):
    before = torch.get_rng_state()
    rollouts = sample_dialogues(policy, tokenizer, records[:4], user_reply, 30, 1.0, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert not rollouts.tokens.input_ids.is_inference() and not rollouts.logprobs.is_inference()


# ---- bounds ----


class Scripted(torch.nn.Module):
    """A policy that writes its words over and over, counting from the last end of a turn, whoever's."""

    device = torch.device("cpu")

    def __init__(self, policy, tokenizer, words):
        super().__init__()
        self.policy, self.eos = policy, tokenizer.eos_token_id
        self.ids = tokenizer(words).input_ids

    def forward(self, input_ids, **inputs):
        out = self.policy(input_ids=input_ids, **inputs)
        self.place = getattr(self, "place", 0) if input_ids.shape[1] == 1 else 0  # a new turn reads a history
        out.logits[..., :] = -1e9
        out.logits[..., self.ids[self.place]] = 0.0
        self.place += 1
        return out


def scripted(policy, tokenizer, words, length, turns=9, said="<user> hour noon"):
    """A user who leaves after so many turns of the policy."""

    def reply(record, transcript):
        return said if transcript.count("ask") < turns else None

    return sample_dialogues(Scripted(policy, tokenizer, words), tokenizer, [{"prompt": PROMPT}], reply, length, 0.0)


def test_bounds_by_hand(tokenizer, policy):
    ask, user = "ask hour <eos>", "<user> hour noon <eos>"
    cases = {  # tokens at most, turns at most: the transcript
        (100, 1): ask,
        (100, 2): f"{ask} {user} {ask}",
        (100, 3): f"{ask} {user} {ask} {user} {ask}",
        (7, 9): ask,  # there would be no room for a word after the user's
        (8, 9): f"{ask} {user} ask",
        (10, 9): f"{ask} {user} {ask}",
        (2, 9): "ask hour",
        (3, 9): ask,
    }
    for (length, turns), expected in cases.items():
        found = scripted(policy, tokenizer, "ask hour <eos>", length, turns)
        assert found.completions == [expected], (length, turns)
        assert tokenizer.decode(found.tokens.input_ids[0]) == f"{PROMPT} {expected}"
        assert found.tokens.completion_length <= length


def test_a_dialogue_cut_by_the_bound_is_not_completed(tokenizer, policy):
    record = dict(prompt="life haircut day mon hour noon ?", answer="day mon hour noon", user=[""], steps=0)
    words = "book day mon hour noon <eos>"
    whole, cut = (
        sample_dialogues(Scripted(policy, tokenizer, words), tokenizer, [record], user_reply, length, 0.0)
        for length in (6, 5)
    )
    assert whole.completions == [words] and cut.completions == [words.removesuffix(" <eos>")]
    assert score_dialogue(record, whole.completions[0]).tcr == 1
    assert score_dialogue(record, cut.completions[0]) == (0, 0, 0)


def test_the_users_marker_from_the_policy_ends_and_fails_the_dialogue(tokenizer, policy, records):
    for words in ("<user> <eos>", "ask hour <user> <eos>", "<user> hour noon book day mon <eos>"):
        found = sample_dialogues(Scripted(policy, tokenizer, words), tokenizer, records[:1], user_reply, 40, 0.0)
        assert found.completions == [words]
        assert found.tokens.mask.all()  # its own words, marker included: it is they that are punished
        assert score_dialogue(records[0], words) == (0, 0, 0)


def test_impossible_calls_are_named(tokenizer, policy, records):
    with pytest.raises(ValueError, match="no records"):
        sample_dialogues(policy, tokenizer, [], user_reply, 10)
    with pytest.raises(ValueError, match="record 0: the reply contains the end of sequence"):
        scripted(policy, tokenizer, "ask hour <eos>", 20, 3, said="<user> hour <eos> noon")


# ---- losses ----


def test_what_the_user_writes_meets_no_loss(tokenizer, policy, rollouts):
    """NaN in values, rewards, advantages and log-probabilities of the user's tokens changes no gradient."""
    tokens, found = rollouts.tokens, []
    assert ((tokens.attention_mask[:, -tokens.completion_length :] == 1) & ~tokens.mask).any()
    learner, critic = build_policy(tokenizer, PolicySettings(hidden_size=32), 1), Critic(policy, 2, 16, seed=0)
    scalar = Critic(policy, seed=0)
    for poison in (False, True):
        bad = ~tokens.mask
        rewards = torch.randn(tokens.mask.shape, generator=torch.Generator().manual_seed(0))
        z, v = critic(tokens), scalar(tokens)[..., 0, 0]
        old_z, old_v = z.detach().clone(), v.detach().clone()
        logprobs, _ = token_logprobs(learner, tokens)
        sampled = rollouts.logprobs.clone()
        if poison:
            for x in (rewards, old_z, old_v, sampled):
                x[bad] = float("nan")
        targets = quantile_targets(rewards, old_z.mean(2).sort(-1).values, tokens.mask, 1.0, 0.9)
        advantages, returns = generalised_advantages(rewards, old_v, tokens.mask, 1.0, 0.95)
        if poison:
            for x in (targets, advantages, returns):
                x[bad] = float("nan")
        every = {
            name: 0.1 for name in ("head_consistency", "tail_calibration", "mean_shift", "tail_shape", "tail_curvature")
        }
        loss = (
            policy_loss(logprobs, sampled, advantages, tokens.mask)[0]
            + critic_loss(z, targets, tokens.mask, CriticLossSettings(**every), reference=old_z)[0]
            + value_loss(v, returns, tokens.mask, old_v, 0.2)
        )
        modules = (learner, critic, scalar)
        for module in modules:
            module.zero_grad()
        loss.backward()
        found.append([p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None])
    assert any(g.abs().sum() > 0 for g in found[0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def spoiled(x, mask, by):
    """x with another number where masked."""
    return torch.where(mask.view(*mask.shape, *[1] * (x.dim() - 2)), x, by)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_trains_on_dialogues_and_sees_no_user(tokenizer, policy, records, method):
    """Whatever stands on the user's tokens changes no parameter after a step, from advantages to the optimiser."""
    kind, results = METHODS[method].critic or "quantile", []
    for spoil in (False, True):
        critic = CriticSettings(kind=kind, heads=2, quantiles=16)
        config = run_settings(
            method=method,
            max_steps=2,
            generation_batch_size=16,
            num_generations=4,
            critic=critic,
            max_completion_length=40,
            learning_rate=1e-3,
        )
        t = DVPOTrainer(
            copy.deepcopy(policy), dialogue_reward, config, records, processing_class=tokenizer, reply=user_reply
        )
        rollouts, columns = t.sample()
        assert max(segments(mask) for mask in rollouts.tokens.mask) >= 2
        scores = t.score(rollouts, columns)
        if spoil:
            rollouts.logprobs = spoiled(rollouts.logprobs, rollouts.tokens.mask, -5.0)
        x = t.build_experience(rollouts, scores)
        if spoil:
            x.reference_logprobs = spoiled(x.reference_logprobs, x.mask, -3.0)
            x.values = spoiled(x.values, x.mask, 7.0) if isinstance(x.values, torch.Tensor) else x.values
        advantages, targets = t.method.advantage(x, t.args)
        if spoil:
            advantages, targets = (None if y is None else spoiled(y, x.mask, 9.0) for y in (advantages, targets))
        update_on(t, x, advantages, targets)
        results.append([p.clone() for m in (t.policy, t.critic) if m is not None for p in m.parameters()])
        if not spoil:
            logs = t.step()
            assert 0 <= logs["reward"] <= 1 and logs["kl"] < 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_advantages_skip_the_user(rollouts):
    """The recursion runs over the policy's own tokens as if the user's were deleted."""
    mask = rollouts.tokens.mask
    row = next(i for i in range(len(mask)) if segments(mask[i]) >= 2)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, *mask.shape, generator=generator)
    spread, _ = generalised_advantages(rewards, values, mask, 1.0, 0.9)
    own = mask[row]
    alone, _ = generalised_advantages(
        rewards[row, own][None], values[row, own][None], torch.ones(1, int(own.sum()), dtype=torch.bool), 1.0, 0.9
    )
    torch.testing.assert_close(spread[row, own], alone[0])


def test_supervised_training_does_not_teach_the_users_words(tokenizer, shown):
    """Logits where the user speaks get no gradient: another word of the user changes the loss of later turns alone."""
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32), seed=0)
    tokens = encode_completions(tokenizer, [PROMPT], [TEXT])
    logprobs, _ = token_logprobs(policy, tokens)
    changed = encode_completions(tokenizer, [PROMPT], [TEXT.replace("<user> hour noon", "<user> hour dusk")])
    again, _ = token_logprobs(policy, changed)
    first, last = slice(0, 4), slice(8, 16)
    torch.testing.assert_close(again[:, first], logprobs[:, first])
    assert (again[:, last] - logprobs[:, last]).abs().max() > 1e-5  # attended to
    cfg = PolicySettings(hidden_size=32, steps=1, batch_size=1)
    expected = -logprobs[tokens.mask].mean().item()
    assert fit_language_model(policy, tokens, cfg, seed=0)[0] == pytest.approx(expected, rel=1e-5)


# ---- chat models ----


@pytest.mark.parametrize("method", ["grpo", "dvpo"])
@pytest.mark.parametrize("family", ["ChatML", "Llama 3", "Gemma", "Mistral"])
def test_training_on_conversations_with_replies_by_the_template(family, method):
    """Reward functions see messages; the tools' words are in no mask; limits and ends are those of the model."""
    tokenizer = tokenizer_of(family)
    model = tiny_model("Llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.generation_config.eos_token_id = [ChatTemplate(tokenizer).turn_end, *range(40, 80)]  # short turns
    seen, heard = [], []

    def reply(record, completion):
        assert record["prompt"] == [{"role": "user", "content": "Two plus two?"}]
        assert [m["role"] for m in completion] == ["assistant", "tool"] * (len(completion) // 2) + ["assistant"]
        heard.append(completion)
        return {"role": "tool", "content": "4"} if len(completion) < 5 else None

    def reward(prompts, completions, completion_ids, **columns):
        seen.extend(completions)
        return [float(len(ids) % 7) for ids in completion_ids]

    args = run_settings(
        method=method,
        max_steps=2,
        generation_batch_size=8,
        num_generations=4,
        max_completion_length=200,
        learning_rate=1e-3,
    )
    data = [{"prompt": [{"role": "user", "content": "Two plus two?"}]}] * 4
    t = DVPOTrainer(model, reward, args, data, processing_class=tokenizer, reply=reply)
    rollouts, _ = t.sample()
    assert max(segments(mask) for mask in rollouts.tokens.mask) == 3
    assert t.terminated(rollouts).all()
    for row, (completion, ids) in enumerate(zip(rollouts.completions, rollouts.completion_ids())):
        pairs = groupby(zip(rollouts.tokens.mask[row].tolist(), ids), key=lambda pair: pair[0])
        turns = [[token for _, token in run] for own, run in pairs if own]
        said = [message["content"] for message in completion if message["role"] == "assistant"]
        assert [tokenizer.decode(turn[:-1], skip_special_tokens=True) for turn in turns] == said
    logs = t.step()
    assert heard and all(isinstance(c, list) and c[0]["role"] == "assistant" for c in seen)
    assert math.isfinite(logs["reward"])
