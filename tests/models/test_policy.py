"""Policies, critics and sampling: padding is invisible, cached and full forward agree, randomness is local."""

import pytest
import torch

from dvpo_lib.models import policy as models
from dvpo_lib.models.critic import Critic
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, load_policy, token_logprobs
from dvpo_lib.models.tokens import encode_completions, shuffled_batches
from dvpo_lib.rl.sampling.rollouts import sample_answers
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

PROMPTS = ["math 7 a +5 b *3 ?", "math 3 ?", "science 3 a +1 b +2 c +3 ?"]
COMPLETIONS = ["careful a +5 = 2 answer 2", "answer 3", "careless so 3 answer 3"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


@pytest.fixture(scope="module")
def policy(tokenizer):
    return build_policy(tokenizer, PolicySettings(hidden_size=32), seed=0).eval()


def test_encode_pads_prompts_left_and_completions_right(tokenizer):
    tokens = encode_completions(tokenizer, PROMPTS, COMPLETIONS)
    assert tokens.mask.sum(1).tolist() == [8, 3, 6]  # words and the end of sequence
    completion = tokens.input_ids[1, -tokens.completion_length :]
    assert completion[:3].tolist() == [*tokenizer("answer 3").input_ids, tokenizer.eos_token_id]
    assert tokens.attention_mask.sum(1).tolist() == [7 + 8, 3 + 3, 9 + 6]
    with pytest.raises(ValueError, match="record 1: the prompt is empty"):
        encode_completions(tokenizer, ["math", ""], ["a", "b"])


def test_rows_cuts_padding_and_changes_nothing(tokenizer, policy):
    tokens = encode_completions(tokenizer, PROMPTS, COMPLETIONS)
    full, _ = token_logprobs(policy, tokens)
    part = tokens.rows(torch.tensor([1]))
    assert part.input_ids.shape[1] < tokens.input_ids.shape[1]
    cut, _ = token_logprobs(policy, part)
    torch.testing.assert_close(cut[0, :3], full[1, :3], atol=1e-5, rtol=1e-5)


def test_logprobs_match_a_row_alone_and_ignore_what_padding_holds(tokenizer, policy):
    tokens = encode_completions(tokenizer, PROMPTS, COMPLETIONS)
    batch, entropy = token_logprobs(policy, tokens, with_entropy=True)
    for i in range(3):
        ids = tokenizer(PROMPTS[i]).input_ids + tokenizer(COMPLETIONS[i]).input_ids + [tokenizer.eos_token_id]
        start = len(tokenizer(PROMPTS[i]).input_ids)
        logp = policy(torch.tensor([ids])).logits[0].log_softmax(-1)
        alone = torch.stack([logp[t - 1, ids[t]] for t in range(start, len(ids))])
        torch.testing.assert_close(batch[i, tokens.mask[i]], alone, atol=1e-5, rtol=1e-5)
        expected = -(logp[start - 1].exp() * logp[start - 1]).sum()
        torch.testing.assert_close(entropy[i, 0], expected, atol=1e-5, rtol=1e-5)
    changed = tokens.input_ids.clone()
    changed[tokens.attention_mask == 0] = 5
    tokens.input_ids = changed
    again, _ = token_logprobs(policy, tokens)
    torch.testing.assert_close(again[tokens.mask], batch[tokens.mask])


def test_sampled_logprobs_are_those_of_a_full_forward(tokenizer, policy):
    rollouts = sample_answers(policy, tokenizer, PROMPTS * 4, 12, 0.7, 0)
    logprobs, _ = token_logprobs(policy, rollouts.tokens, 0.7)
    mask = rollouts.tokens.mask
    torch.testing.assert_close(rollouts.logprobs[mask], logprobs[mask], atol=1e-4, rtol=1e-4)
    assert (rollouts.logprobs[~mask] == 0).all()


def test_sampling_frequencies_follow_the_policy(tokenizer, policy):
    rollouts = sample_answers(policy, tokenizer, [PROMPTS[0]] * 4000, 1, 1.0, 0)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(PROMPTS[0]).input_ids])
        p = policy(ids).logits[0, -1].softmax(-1)
    counts = torch.bincount(rollouts.tokens.input_ids[:, -1], minlength=len(p)) / 4000
    assert (counts - p).abs().max() < 0.03


def test_generation_stops_when_all_rows_have_ended(tokenizer, policy):
    eos = tokenizer.eos_token_id
    weight = policy.lm_head.weight
    rollouts = sample_answers(policy, tokenizer, PROMPTS, 30, 1.0, 1)
    ended = rollouts.tokens.input_ids[:, -rollouts.tokens.completion_length :] == eos
    for row, mask in zip(ended, rollouts.tokens.mask):
        first = row.nonzero()[0].item() if row.any() else len(row) - 1
        assert mask.tolist() == [t <= first for t in range(len(mask))]  # up to and with the end, nothing after
    assert weight is policy.lm_head.weight
    calls = []

    class Ender(torch.nn.Module):
        """Always ends at once."""

        device = torch.device("cpu")

        def forward(self, **inputs):
            calls.append(1)
            out = policy(**inputs)
            out.logits[..., :] = -1e9
            out.logits[..., eos] = 0.0
            return out

    rollouts = sample_answers(Ender(), tokenizer, PROMPTS, 30)
    assert len(calls) == 1 and rollouts.completions == ["", "", ""]
    assert rollouts.tokens.mask.tolist() == [[True]] * 3


