"""The sampler on tiny random models of many architectures: log-probabilities, padding, caches, modes, positions."""

import warnings

import pytest
import torch
import transformers as hf

from dvpo_lib.models.architectures import accepted_inputs
from dvpo_lib.models.causal_lm import CachedReader, position_limit
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.models.q_critic import PerturbedPolicy, QCritic
from dvpo_lib.rl.sampling.engines import SamplingCuts
from dvpo_lib.rl.sampling.rollouts import sample_answers, sample_rollouts
from dvpo_lib.rl.sampling.token_sampling import draw_tokens
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

PROMPTS = ["math 7 a +5 b *3 ?"] * 3 + ["math 3 ?", "science 3 a +1 b +2 c +3 ?", "math 3 ?"]
SIZE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32)
SHORT = dict(max_position_embeddings=64)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LINEAR = dict(
    linear_num_value_heads=2,
    linear_num_key_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    shared_expert_intermediate_size=16,
)
ARCHITECTURES = {
    "Llama": SIZE | SHORT,
    "Qwen2": SIZE | SHORT,
    "Qwen3": SIZE | SHORT | dict(head_dim=8),
    "Qwen3Moe": SIZE | SHORT | EXPERTS | dict(head_dim=8),
    "Gemma2": SIZE | SHORT | dict(head_dim=8, sliding_window=5),
    "Gemma3": SIZE | SHORT | dict(head_dim=8, sliding_window=5, layer_types=["sliding_attention", "full_attention"]),
    "GPT2": dict(n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "OPT": SIZE | SHORT | dict(ffn_dim=32, word_embed_proj_dim=16),
    "Mistral": SIZE | SHORT | dict(head_dim=8, sliding_window=5),
    "Mamba": dict(hidden_size=16, num_hidden_layers=2, state_size=4),
    "Mamba2": dict(
        hidden_size=16, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=8, n_groups=1, chunk_size=4
    ),
    "Lfm2": SIZE | SHORT | dict(layer_types=["conv", "full_attention"], block_ff_dim=32),
    "Qwen3Next": SIZE | SHORT | EXPERTS | LINEAR | dict(head_dim=8, layer_types=["linear_attention", "full_attention"]),
    "Rwkv": dict(hidden_size=16, num_hidden_layers=2, attention_hidden_size=16, context_length=64),
    "Gemma3 with images": {},
}
each_architecture = pytest.mark.parametrize("name", list(ARCHITECTURES))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


_built = {}


def model_of(name, tokenizer):
    """A tiny model, in train mode as it is when a person has just trained it; larger weights than usual."""
    if name in _built:
        return _built[name].train()
    words = dict(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if name == "Gemma3 with images":
            text = hf.Gemma3TextConfig(**words, **ARCHITECTURES["Gemma3"])
            vision = hf.SiglipVisionConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                image_size=28,
                patch_size=14,
            )
            model = hf.Gemma3ForConditionalGeneration(
                hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
            )
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        else:
            kind = {"Gemma3": "Gemma3Text"}.get(name, name)
            config = getattr(hf, f"{kind}Config")(**words, **ARCHITECTURES[name])
            model = getattr(hf, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data *= 5  # else all tokens are equally likely
    _built[name] = model
    return model.train()


def forward_logprobs(model, ids, start):
    """Log-probabilities of a row's tokens from `start` on, by one forward of this row alone."""
    model.eval()
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    return logits.float().log_softmax(-1)[start - 1 : -1].gather(1, ids[start:, None]).squeeze(1)


@each_architecture
def test_sampled_logprobs_are_those_of_a_row_alone_in_one_forward(name, tokenizer):
    model = model_of(name, tokenizer)
    rollouts = sample_answers(model, tokenizer, PROMPTS, 12, seed=1)
    assert model.training
    length, spread = rollouts.tokens.completion_length, 0.0
    for i in range(len(PROMPTS)):
        ids, mask = rollouts.tokens.input_ids[i], rollouts.tokens.mask[i]
        ids = ids[rollouts.tokens.attention_mask[i].bool()]
        expected = forward_logprobs(model, ids, len(ids) - int(mask.sum()))
        torch.testing.assert_close(rollouts.logprobs[i, mask], expected, atol=1e-4, rtol=1e-4)
        spread = max(spread, float(expected.std())) if len(expected) > 1 else spread
    assert spread > 0.1 and length > 1  # tokens are not all equally likely


@each_architecture
def test_a_row_alone_gives_the_same_tokens(name, tokenizer):
    model = model_of(name, tokenizer)
    together = sample_answers(model, tokenizer, PROMPTS, 12, seed=2)
    assert len({tuple(ids) for ids in together.completion_ids()}) > 3
    for rows in ([0], [3], [1, 4, 5]):
        alone = sample_answers(model, tokenizer, [PROMPTS[i] for i in rows], 12, seed=2, rows=rows)
        assert alone.completion_ids() == [together.completion_ids()[i] for i in rows]
        part = together.rows(torch.tensor(rows))
        torch.testing.assert_close(alone.logprobs, part.logprobs, atol=1e-4, rtol=1e-4)


@each_architecture
def test_greedy_is_deterministic_and_the_most_likely(name, tokenizer):
    model = model_of(name, tokenizer)
    first, again = (sample_answers(model, tokenizer, PROMPTS, 8, temperature=0.0, seed=s) for s in (0, 1))
    assert first.completion_ids() == again.completion_ids()
    ids = torch.tensor(tokenizer(PROMPTS[-1]).input_ids)
    model.eval()
    with torch.no_grad():
        best = model(input_ids=ids[None]).logits[0, -1].argmax()
    assert first.completion_ids()[-1][0] == best


@pytest.mark.parametrize("name", ["Mamba2", "Lfm2", "Qwen3Next", "Mistral"])
def test_a_cache_with_a_state_is_indexed_whole(name, tokenizer):
    model = model_of(name, tokenizer).eval()
    ids = torch.tensor([tokenizer("math 3 a +1 ?").input_ids, tokenizer("math 7 b *2 ?").input_ids])
    token, order = torch.tensor([7, 9, 8]), torch.tensor([1, 0, 1])
    with torch.no_grad():
        reader = CachedReader(model)
        reader.start(ids, torch.ones_like(ids))
        assert reader.can_select()
        reader.select(order)
        found = reader.step(token, torch.ones(3, ids.shape[1] + 1, dtype=torch.long))
        whole = torch.cat([ids[order], token[:, None]], 1)
        expected = model(input_ids=whole).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_read_again_if_a_cache_cannot_be_indexed(tokenizer, monkeypatch):
    model = model_of("Llama", tokenizer)
    usual = sample_answers(model, tokenizer, PROMPTS, 12, seed=3)
    monkeypatch.setattr("dvpo_lib.models.causal_lm._selector", lambda cache: None)
    again = sample_answers(model, tokenizer, PROMPTS, 12, seed=3)
    assert again.completion_ids() == usual.completion_ids()
    torch.testing.assert_close(again.logprobs, usual.logprobs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Qwen3Moe"])
def test_gradient_checkpointing_and_mode_change_nothing(name, tokenizer):
    model = model_of(name, tokenizer).eval()
    usual = sample_answers(model, tokenizer, PROMPTS, 12, seed=4)
    modes = [module.training for module in model.modules()]
    assert not any(modes)
    model.activation_checkpointing_enable()
    model.train()  # dropout of GPT-2 would show
    model.lm_head.eval()
    again = sample_answers(model, tokenizer, PROMPTS, 12, seed=4)
    assert again.completion_ids() == usual.completion_ids() and torch.equal(again.logprobs, usual.logprobs)
    assert model.training and not model.lm_head.training
    model.activation_checkpointing_disable()


@pytest.mark.parametrize("name", ["Llama", "Mamba2"])
def test_sampler_and_forward_agree_under_the_same_autocast(name, tokenizer):
    model = model_of(name, tokenizer).eval()
    full = sample_answers(model, tokenizer, PROMPTS, 12, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        half = sample_answers(model, tokenizer, PROMPTS, 12, seed=5)
        logits = model(**accepted_inputs(model, half.tokens.model_inputs())).logits.float()
        loss = logits.sum()  # the weights that the sampler cast do not cut the graph
    loss.backward()
    assert all(p.grad is not None for p in model.lm_head.parameters())
    model.zero_grad()
    length = half.tokens.completion_length
    logp = logits[:, -length - 1 : -1].log_softmax(-1).gather(-1, half.tokens.input_ids[:, -length:, None]).squeeze(-1)
    mask = half.tokens.mask
    assert (half.logprobs - logp)[mask].abs().mean() < 0.05
    assert not torch.equal(half.logprobs, full.logprobs)


def test_a_text_beyond_the_models_positions_is_an_error(tokenizer):
    long = "math 3 " + "a +1 " * 20 + "?"
    length = len(tokenizer(long).input_ids)
    for name in ARCHITECTURES:
        model = model_of(name, tokenizer)
        limit = position_limit(model)
        assert limit == (None if name in ("Mamba", "Mamba2") else 64)
        if limit is None:
            continue
        for reply in (None, lambda *_: None):
            records = [{"prompt": PROMPTS[0]}, {"prompt": long}]
            with pytest.raises(ValueError, match=f"record 1: the prompt's {length} tokens .* the model's 64 positions"):
                sample_rollouts(model, tokenizer, records, 64 - length + 1, reply=reply)
            sample_rollouts(model, tokenizer, records, 64 - length, reply=reply)


def test_rows_are_independent_of_batch_and_length_limit(tokenizer):
    """Half the rows alone, another order, a longer limit: equal tokens, in dialogues too."""
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_attention_heads=2), seed=0)
    records = [{"prompt": prompt} for prompt in PROMPTS * 4]

    def reply(record, text):
        return "science 3" if text.count("science") < 3 else None

    for answer in (None, reply):
        whole = sample_rollouts(policy, tokenizer, records, 90, seed=6, reply=answer).completion_ids()
        assert max(map(len, whole)) > 64 and (answer or len({len(ids) for ids in whole}) > 5)
        rows = list(range(1, 24, 2))[::-1]
        half = sample_rollouts(policy, tokenizer, [records[i] for i in rows], 90, seed=6, reply=answer, rows=rows)
        assert half.completion_ids() == [whole[i] for i in rows]
        other = sample_rollouts(policy, tokenizer, records, 90, seed=7, reply=answer).completion_ids()
        assert sum(a == b for a, b in zip(whole, other)) < 6
    longer = sample_rollouts(policy, tokenizer, records, 100, seed=6).completion_ids()
    shorter = sample_rollouts(policy, tokenizer, records, 90, seed=6).completion_ids()
    assert [ids[:90] for ids in longer] == shorter


def test_equal_prompts_have_different_streams(tokenizer):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_attention_heads=2), seed=0)
    found = sample_answers(policy, tokenizer, [PROMPTS[0]] * 8, 12)
    assert len({tuple(ids) for ids in found.completion_ids()}) == 8


