"""Sampling by `transformers`: `generate` with this library's random streams, and continuous batching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig, LogitsProcessor

from dvpo_lib.common.seeds import row_uniforms, seed_for
from dvpo_lib.models.causal_lm import inner_model
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.tokens import pad_rows
from dvpo_lib.rl.sampling.engines import Completions, EngineError, Sampling, SamplingCuts, SamplingEngine
from dvpo_lib.rl.sampling.token_sampling import BuiltinSampler, draw_tokens


class GenerateSampler(BuiltinSampler):
    """`model.generate`: whatever cache it can use, and the tokens that the built-in sampler draws.

    Args:
        cache: `cache_implementation` of `transformers`, such as "static"; None: the model's own.
    """

    def __init__(self, cache: str | None = None):
        self.cache = cache

    @torch.no_grad()
    def complete_rows(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        streams: Sequence[int],
        starts: Sequence[int],
        how: Sampling,
        device,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ids, attention = (x.to(device) for x in pad_rows(prompts, pad, left=True))
        drawn = DrawnTokens(attention, streams, starts, how)
        config = GenerationConfig(
            max_new_tokens=how.max_completion_length,
            do_sample=False,  # the processor draws, and leaves one token
            eos_token_id=list(ends),
            pad_token_id=pad,
            cache_implementation=self.cache,
        )
        with _generation_config(policy, config) as model:
            whole = model.generate(input_ids=ids, attention_mask=attention, logits_processor=[drawn])
        completion = whole[:, ids.shape[1] :]
        ended = torch.isin(completion, torch.tensor(ends, device=device))
        mask = ended.cumsum(1) - ended.long() == 0
        return completion, torch.stack(drawn.logprobs, 1), mask


class DrawnTokens(LogitsProcessor):
    """Draws each row's token by its own stream, and leaves no other one to `generate`.

    Args:
        attention: (B, P) attention mask of the prompts.
        streams: Number of each row's stream.
        starts: Index in it of the first number.
        how: Settings of sampling.

    Attributes:
        logprobs: (B,) log-probabilities of the drawn tokens, step by step.
    """

    def __init__(self, attention: Tensor, streams: Sequence[int], starts: Sequence[int], how: Sampling):
        self.attention, self.how, self.processors = attention, how, how.cuts.processors()
        self.logprobs: list[Tensor] = []
        if how.temperature:
            numbers = row_uniforms(how.seed, streams, starts, how.max_completion_length)
            self.uniforms = torch.from_numpy(numbers).to(attention.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits, width = scores.float() / (self.how.temperature or 1.0), self.attention.shape[1]
        if self.processors:  # padding is no text
            first = input_ids.gather(1, self.attention.argmax(1, keepdim=True))
            prompt = torch.where(self.attention.bool(), input_ids[:, :width], first)
            text = torch.cat([prompt, input_ids[:, width:]], 1)
            for processor in self.processors:
                logits = processor(text, logits)
        logp = logits.log_softmax(-1)
        greedy = self.how.temperature == 0
        token = logp.argmax(-1) if greedy else draw_tokens(logp, self.uniforms[:, len(self.logprobs)])
        self.logprobs.append(logp.gather(-1, token[:, None]).squeeze(-1))
        return torch.full_like(scores, -torch.inf).scatter(-1, token[:, None], 0.0)


class ContinuousSampler(SamplingEngine):
    """Continuous batching of `transformers`, on a paged cache, in the precision of the weights.

    One random stream serves all rows, so that a row's tokens depend on the others and on the number of processes. All
    prompts stand in the queue before the first step: else threads would decide which are read together.

    Args:
        settings: Of `transformers.ContinuousBatchingConfig`.
    """

    def __init__(self, settings: dict[str, Any] | None = None):
        memory = {"max_memory_percent": 0.5}  # for updates need some, too
        self.settings = {"auto_switch_to_flash": False, **memory, **(settings or {})}  # flash takes no float32

    @torch.no_grad()
    def complete(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        how: Sampling,
        starts: Sequence[int],
    ) -> Completions:
        cuts, streams = how.cuts, how.streams(len(prompts))
        if cuts != SamplingCuts(cuts.top_p, cuts.top_k):
            raise ValueError("continuous batching of transformers supports no min_p, repetition_penalty")
        limits = [how.max_completion_length - start for start in starts]
        config = GenerationConfig(
            do_sample=how.temperature > 0,
            temperature=how.temperature or 1.0,
            top_k=cuts.top_k or None,
            top_p=cuts.top_p,
            eos_token_id=list(ends),
            pad_token_id=pad,
        )
        seed = seed_for(how.seed, *streams[:1], *starts[:1]) % 2**63
        batching = ContinuousBatchingConfig(**{**self.settings, "return_logprobs": True, "seed": seed})
        with inference_mode_of(policy), _generation_config(policy, config) as model, _forked_generators(model.device):
            manager = model.init_continuous_batching(config, batching)
            for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True)):
                manager.add_request(list(ids), str(i), limit)
            manager.start()
            try:
                answers = _results(manager, len(prompts))
            finally:
                manager.stop()
                manager.destroy()
        return Completions([a.generated_tokens for a in answers], [a.logprobs for a in answers])


def _results(manager, count: int) -> list[Any]:
    """The outputs of requests 0, 1, 2 ... once all are there.

    Raises:
        EngineError: If the manager fails.
    """
    found: dict[str, Any] = {}
    while len(found) < count:
        result = manager.get_result(timeout=1.0)
        problem = result.error if result is not None else None if manager.is_running() else "its thread ended"
        if problem:
            raise EngineError(f"continuous batching of transformers failed: {problem}")
        if result is not None and result.is_finished():
            found[result.request_id] = result
    return [found[str(i)] for i in range(count)]


@contextmanager
def _generation_config(policy, config: GenerationConfig) -> Iterator[Any]:
    """The model with this configuration alone: `generate` would fill it up from a checkpoint's own."""
    model = inner_model(policy)
    before, model.generation_config = model.generation_config, config
    try:
        yield model
    finally:
        model.generation_config = before


@contextmanager
def _forked_generators(device: torch.device) -> Iterator[None]:
    """Global generators are as before afterwards: continuous batching seeds them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