def test_greedy_is_the_most_likely_token_and_needs_no_seed(tokenizer, policy):
    a = sample_answers(policy, tokenizer, PROMPTS, 8, temperature=0.0)
    b = sample_answers(policy, tokenizer, PROMPTS, 8, temperature=0.0)
    assert a.completions == b.completions
    ids = torch.tensor([tokenizer(PROMPTS[1]).input_ids])
    assert policy(ids).logits[0, -1].argmax() == a.tokens.input_ids[1, -a.tokens.completion_length]


def test_no_global_randomness(tokenizer, policy):
    before = torch.get_rng_state()
    build_policy(tokenizer, PolicySettings(hidden_size=32), seed=3)
    Critic(policy, 2, 8, seed=1)
    sample_answers(policy, tokenizer, PROMPTS, 4, 1.0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_saved_policy_loads_by_name(tokenizer, policy, tmp_path):
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, tok = load_policy(str(tmp_path))
    tokens = encode_completions(tok, PROMPTS, COMPLETIONS)
    torch.testing.assert_close(token_logprobs(loaded, tokens)[0], token_logprobs(policy, tokens)[0])


def test_language_model_learns_and_equal_seeds_are_equal(tokenizer):
    cfg = PolicySettings(hidden_size=32, steps=40, batch_size=3, learning_rate=1e-2)
    tokens, losses = encode_completions(tokenizer, PROMPTS, COMPLETIONS), []
    for _ in range(2):
        losses.append(fit_language_model(build_policy(tokenizer, cfg, 0), tokens, cfg, seed=0))
    assert losses[0][-1] < 0.5 * losses[0][0]
    assert losses[0] == losses[1]


def test_parts_of_a_batch_make_the_update_of_the_whole(tokenizer, monkeypatch):
    cfg, found = PolicySettings(hidden_size=32, steps=3, batch_size=9, learning_rate=1e-3), []
    tokens = encode_completions(
        tokenizer, PROMPTS * 3, [*COMPLETIONS, *COMPLETIONS[::-1], "careful answer 3", "2", "a = 1 a = 1"]
    )
    for parts in (1, 3):
        monkeypatch.setattr(models, "MICRO_BATCHES", parts)
        policy = build_policy(tokenizer, cfg, 0)
        losses = fit_language_model(policy, tokens, cfg, seed=0)
        found.append((losses, [p.clone() for p in policy.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_shuffled_batches_show_every_row_once_an_epoch():
    batches = shuffled_batches(10, 4, torch.Generator().manual_seed(0))
    seen = torch.cat([next(batches) for _ in range(5)]).tolist()
    assert sorted(seen[:10]) == list(range(10)) == sorted(seen[10:])
    assert seen[:10] != seen[10:]


@pytest.mark.parametrize("crossing", ["rearrange", "increments"])
def test_critic_shape_position_and_padding(tokenizer, policy, crossing):
    critic = Critic(policy, 3, 8, crossing, seed=0).eval()
    tokens = encode_completions(tokenizer, PROMPTS, COMPLETIONS)
    z = critic(tokens)
    assert z.shape == (3, tokens.completion_length, 3, 8)
    alone = critic(tokens.rows(torch.tensor([1])))
    torch.testing.assert_close(alone[0, :3], z[1, :3], atol=1e-5, rtol=1e-5)
    # The value at token t is that of the state before it: changing token t changes later values, not its own.
    tokens.input_ids[0, -tokens.completion_length + 2] = tokenizer.convert_tokens_to_ids("9")
    changed = critic(tokens)
    torch.testing.assert_close(changed[0, :3], z[0, :3])
    assert (changed[0, 3] - z[0, 3]).abs().max() > 1e-5
    if crossing == "increments":
        assert (z.diff(dim=-1) >= 0).all()


def test_heads_differ_from_the_start_and_seeds_matter(policy):
    head = Critic(policy, 3, 8, seed=0).head
    w = head.weight.unflatten(0, (3, 8))
    assert (w[0] - w[1]).abs().max() > 1e-4 and (w[1] - w[2]).abs().max() > 1e-4
    assert not torch.equal(head.weight, Critic(policy, 3, 8, seed=1).head.weight)


def test_critic_backbone_is_a_copy(policy):
    critic = Critic(policy, seed=0)
    shared = {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in policy.parameters()}
    assert not shared


def test_a_loaded_policy_lies_on_the_device_that_the_trainer_uses(tokenizer, policy, tmp_path, monkeypatch):
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "fastest_device", lambda: torch.device("meta"))
    loaded, _ = load_policy(str(tmp_path))
    assert {p.device.type for p in loaded.parameters()} == {"meta"}
