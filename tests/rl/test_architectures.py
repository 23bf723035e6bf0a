"""The sampler on tiny random models of many architectures: log-probabilities, padding, caches, modes, positions."""

import warnings

import pytest
import torch
import transformers as hf

from dvpo_lib.models.causal_lm import forward_inputs
from dvpo_lib.rl.rollouts import sample_answers
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
        logits = model(**forward_inputs(model, input_ids=ids[None], attention_mask=torch.ones_like(ids)[None])).logits[
            0
        ]
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
