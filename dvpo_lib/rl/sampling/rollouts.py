"""Sampling: single answers, and dialogues turn by turn.

`sample_rollouts` is what trainer and tests call: one completion for each record, by `sample_dialogues` if the records
have an environment (a user, a tool) that replies. Tokens come from a `SamplingEngine`. Each row has a random stream of
its own, so its tokens do not depend on the other rows.

Left out: a cache that lives through a whole dialogue. Each turn reads the history again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dvpo_lib.models.causal_lm import end_tokens, inner_model, position_limit
from dvpo_lib.models.chat_templates import ChatTemplate, begun_answer, chat_template_of, is_messages
from dvpo_lib.models.tokens import Prompt, Tokens, encode_prompts, join_tokens, pad_rows, padding_id
from dvpo_lib.rl.sampling.dialogue_turns import OpenDialogue
from dvpo_lib.rl.sampling.engines import Completions, Sampling, SamplingEngine
from dvpo_lib.rl.sampling.token_sampling import BuiltinSampler


@dataclass
class Rollouts:
    """Sampled completions.

    Attributes:
        tokens: Prompts and completions, B rows.
        logprobs: (B, T) log-probability of each sampled token under the sampling distribution; 0 where masked.
        prompts: Texts, or lists of messages.
        completions: Texts; lists of messages if the prompt is one.
    """

    tokens: Tokens
    logprobs: Tensor
    prompts: list[Prompt]
    completions: list[Any]

    def rows(self, index: Tensor) -> Rollouts:
        """The rows `index`, with padding that none of them needs cut away."""
        tokens, chosen = self.tokens.rows(index.to(self.tokens.mask.device)), index.tolist()
        logprobs = self.logprobs[index.to(self.logprobs.device), : tokens.completion_length]
        return Rollouts(tokens, logprobs, [self.prompts[i] for i in chosen], [self.completions[i] for i in chosen])

    def padded(self, prompt: int, completion: int, fill: int) -> Rollouts:
        """The same rows with places for so many tokens of prompt and of completion, new ones filled with `fill`."""
        left, right = prompt - self.tokens.prompt_length, completion - self.tokens.completion_length
        tokens = Tokens(
            pad(self.tokens.input_ids, (left, right), value=fill),
            pad(self.tokens.attention_mask, (left, right)),
            pad(self.tokens.mask, (0, right)),
        )
        return Rollouts(tokens, pad(self.logprobs, (0, right)), self.prompts, self.completions)

    def completion_ids(self) -> list[list[int]]:
        """The tokens of every completion, the environment's included."""
        length = self.tokens.completion_length
        ids, real = self.tokens.input_ids[:, -length:], self.tokens.attention_mask[:, -length:].bool()
        return [row[kept].tolist() for row, kept in zip(ids.cpu(), real.cpu())]


def sample_rollouts(
    policy,
    tokenizer,
    records: Sequence[Mapping],
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    reply: Callable[[Mapping, Any], Any] | None = None,
    engine: SamplingEngine | None = None,
    **options,
) -> Rollouts:
    """One completion for each record (a mapping with `prompt`): an answer, or a dialogue if there is a `reply`.

    Args:
        policy: Causal LM of `transformers`. It samples in eval mode, under the autocast that it is called in.
        tokenizer: Its tokenizer.
        records: With `prompt`, a text or a list of messages.
        max_completion_length: Tokens at most.
        temperature: Of sampling; 0 is greedy.
        seed: Of the rows' streams.
        reply: As of `sample_dialogues`.
        engine: What samples; None: the built-in sampler.
        **options: `rows`, `cuts` and `template` of `Sampling`.

    Raises:
        ValueError: If a record cannot be sampled from; it is named.
    """
    how = (max_completion_length, temperature, seed, engine)
    if reply is not None:
        return sample_dialogues(policy, tokenizer, records, reply, *how, **options)
    return sample_answers(policy, tokenizer, [record["prompt"] for record in records], *how, **options)


def sample_in_parts(
    policy, tokenizer, records: Sequence[Mapping], *arguments, part_size: int | None, rows: Sequence[int], **options
) -> Rollouts:
    """`sample_rollouts` of at most `part_size` records at a time (None: all): the same tokens, a smaller cache."""
    if part_size is None or len(records) <= part_size:
        return sample_rollouts(policy, tokenizer, records, *arguments, rows=rows, **options)
    starts = range(0, len(records), part_size)
    parts = []
    for start in starts:
        own = records[start : start + part_size]
        streams = rows[start : start + part_size]
        parts.append(sample_rollouts(policy, tokenizer, own, *arguments, rows=streams, **options))
    longest = max(part.tokens.completion_length for part in parts)
    widest = max(part.tokens.prompt_length for part in parts)
    parts = [part.padded(widest, longest, padding_id(tokenizer)) for part in parts]
    tokens = Tokens(*(torch.cat([getattr(part.tokens, f.name) for part in parts]) for f in fields(Tokens)))
    prompts, completions = ([x for part in parts for x in getattr(part, name)] for name in ("prompts", "completions"))
    return Rollouts(tokens, torch.cat([part.logprobs for part in parts]), prompts, completions)


