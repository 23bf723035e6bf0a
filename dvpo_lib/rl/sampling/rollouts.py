"""Sampling: single answers, and dialogues turn by turn.

`sample_answers` is batched, with the model's cache, and stops when every row has ended. `sample_rollouts` is what
trainer and tests call: one completion for each record, by `sample_dialogues` if the records have an environment (a
user, a tool) that replies. Each row has a random stream of its own, so its tokens do not depend on the other rows.

Left out: serving engines (whatever returns a `Rollouts`, vLLM say, can stand behind `sample_answers`'s place), and a
cache that lives through a whole dialogue: each turn reads the history again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dvpo_lib.models.causal_lm import end_tokens, inner_model, position_limit
from dvpo_lib.models.chat_templates import USER, ChatTemplate, as_messages, begun_answer, chat_template_of, is_messages
from dvpo_lib.models.tokens import Prompt, Tokens, encode_prompts, join_tokens, pad_rows, padding_id
from dvpo_lib.rl.sampling.token_sampling import Sampling, sample_tokens


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
        **options: `rows`, `processors` and `template` of `Sampling`.

    Raises:
        ValueError: If a record cannot be sampled from; it is named.
    """
    if reply is not None:
        return sample_dialogues(policy, tokenizer, records, reply, max_completion_length, temperature, seed, **options)
    prompts = [record["prompt"] for record in records]
    return sample_answers(policy, tokenizer, prompts, max_completion_length, temperature, seed, **options)


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
    tokens, logprobs = sample_tokens(policy, padding_id(tokenizer), ends, rows, how, [0] * len(rows))
    completions = tokenizer.batch_decode(tokens.input_ids[:, -tokens.completion_length :], skip_special_tokens=True)
    for i, prompt in enumerate(prompts):
        if is_messages(prompt):
            completions[i] = [{"role": "assistant", "content": begun_answer(prompt) + completions[i]}]
    return Rollouts(tokens, logprobs, list(prompts), completions)


def sample_dialogues(
    policy,
    tokenizer,
    records: Sequence[Mapping],
    reply: Callable[[Mapping, Any], Any],
    max_completion_length: int,
    temperature: float = 1.0,
    seed: int = 0,
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
    streams = list(range(len(records)) if how.rows is None else how.rows)
    dialogues = [_Dialogue(tokenizer, chat, ends, i, record["prompt"]) for i, record in enumerate(records)]
    going = dialogues
    while going:
        own = Sampling(
            max(max_completion_length - len(d.ids) for d in going),
            temperature,
            seed,
            [streams[d.number] for d in going],
            how.processors,
        )
        texts = [(*prompts[d.number], *d.ids) for d in going]
        said, chances = sample_tokens(policy, padding_id(tokenizer), ends, texts, own, [len(d.ids) for d in going])
        lengths, spoken, still = said.mask.sum(1).tolist(), said.input_ids[:, -said.completion_length :].tolist(), []
        for d, length, ids, chance in zip(going, lengths, spoken, chances.tolist(), strict=True):
            length = min(length, max_completion_length - len(d.ids))
            if not d.say(ids[:length], chance[:length]):
                continue
            heard = reply(records[d.number], d.completion())
            if heard is None:
                continue
            answer = d.reply_ids(heard)
            if len(d.ids) + len(answer) < max_completion_length:  # else nothing could be said after it
                d.hear(heard, answer)
                still.append(d)
        going = still
    tokens = join_tokens(prompts, [d.ids for d in dialogues], [d.own for d in dialogues], tokenizer)
    logprobs = pad_rows([d.logprobs for d in dialogues], 0.0, dtype=torch.float32)[0]
    device = inner_model(policy).device
    prompts = [record["prompt"] for record in records]
    return Rollouts(tokens.to(device), logprobs.to(device), prompts, [d.completion() for d in dialogues])


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


@dataclass
class _Dialogue:
    """A dialogue so far: its tokens, and its turns as messages and as text."""

    tokenizer: Any
    chat: ChatTemplate | None
    ends: Sequence[int]
    number: int
    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Mapping] = field(default_factory=list)
    text: str = ""

    def say(self, ids: list[int], logprobs: list[float]) -> bool:
        """The policy's turn; whether it has ended."""
        ended = ids[-1] in self.ends
        self._extend(ids, logprobs, True)
        words = ids[:-1] if ended else ids
        begun = "" if self.turns else begun_answer(self.prompt)
        content = begun + self.tokenizer.decode(words, skip_special_tokens=True)
        self.turns.append({"role": "assistant", "content": content})
        self.text = _joined(self.text, self.tokenizer.decode(words), self.tokenizer.decode(ids[-1:]) if ended else "")
        return ended

    def reply_ids(self, reply) -> list[int]:
        """The tokens of a reply, and all up to the policy's next one."""
        if self.chat is None and not isinstance(reply, str):
            raise ValueError(f"record {self.number}: the reply is no text, and the tokenizer has no chat template")
        contents = [message.get("content") or "" for message in as_messages(reply)]
        words = [self.tokenizer(x, add_special_tokens=False).input_ids for x in contents if isinstance(x, str)]
        if any(token in self.ends for ids in words for token in ids):
            raise ValueError(f"record {self.number}: the reply contains the end of sequence: {reply!r}")
        if self.chat is None:
            return [*words[0], self.ends[0]]
        prompt = self.prompt if is_messages(self.prompt) else USER
        return self.chat.reply_ids(prompt, as_messages(reply), self.turns[:-1])

    def hear(self, reply, ids: list[int]) -> None:
        """The environment's turn, a reply with its tokens of `reply_ids`."""
        self._extend(ids, [0.0] * len(ids), False)
        self.turns += as_messages(reply)
        if self.chat is None:
            self.text = _joined(self.text, reply, self.tokenizer.decode(ids[-1:]))

    def completion(self) -> str | list[Mapping]:
        """All turns: messages if the prompt is a list of messages, else a text."""
        if is_messages(self.prompt):
            return list(self.turns)
        return self.text if self.chat is None else self.tokenizer.decode(self.ids)

    def _extend(self, ids: list[int], logprobs: list[float], own: bool) -> None:
        self.ids, self.logprobs, self.own = self.ids + ids, self.logprobs + logprobs, self.own + [own] * len(ids)


def _joined(*pieces: str) -> str:
    return " ".join(piece for piece in pieces if piece)
