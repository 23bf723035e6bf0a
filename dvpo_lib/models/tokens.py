"""Batches of tokens: prompts padded left, completions padded right, and the mask of the policy's own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dvpo_lib.functional.final_states import final_positions
from dvpo_lib.models.causal_lm import end_tokens
from dvpo_lib.models.chat_templates import USER, ChatTemplate, Message, chat_template_of, is_messages

Prompt = str | Sequence[Message]


@dataclass
class Tokens:
    """Prompts (padded left) and completions (padded right) side by side, B rows of P + T tokens.

    Attributes:
        input_ids: (B, P + T) token ids.
        attention_mask: (B, P + T) 1 on every real token.
        mask: (B, T) bool, true on the policy's own tokens (end of sequence included): the only ones that may be learned
            from. In a dialogue the user's tokens are attended to but not in `mask`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    @property
    def completion_length(self) -> int:
        return self.mask.shape[1]

    @property
    def prompt_length(self) -> int:
        return self.input_ids.shape[1] - self.mask.shape[1]

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device) -> Tokens:
        """The same tokens on a device."""
        return Tokens(self.input_ids.to(device), self.attention_mask.to(device), self.mask.to(device))

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a forward pass, positions counted from each row's first real token."""
        positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return dict(input_ids=self.input_ids, attention_mask=self.attention_mask, position_ids=positions)

    def rows(self, index: Tensor) -> Tokens:
        """The rows `index`, with padding that none of them needs cut away."""
        attention, mask = self.attention_mask[index], self.mask[index]
        prompt = self.prompt_length
        first = int(attention.any(0).int().argmax())
        last = attention.shape[1] - int(attention.any(0).flip(0).int().argmax())
        first, last = min(first, prompt - 1), max(last, prompt + 1)
        return Tokens(self.input_ids[index, first:last], attention[:, first:last], mask[:, : last - prompt])

    def by_length(self, rows: Tensor) -> Tensor:
        """(R,) the row numbers `rows`, short rows first: micro-batches of rows of like length need little padding."""
        return rows[self.attention_mask[rows].sum(1).argsort(stable=True)]

    def with_final_state(self) -> Tokens:
        """The same with one more column, and one more true position in `mask` after the last own token of each row.

        A critic then also gives the value of the state after the whole response. It never reads the added token.
        """
        mask, last = final_positions(self.mask), self.attention_mask[:, -1:]
        ids = torch.cat([self.input_ids, self.input_ids[:, -1:]], 1)
        attention = torch.cat([self.attention_mask, torch.zeros_like(last)], 1)
        attention[:, -mask.shape[1] :] |= mask
        whole = torch.cat([self.mask, torch.zeros_like(mask[:, :1])], 1) | mask
        return Tokens(ids, attention, whole)


def pad_rows(rows: Sequence[Sequence], fill, left: bool = False, dtype=torch.long) -> tuple[Tensor, Tensor]:
    """(values, 1 where real and 0 where padded), both (B, longest row)."""
    lengths = [len(row) for row in rows]
    width = max([1, *lengths])
    gaps = [[fill] * (width - length) for length in lengths]
    whole = [[*gap, *row] if left else [*row, *gap] for gap, row in zip(gaps, rows, strict=True)]
    place, length = torch.arange(width), torch.tensor(lengths, dtype=torch.long)[:, None]
    real = place >= width - length if left else place < length
    return torch.tensor(whole, dtype=dtype).view(len(rows), width), real.long()


