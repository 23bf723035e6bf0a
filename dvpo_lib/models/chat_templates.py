"""Chat templates: prompts, replies between two turns of the policy, and which tokens are the policy's own.

A policy's tokens are kept as they were sampled; all between the end of its turn and its next first token is rendered by
the template. Tokenizers without a template have no conversations: their dialogues are plain texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

Message = Mapping[str, Any]
USER = ({"role": "user", "content": "a"},)  # a conversation's first message, if its prompt is a text
ANSWER = "\ue000"  # stands for the policy's turn while a conversation is rendered; no template touches it


def is_messages(x) -> bool:
    """Whether a prompt or completion is a list of messages, not a text or token ids."""
    return isinstance(x, list | tuple) and len(x) > 0 and all(isinstance(message, Mapping) for message in x)


def begun_answer(prompt) -> str:
    """The assistant's words at the end of a prompt, which its completion goes on with; empty if there are none."""
    return prompt[-1].get("content") or "" if is_messages(prompt) and prompt[-1].get("role") == "assistant" else ""


def as_messages(reply) -> list[Message]:
    """What the environment says as messages: a text is the user's."""
    if isinstance(reply, str):
        return [{"role": "user", "content": reply}]
    return [reply] if isinstance(reply, Mapping) else list(reply)


class ChatTemplate:
    """Renders a tokenizer's conversations.

    Args:
        tokenizer: With a chat template.
        **template: Further arguments of the template, such as `enable_thinking` or `tools`.

    Attributes:
        turn_end: The token with which the template closes an assistant's turn; None if it is not a special token.
        openings: Token sequences that end a user's or a tool's words and open the assistant's turn.

    Example:
        >>> template = ChatTemplate(tokenizer)  # doctest: +SKIP
        >>> template.prompt_text([{"role": "user", "content": "2 + 2?"}])  # doctest: +SKIP
        '<|im_start|>user\\n2 + 2?<|im_end|>\\n<|im_start|>assistant\\n'
    """

    def __init__(self, tokenizer, **template):
        self.tokenizer, self.template = tokenizer, template

    @cached_property
    def turn_end(self) -> int | None:
        special = set(self.tokenizer.all_special_ids) | {
            i for i, token in getattr(self.tokenizer, "added_tokens_decoder", {}).items() if token.special
        }
        closing = self._ids(self._render([*USER, {"role": "assistant", "content": ANSWER}]).rpartition(ANSWER)[2])
        return next((i for i in closing if i in special), None)

    @cached_property
    def openings(self) -> list[list[int]]:
        return [found for role in ("user", "tool") if (found := self._opening_of(role))]

    def prompt_text(self, prompt: Sequence[Message]) -> str:
        """The prompt up to the policy's first token. The policy goes on with an assistant's last message."""
        if prompt[-1].get("role") == "assistant":
            return self._render(prompt, continue_final_message=True)
        return self._render(prompt, add_generation_prompt=True)

    def reply_ids(self, prompt: Sequence[Message], replies: Sequence[Message], earlier: Sequence[Message] = ()):
        """Tokens between the end of a policy's turn and its next first token.

        Args:
            prompt: The conversation's first messages.
            replies: What was said after the turn.
            earlier: Messages between the prompt and the turn.
        """
        before = [*prompt, *earlier]
        if before[-1].get("role") == "assistant":  # the turn went on with it
            before.pop()
        whole = self._render([*before, {"role": "assistant", "content": ANSWER}, *replies], add_generation_prompt=True)
        ids = self._ids(whole.rpartition(ANSWER)[2])
        return ids[ids.index(self.turn_end) + 1 :] if self.turn_end in ids else ids

    def completion_ids(self, prompt: Sequence[Message], completion: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Tokens of a completion's messages, and which of them are the policy's own.

        The tokens are those that the sampler gives if the policy says the assistant's words.

        Raises:
            ValueError: If the first message is not the assistant's.
        """
        if completion[0].get("role") != "assistant":
            raise ValueError(f"a completion starts with a message of the assistant, not {completion[0]!r}")
        ids: list[int] = []
        own: list[bool] = []
        place = 0
        while place < len(completion):
            stop = place
            if completion[place].get("role") == "assistant":
                spoken = self._spoken_ids(prompt, completion, place)
                ids, own, stop = ids + spoken, own + [True] * len(spoken), place + 1
            end = stop
            while end < len(completion) and completion[end].get("role") != "assistant":
                end += 1
            if end > stop:
                heard = self.reply_ids(prompt, completion[stop:end], completion[:place])
                ids, own = ids + heard, own + [False] * len(heard)
            place = end
        return ids, own

    def own_tokens(self, ids: Sequence[int], ends: Sequence[int]) -> list[bool]:
        """Which tokens of a sampled completion are the policy's: all but those from an end to the next opening."""
        own, speaking, start = [], True, 0
        for place, token in enumerate(ids):
            own.append(speaking)
            if speaking and token in ends:
                speaking, start = False, place + 1
            elif not speaking:
                speaking = any(list(ids[start : place + 1][-len(o) :]) == o for o in self.openings)
        return own

    def _opening_of(self, role: str) -> list[int]:
        """The end that replies of a role have in common; empty if the template does not know the role."""
        try:
            one, other = (self.reply_ids(USER, [{"role": role, "content": word}]) for word in "ab")
        except Exception:  # templates raise errors of their own kinds
            return []
        same = 0
        while same < min(len(one), len(other)) and one[-1 - same] == other[-1 - same]:
            same += 1
        return one[len(one) - same :]

    def _spoken_ids(self, prompt: Sequence[Message], completion: Sequence[Message], place: int) -> list[int]:
        """A turn of the assistant with its end; calls of tools as the template writes them."""
        words = completion[place].get("content") or ""
        if completion[place].get("tool_calls"):
            head = self.prompt_text([*prompt, *completion[:place]])
            whole = self._render([*prompt, *completion[: place + 1]])
            ids = self._ids(whole.removeprefix(head) if whole.startswith(head) else words)
            return ids[: ids.index(self.turn_end) + 1] if self.turn_end in ids else ids
        ids = self._ids(words.removeprefix(begun_answer(prompt)) if place == 0 else words)
        return ids if self.turn_end is None else [*ids, self.turn_end]

    def _render(self, messages: Sequence[Message], **how) -> str:
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, **how, **self.template
        )

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def chat_template_of(tokenizer, **template) -> ChatTemplate | None:
    """The tokenizer's chat template; None if it has none."""
    return ChatTemplate(tokenizer, **template) if getattr(tokenizer, "chat_template", None) else None
