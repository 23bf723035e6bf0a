"""A dialogue while it is sampled: turns of the policy as tokens, turns of the environment by the chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dvpo_lib.models.chat_templates import USER, ChatTemplate, as_messages, begun_answer, is_messages
from dvpo_lib.models.tokens import Prompt


@dataclass
class OpenDialogue:
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