def test_cuts_of_the_sampling_distribution(tokenizer):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_attention_heads=2), seed=0)
    greedy = sample_answers(policy, tokenizer, PROMPTS, 12, 0.0)
    for cuts in (SamplingCuts(top_k=1), SamplingCuts(top_p=1e-6), SamplingCuts(min_p=1.0)):
        found = sample_answers(policy, tokenizer, PROMPTS, 12, 1.0, cuts=cuts)
        assert found.completion_ids() == greedy.completion_ids()
        assert (found.logprobs[found.tokens.mask] == 0).all()  # the one token that is left
    assert SamplingCuts(repetition_penalty=1.1) and not SamplingCuts(min_p=0.0)
    cuts = SamplingCuts(repetition_penalty=1e9)
    found = sample_answers(policy, tokenizer, PROMPTS, 12, 1.0, cuts=cuts)
    alone = sample_answers(policy, tokenizer, PROMPTS[3:4], 12, 1.0, rows=[3], cuts=cuts)
    assert alone.completion_ids() == found.completion_ids()[3:4]  # padding is no text


def test_wrapped_models_are_read_as_what_they_wrap(tokenizer):
    model = model_of("Mamba2", tokenizer)

    class Wrapper(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    assert position_limit(Wrapper()) is None
    usual, wrapped = (sample_answers(m, tokenizer, PROMPTS, 8, seed=8) for m in (model, Wrapper()))
    assert torch.equal(wrapped.logprobs, usual.logprobs)


@pytest.mark.parametrize("name", ["Mamba2", "Lfm2"])
def test_perturbed_policies_carry_both_states(name, tokenizer):
    model = model_of(name, tokenizer).eval()
    actor = PerturbedPolicy(model, QCritic(model, seed=0), 2.0)
    rollouts = sample_answers(actor, tokenizer, PROMPTS, 6, seed=9)
    usual = sample_answers(model, tokenizer, PROMPTS, 6, seed=9)
    assert not torch.equal(rollouts.logprobs, usual.logprobs)
    for i in range(len(PROMPTS)):
        ids = rollouts.tokens.input_ids[i][rollouts.tokens.attention_mask[i].bool()]
        start = len(ids) - len(rollouts.completion_ids()[i])
        with torch.no_grad():
            logp = [
                actor(input_ids=ids[None, :t]).logits[0, -1].log_softmax(-1)[ids[t]] for t in range(start, len(ids))
            ]
        found = rollouts.logprobs[i, rollouts.tokens.mask[i]]
        torch.testing.assert_close(found, torch.stack(logp), atol=1e-4, rtol=1e-4)


def test_drawing_in_chunks_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(7, 50, generator=generator).log_softmax(-1)
    uniforms = torch.rand(7, dtype=torch.float64, generator=generator)
    whole = draw_tokens(logprobs, uniforms)
    for size in (1, 120, 350):
        monkeypatch.setattr("dvpo_lib.rl.sampling.token_sampling.CHUNK", size)
        assert torch.equal(draw_tokens(logprobs, uniforms), whole)