def sample_answers(
    policy,
    tokenizer,
    prompts: Sequence[Prompt],
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    engine: SamplingEngine | None = None,
    **options,
) -> Rollouts:
    """Samples one completion for each prompt, by default from the whole vocabulary.

    Prompts that stand several times one after the other are read once, and rows that have ended are dropped, if the
    model's cache can be indexed.

    Args:
        prompts: Texts or lists of messages; repeat one for several completions.
        **options: As of `sample_rollouts`, which names the other arguments, too.

    Returns:
        Rollouts on the policy's device.
    """
    how = Sampling(max_completion_length, temperature, seed, **options)
    chat = chat_template_of(tokenizer, **how.template) if any(map(is_messages, prompts)) else None
    rows = _checked_prompts(policy, tokenizer, prompts, how, chat)
    ends = end_tokens(policy, tokenizer)
    answers = (engine or BuiltinSampler()).complete(policy, padding_id(tokenizer), ends, rows, how, [0] * len(rows))
    completions = tokenizer.batch_decode(answers.ids, skip_special_tokens=True)
    for i, prompt in enumerate(prompts):
        if is_messages(prompt):
            completions[i] = [{"role": "assistant", "content": begun_answer(prompt) + completions[i]}]
    own = [[True] * len(ids) for ids in answers.ids]
    return _joined_rows(policy, tokenizer, rows, answers, own, list(prompts), completions)


def sample_dialogues(
    policy,
    tokenizer,
    records: Sequence[Mapping],
    reply: Callable[[Mapping, Any], Any],
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
    engine: SamplingEngine | None = None,
    **options,
) -> Rollouts:
    """Samples one dialogue for each record, all side by side: a turn of the policy, the environment's, and so on.

    A dialogue ends if `reply` says so, or if its tokens are used up: then its last turn may lack its end, in the tokens
    and in the text alike. Replies are rendered by the chat template, if the tokenizer has one.

    Args:
        records: With prompt; equal ones next to each other are read once.
        reply: (record, completion so far) -> the environment's next turn: a text (the user's), a message, several
            messages (of tools, say), or None if the dialogue is over. The completion so far is a list of messages if
            the prompt is one, else a text.
        **options: As of `sample_rollouts`, which names the other arguments, too.

    Returns:
        Rollouts on the policy's device; `logprobs` is 0 on the environment's tokens.

    Raises:
        ValueError: If there are no records, or a reply holds an end of turn.
    """
    how = Sampling(max_completion_length, temperature, seed, **options)
    chat = chat_template_of(tokenizer, **how.template)
    ends = end_tokens(policy, tokenizer)
    prompts = _checked_prompts(policy, tokenizer, [record["prompt"] for record in records], how, chat)
    engine, streams = engine or BuiltinSampler(), how.streams(len(records))
    dialogues = [OpenDialogue(tokenizer, chat, ends, i, record["prompt"]) for i, record in enumerate(records)]
    going = dialogues
    while going:
        own = replace(how, rows=[streams[d.number] for d in going])
        texts, starts = [(*prompts[d.number], *d.ids) for d in going], [len(d.ids) for d in going]
        said = engine.complete(policy, padding_id(tokenizer), ends, texts, own, starts)
        still = []
        for d, ids, chances in zip(going, said.ids, said.logprobs, strict=True):
            if not d.say(ids, chances):
                continue
            heard = reply(records[d.number], d.completion())
            if heard is None:
                continue
            answer = d.reply_ids(heard)
            if len(d.ids) + len(answer) < max_completion_length:  # else nothing could be said after it
                d.hear(heard, answer)
                still.append(d)
        going = still
    whole = Completions([d.ids for d in dialogues], [d.logprobs for d in dialogues])
    given, completions = [record["prompt"] for record in records], [d.completion() for d in dialogues]
    return _joined_rows(policy, tokenizer, prompts, whole, [d.own for d in dialogues], given, completions)


def _joined_rows(policy, tokenizer, prompts, found: Completions, own, given: list, completions: list) -> Rollouts:
    device, tokens = inner_model(policy).device, join_tokens(prompts, found.ids, own, tokenizer)
    logprobs = pad_rows(found.logprobs, 0.0, dtype=torch.float32)[0]
    return Rollouts(tokens.to(device), logprobs.to(device), given, completions)


def _checked_prompts(
    policy, tokenizer, prompts: Sequence[Prompt], how: Sampling, chat: ChatTemplate | None
) -> list[tuple[int, ...]]:
    """Token ids of prompts that leave room for a completion."""
    if not prompts:
        raise ValueError("there are no records")
    if chat is not None and chat.turn_end not in (None, *end_tokens(policy, tokenizer)):
        warnings.warn(
            f"the chat template ends turns by {tokenizer.convert_ids_to_tokens(chat.turn_end)!r}, which ends no "
            "response: add it to model.generation_config.eos_token_id",
            stacklevel=3,
        )
    rows, limit = [tuple(ids) for ids in encode_prompts(tokenizer, prompts, chat)], position_limit(policy)
    for i, ids in enumerate(rows):
        if limit is not None and len(ids) + how.max_completion_length > limit:
            raise ValueError(
                f"record {i}: the prompt's {len(ids)} tokens and max_completion_length ({how.max_completion_length}) "
                f"do not fit into the model's {limit} positions"
            )
    return rows
