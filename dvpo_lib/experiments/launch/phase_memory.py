"""Memory of the phases of an iteration, in bytes beyond weights, gradients and optimiser states.

Networks run on fake tensors. Losses and estimators, which look at numbers, run on a few real tokens; what they take
grows with the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from dvpo_lib.experiments.launch.allocations import AllocationTrace, gradient_bytes
from dvpo_lib.functional.categorical import BinLogits
from dvpo_lib.functional.critic_losses import return_scale
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.functional.token_chunks import fits_one_chunk, map_token_chunks
from dvpo_lib.models.architectures import hidden_states, output_layer, text_backbone, text_config
from dvpo_lib.models.causal_lm import CachedReader
from dvpo_lib.models.critic import CriticSettings, critic_objective, monotone_outputs
from dvpo_lib.models.modes import inference_mode_of, learning_mode_of
from dvpo_lib.models.policy import logprob_reader, token_logits
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience, advantages_of
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.sampling.token_sampling import draw_tokens

FEW_TOKENS = 16  # a response, in the runs on real numbers


def mixed_precision(args: DVPOConfig) -> AbstractContextManager:
    """The autocast of a run."""
    kind = torch.float16 if args.fp16 else torch.bfloat16
    return torch.autocast("cpu", kind, enabled=bool(args.bf16 or args.fp16))


def uniform_tokens(rows: int, prompt: int, length: int) -> Tokens:
    """Rows of equal length; the numbers do not matter."""
    ids = torch.zeros(rows, prompt + length, dtype=torch.long)
    return Tokens(ids, torch.ones_like(ids), torch.ones(rows, length, dtype=torch.bool))


def sampling_bytes(actor: nn.Module, args: DVPOConfig, rows: int, groups: int, prompt: int) -> dict[str, int]:
    """Sampling of the last token, when the cache is longest, or of the first one, if reading prompts takes more.

    Args:
        actor: Fake policy.
        rows: Completions sampled together.
        groups: Different prompts among them.
        prompt: Tokens of a prompt.
    """
    before_last = prompt + args.max_completion_length - 1
    with torch.no_grad(), inference_mode_of(actor), AllocationTrace() as trace:
        with mixed_precision(args):
            reader = CachedReader(actor)
            logits = reader.start(*_text(groups, prompt))
            if reader.can_select() and groups < rows:
                reader.select(torch.zeros(rows, dtype=torch.long))
                logits = logits[:1].expand(rows, -1)
            _draw(logits, args)
            peak = trace.peak
            del reader, logits
            reader = CachedReader(actor)
            logits = reader.start(*_text(rows, before_last - 1))
            if reader.cache is not None:
                trace.restart_peak()
            logits = reader.step(*_text(rows, 1, before_last))
            _draw(logits, args)
            peak = max(peak, trace.peak)
            held = trace.held
            del reader
            cache = held - trace.held
    return {"KV cache": cache, "logits and the rest": peak - cache}


def _text(rows: int, length: int, attended: int | None = None) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(rows, length, dtype=torch.long)
    return ids if attended is None else ids[:, 0], torch.ones(rows, attended or length, dtype=torch.long)


def _draw(logits: Tensor, args: DVPOConfig) -> None:
    logits = logits.float() / args.temperature
    logp = logits.log_softmax(-1)
    token = draw_tokens(logp, torch.zeros(len(logp), dtype=torch.float64))
    logp.gather(-1, token[:, None])


def policy_update_bytes(policy: nn.Module, args: DVPOConfig, prompt: int) -> dict[str, int]:
    """A micro-batch of the policy's update.

    Args:
        policy: Fake.
        prompt: Tokens of a prompt.
    """
    with AllocationTrace() as trace, learning_mode_of(policy, dropout=not args.disable_dropout):
        tokens = uniform_tokens(args.per_device_train_batch_size, prompt, args.max_completion_length)
        gradients = _first_gradients(policy, args)
        with mixed_precision(args):
            layer, numbers, length = output_layer(policy), text_config(policy).vocab_size, tokens.completion_length
            if layer is None or fits_one_chunk(tokens.mask.numel(), numbers):
                states, logits_of = token_logits(policy, tokens), lambda logits: logits
            else:
                inputs = {name: x[:, :-1] for name, x in tokens.model_inputs().items()}
                states, logits_of = hidden_states(text_backbone(policy), inputs)[:, -length:], layer
            before = trace.held
            trace.restart_peak()
            reader = logprob_reader(logits_of, args.temperature, True, args.entropy_coef > 0)
            logprobs, _ = map_token_chunks(reader, numbers, states, tokens.input_ids[:, -length:])
            del states
            logits = trace.peak - before
        logprobs.backward(torch.empty_like(logprobs))
        peak = trace.peak - gradients
    return {"activations": max(0, peak - logits), "logits": logits}


def _first_gradients(network: nn.Module, args: DVPOConfig) -> int:
    """Gradients as the last micro-batch of a step finds them; returns the bytes that they have after it."""
    for parameter in network.parameters():
        found = parameter.requires_grad and args.gradient_accumulation_steps > 1
        parameter.grad = torch.empty_like(parameter) if found else None
    return gradient_bytes(network)


def critic_update_bytes(critic: nn.Module, args: DVPOConfig, prompt: int, loss: int, statistics: int) -> dict[str, int]:
    """A micro-batch of the critic's update, or the statistics of the whole step before it, if they take more.

    Args:
        critic: Fake.
        prompt: Tokens of a prompt.
        loss: Bytes per token of the loss, by `critic_loss_bytes`.
        statistics: Bytes per token of the statistics.
    """
    rows, length = args.per_device_train_batch_size, args.max_completion_length
    with AllocationTrace() as trace, learning_mode_of(critic, dropout=not args.disable_dropout):
        gradients = _first_gradients(critic, args)
        with mixed_precision(args):
            outputs = _tensors_of(critic(uniform_tokens(rows, prompt, length)))
        heads = sum(x.nbytes for x in outputs) + rows * length * loss
        standing = trace.held - sum(x.nbytes for x in outputs)
        torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
        peak = max(trace.peak, standing + heads) - gradients
    step = rows * args.gradient_accumulation_steps * length * statistics
    if step > peak:
        return {"activations": 0, "quantile heads and loss": step}
    return {"activations": max(0, peak - heads), "quantile heads and loss": min(heads, peak)}


def _tensors_of(outputs: Tensor | QValues | BinLogits) -> list[Tensor]:
    """The outputs of a critic that its loss learns from."""
    if isinstance(outputs, QValues):
        return [x for name, x in vars(outputs).items() if name != "best" and x is not None]
    return [outputs if isinstance(outputs, Tensor) else outputs.logits]


def critic_loss_bytes(args: DVPOConfig) -> tuple[int, int]:
    """Bytes per token of the critic's loss with its gradient, beyond the outputs that it starts from, and of the
    statistics of all rows, which a step in micro-batches needs."""
    cfg = args.critic
    if cfg is None or cfg.kind.endswith("_q"):
        return 0, 0  # numbers of single tokens
    rows, mask, z, values = _few_values(cfg)
    targets, weights = torch.randn(*mask.shape, 1), torch.ones(rows, cfg.heads) if cfg.kind == "quantile" else None
    outputs = z
    if cfg.kind == "categorical":
        z = torch.randn(*mask.shape, cfg.heads, cfg.bins)
        outputs = BinLogits(z, torch.tensor(cfg.support or (0.0, 1.0)), cfg.quantiles)
    z.requires_grad_()

    def learn() -> None:
        old = values[torch.arange(rows)]  # rows of the batch
        critic_objective(outputs, targets, mask, cfg, old, weights)[0].backward()

    loss = _bytes_per_token(learn, mask, z, values, targets)
    if cfg.kind != "quantile" or args.gradient_accumulation_steps == 1:
        return loss, 0
    return loss, _bytes_per_token(lambda: return_scale(values[torch.arange(rows)], mask), mask, values)


def estimator_bytes(args: DVPOConfig) -> tuple[int, int]:
    """(held, work): bytes per token of the values and targets that a batch keeps, and of the work on advantages."""
    cfg, method = args.critic, METHODS[args.method]
    if cfg is None or cfg.kind.endswith("_q"):
        return 0, 0
    rows, mask, _, values = _few_values(cfg, args.num_generations)
    tokens = Tokens(torch.zeros(rows, FEW_TOKENS + 1, dtype=torch.long), torch.ones(rows, FEW_TOKENS + 1), mask)
    x = Experience(tokens, torch.zeros(mask.shape), None, torch.rand(rows), values, torch.Generator())
    x.final_values = values[:, 0] if cfg.final_state else None
    held = values.nbytes // mask.numel() + advantages_of(method, x, args)[1].nbytes // mask.numel()
    work = _bytes_per_token(lambda: advantages_of(method, x, args), mask, values)
    sorting = _bytes_per_token(lambda: monotone_outputs(lambda tokens: values, tokens), mask, values)
    return held, max(work, sorting)


def _few_values(cfg: CriticSettings, rows: int = 4) -> tuple[int, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (1, 1) if cfg.kind == "scalar" else (cfg.heads, cfg.quantiles)
    z = torch.randn(rows, FEW_TOKENS, *sizes, generator=generator)
    return rows, torch.ones(rows, FEW_TOKENS, dtype=torch.bool), z, z.sort(-1).values


def _bytes_per_token(function: Callable[[], object], mask: Tensor, *given: Tensor) -> int:
    with AllocationTrace([mask, *given]) as trace:
        function()
    return round(trace.peak / mask.numel())
