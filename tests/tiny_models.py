"""Tiny random models of real architectures, by name."""

from __future__ import annotations

import torch
import transformers as hf

VOCABULARY = 64
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
WITH_HEADS = COMMON | dict(head_dim=8)
GEMMA = WITH_HEADS | dict(query_pre_attn_scalar=8, sliding_window=16)
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
)
GPT2 = dict(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
OPT = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    ffn_dim=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    word_embed_proj_dim=8,  # narrower than the hidden states, as in OPT-350M
    pad_token_id=0,
)
MAMBA2 = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_heads=4,
    head_dim=8,
    state_size=8,
    n_groups=1,
    num_hidden_layers=2,
    chunk_size=8,
    pad_token_id=0,
)


def _gemma3_multimodal():
    text = hf.Gemma3TextConfig(**GEMMA)
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )
    return hf.Gemma3ForConditionalGeneration(config)


BUILDERS = {
    "Llama": lambda **changes: hf.LlamaForCausalLM(hf.LlamaConfig(**WITH_HEADS | changes)),
    "Qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**COMMON)),
    "Qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**WITH_HEADS)),
    "Qwen3-MoE": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**WITH_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    ),
    "Gemma 2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA, final_logit_softcapping=2.0)),
    "Gemma 3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA)),
    "Gemma 3, multimodal": _gemma3_multimodal,
    "GPT-2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "OPT": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT, do_layer_norm_before=False)),
    "Mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**WITH_HEADS, sliding_window=16)),
    "Mamba2": lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**MAMBA2)),
    "LFM2": lambda: hf.Lfm2ForCausalLM(hf.Lfm2Config(**COMMON, layer_types=["conv", "full_attention"])),
    "Cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**COMMON, logit_scale=0.25)),
    "Granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**COMMON, logits_scaling=3.0)),
}


def tiny_model(name: str, **changes):
    """A model of this architecture in eval mode; global generators are left alone. Llama takes other settings, too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BUILDERS[name](**changes).eval()
