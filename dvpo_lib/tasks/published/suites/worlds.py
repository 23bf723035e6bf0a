"""Published problems as a world of the chain: fixed splits of records, and prompts by the policy's chat template."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedWorld:
    """A family whose problems are read, not generated.

    Attributes:
        name: Of the family.
        splits: {split: records}; demonstrations have a `completion`.
        words: Empty: a pretrained model brings its vocabulary.
        wrong_word: As `World.first_wrong_word`; None if no word of an answer can be called the first wrong one.
    """

    name: str
    splits: Mapping[str, list[dict]]
    words: tuple[str, ...] = ()
    wrong_word: Callable[[Mapping, str], int | None] | None = None

    def first_wrong_word(self, record: Mapping, completion: str) -> int | None:
        """Index of the first wrong word of a completion; None if there is none, or none that is known."""
        return self.wrong_word(record, completion) if self.wrong_word else None


def chat_prompt(tokenizer: Any, question: str, system: str | None = None) -> str:
    """A question as a prompt: by the tokenizer's chat template, or, without one, as plain text with a line feed.

    Templates without the role of a system get its text in front of the question.
    """
    whole = "\n\n".join(text for text in (system, question) if text)
    if getattr(tokenizer, "chat_template", None) is None:
        return f"{whole}\n"
    if system:
        from jinja2 import TemplateError  # comes with whatever renders templates

        with contextlib.suppress(TemplateError):
            parts = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            return tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
    messages = [{"role": "user", "content": whole}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def share_of(text: str) -> float:
    """A number in [0, 1) by a hash of a text, for splits that do not depend on the order of records."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2**32
