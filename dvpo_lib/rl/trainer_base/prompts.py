"""Prompts of a run: checked before training, drawn without replacement in an order of their own each epoch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from dvpo_lib.common.seeds import generator_for
from dvpo_lib.models.chat_templates import chat_template_of, is_messages
from dvpo_lib.models.tokens import check_text, encode_prompts

Record = Mapping[str, Any]


class PromptChecks:
    """Errors by record number, before anything is sampled.

    Args:
        tokenizer: Of the policy.
        longest: Tokens of a prompt at most, None if the model sets no limit.
        template: Further arguments of the chat template.
    """

    def __init__(self, tokenizer, longest: int | None, template: dict | None = None):
        self.tokenizer, self.longest, self.template = tokenizer, longest, template or {}
        self.chat = chat_template_of(tokenizer, **self.template)

    def check(self, record: Record, number: int) -> None:
        """Raises:
        ValueError: If the record has no prompt, an empty one, or one that leaves no room for a completion.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"record {number} is no mapping of columns but {str(record)[:80]!r}")
        if "prompt" not in record:
            raise ValueError(f"record {number} has no column 'prompt'; it has {sorted(record)}")
        prompt = record["prompt"]
        if prompt in ("", []):
            raise ValueError(f"record {number}: the prompt is empty")
        if not isinstance(prompt, str) and not is_messages(prompt):
            raise ValueError(f"record {number}: prompt {str(prompt)[:80]!r} is neither a text nor a list of messages")
        if is_messages(prompt) and self.chat is None:
            raise ValueError(f"record {number}: the prompt has messages, but the tokenizer has no chat template")
        pieces = [prompt] if isinstance(prompt, str) else [str(message.get("content")) for message in prompt]
        for piece in pieces:
            check_text(piece, f"record {number}: the prompt")
        if (
            isinstance(prompt, str)
            and prompt.isspace()
            and not self.tokenizer(prompt, add_special_tokens=False).input_ids
        ):
            raise ValueError(f"record {number}: the prompt is empty, it has no tokens")
        if self.longest is None:
            return
        pieces = [prompt] if isinstance(prompt, str) else [repr(message) for message in prompt]
        if sum(len(piece.encode()) for piece in pieces) + 32 * len(pieces) < self.longest:
            return  # a token has at least a byte
        tokens = len(encode_prompts(self.tokenizer, [prompt], self.chat)[0])
        if tokens > self.longest:
            raise ValueError(
                f"record {number}: the prompt's {tokens} tokens and max_completion_length do not fit into the model's "
                f"positions; a prompt may have {self.longest} tokens"
            )


class PromptMeans:
    """Means of the rewards that prompts have had so far in a run.

    Attributes:
        sums: {prompt: [sum, count]} of known rewards.
    """

    def __init__(self, sums: Mapping[str, Sequence[float]] | None = None):
        self.sums = {prompt: [float(total), float(count)] for prompt, (total, count) in (sums or {}).items()}

    def add(self, prompts: Sequence[Any], rewards: Sequence[float]) -> None:
        """Adds rewards; NaN is none."""
        for prompt, reward in zip(prompts, rewards, strict=True):
            if not math.isnan(reward):
                entry = self.sums.setdefault(json.dumps(prompt), [0.0, 0.0])
                entry[0] += reward
                entry[1] += 1

    def of(self, prompts: Sequence[Any]) -> list[float]:
        """The means; NaN for a prompt without a reward."""
        found = [self.sums.get(json.dumps(prompt)) for prompt in prompts]
        return [math.nan if entry is None else entry[0] / entry[1] for entry in found]


class PromptStream:
    """Endless prompts of a dataset, epoch after epoch; any part of it can be read again.

    Args:
        dataset: `datasets.Dataset`, list of records, or an iterable without length, which is read in its own order.
        checks: Of each record: of all before training if the dataset has a length, else as they come.
        seed: Of the orders.
        shuffle: A new order each epoch; else the dataset's own.

    Attributes:
        size: Records of an epoch; None if unknown.
    """

    def __init__(self, dataset, checks: PromptChecks, seed: int, shuffle: bool = True):
        self.dataset, self.checks, self.seed, self.shuffle = dataset, checks, seed, shuffle
        self.size = len(dataset) if hasattr(dataset, "__len__") else None
        self._epoch, self._order = -1, None
        self._records: Iterator[Record] | None = None  # of an iterable, and the place that it has reached
        self._place = 0
        if self.size == 0:
            raise ValueError("train_dataset has no records")
        if self.size is not None:
            self._check_all()

    def take(self, start: int, count: int) -> list[Record]:
        """Records `start` to `start + count - 1` of the stream."""
        if self.size is None:
            return self._read_on(start, count)
        places = [self._place_of(i) for i in range(start, start + count)]
        if hasattr(self.dataset, "column_names"):  # a table is far quicker by columns
            columns = self.dataset[places]
            return [dict(zip(columns, values)) for values in zip(*columns.values())]
        return [self.dataset[i] for i in places]

    def _place_of(self, i: int) -> int:
        epoch, place = divmod(i, self.size)
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.size, generator=generator_for(self.seed, "prompts", epoch)).tolist()
        return self._order[place]

    def _read_on(self, start: int, count: int) -> list[Record]:
        if self._records is None or start != self._place:
            self._records = self._endless()
            next(itertools.islice(self._records, start, start), None)
        self._place = start + count
        return list(itertools.islice(self._records, count))

    def _endless(self) -> Iterator[Record]:
        for epoch in itertools.count():
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            number = -1
            for number, record in enumerate(self.dataset):
                self.checks.check(record, number)
                yield record
            if number < 0:
                raise ValueError("train_dataset has no records")

    def _check_all(self) -> None:
        columns = getattr(self.dataset, "column_names", None)
        if columns is None:
            records: Sequence[Record] = self.dataset
        elif "prompt" not in columns:
            raise ValueError(f"train_dataset has no column 'prompt'; it has {columns}")
        else:
            records = [{"prompt": prompt} for prompt in self.dataset["prompt"]]
        for number in range(self.size):
            self.checks.check(records[number], number)