def padding_id(tokenizer) -> int:
    """The token that padding consists of: the end of sequence if the tokenizer has none of its own for it.

    Raises:
        ValueError: If it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("the tokenizer has neither a padding token nor an end of sequence: set tokenizer.pad_token")


def join_tokens(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], own: Sequence[Sequence[bool]], tokenizer
) -> Tokens:
    """Tokens of token ids.

    Args:
        prompts: Ids of each prompt.
        completions: Ids of each completion.
        own: For each completion, whether a token is the policy's own.
        tokenizer: For the padding.
    """
    left, seen = pad_rows(prompts, padding_id(tokenizer), left=True)
    right, real = pad_rows(completions, padding_id(tokenizer))
    mask = pad_rows(own, False, dtype=torch.bool)[0]
    return Tokens(torch.cat([left, right], 1), torch.cat([seen, real], 1), mask)


def encode_prompts(tokenizer, prompts: Sequence[Prompt], chat: ChatTemplate | None = None) -> list[list[int]]:
    """Token ids of prompts.

    A text gets the special tokens that the tokenizer puts before texts (a beginning of sequence, in Llama and Gemma),
    unless it starts with them, and none after it. Messages are rendered by the chat template, which writes its own.

    Args:
        tokenizer: Of the policy.
        prompts: Texts, or lists of messages.
        chat: The tokenizer's chat template; None: without further arguments.

    Raises:
        ValueError: If a prompt is empty, holds a lone surrogate, or has messages and the tokenizer no chat template.
    """
    chat = chat or (chat_template_of(tokenizer) if any(map(is_messages, prompts)) else None)
    texts = []
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"record {i}: the prompt is empty")
        if is_messages(prompt) and chat is None:
            raise ValueError(f"record {i}: the prompt is a list of messages, but the tokenizer has no chat template")
        texts.append(chat.prompt_text(prompt) if is_messages(prompt) else prompt)
        check_text(texts[-1], f"record {i}: the prompt")
    start, rows = _start_tokens(tokenizer), []
    different = list(dict.fromkeys(texts))  # completions of a group have one prompt
    ids_of = dict(zip(different, tokenizer(different, add_special_tokens=False).input_ids, strict=True))
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = list(ids_of[text])
        if not ids:
            raise ValueError(f"record {i}: the prompt is empty")
        bare = is_messages(prompt) or ids[: len(start)] == start
        rows.append(ids if bare else [*start, *ids])
    return rows


def check_text(text: str, name: str) -> None:
    """ValueError if a text holds a lone surrogate, which no tokenizer reads; `name` opens the message."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds a lone surrogate at character {error.start}: {error.object[error.start]!r}"
        ) from None


def _start_tokens(tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts before a text."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special).input_ids) for special in (False, True))
    place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:place]


def encode_completions(
    tokenizer,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Sequence[int] | Sequence[Message]],
    max_completion_length: int | None = None,
    ends: Sequence[int] | None = None,
    chat: ChatTemplate | None = None,
) -> Tokens:
    """Tokens of prompts and completions, answers and dialogues alike.

    A completion that is a text without an end is one answer, and is closed by the end of sequence. A text that holds
    ends is a dialogue, in which they close every finished turn. Messages are turns by the chat template. Token ids, as
    they were sampled, are taken as they are. In dialogues of tokenizers with a chat template the policy's turn opens
    where the template opens it; else turns alternate, policy first.

    Args:
        tokenizer: Of the policy.
        prompts: Texts, or lists of messages.
        completions: Texts, token ids or lists of messages.
        max_completion_length: Tokens that are kept of each completion; None: all.
        ends: Tokens that end a turn, of `end_tokens`; None: the tokenizer's, and its chat template's.
        chat: The tokenizer's chat template; None: without further arguments.

    Raises:
        ValueError: If a prompt is empty, or a text cannot be read.
    """
    chat = chat or chat_template_of(tokenizer)
    ends = end_tokens(None, tokenizer) if ends is None else ends
    ends = ends if chat is None or chat.turn_end is None else (*ends, chat.turn_end)
    left = encode_prompts(tokenizer, prompts, chat)
    right, own = [], []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if is_messages(completion):
            if chat is None:
                raise ValueError(f"record {i}: the completion has messages, but the tokenizer has no chat template")
            ids, mine = chat.completion_ids(prompt if is_messages(prompt) else USER, completion)
        else:
            ids = list(completion) if not isinstance(completion, str) else _answer_ids(tokenizer, completion, ends, i)
            mine = alternating_turns(ids, ends) if chat is None else chat.own_tokens(ids, ends)
        right.append(ids[:max_completion_length])
        own.append(mine[:max_completion_length])
    return join_tokens(left, right, own, tokenizer)


def _answer_ids(tokenizer, text: str, ends: Sequence[int], record: int) -> list[int]:
    check_text(text, f"record {record}: the completion")
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    return ids if any(i in ends for i in ids) else [*ids, ends[0]]


def alternating_turns(ids: Sequence[int], ends: Sequence[int]) -> list[bool]:
    """Which tokens of a dialogue are the policy's own if turns alternate, policy first, each closed by an end."""
    own, mine = [], True
    for token in ids:
        own.append(mine)
        mine ^= token in ends
    return own


def shuffled_batches(rows: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row indices, each epoch in a new order; its rest opens the next one's first batch."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(rows, generator=generator)])
        yield order[:batch_size]
        order = order[batch_size:]
