"""The table of generated task families, their settings, and the suites and tokenizer built from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.arithmetic import arithmetic_world
from dvpo_lib.tasks.chains import ChainSettings, accuracy_reward, chain_token_limit, final_answer
from dvpo_lib.tasks.dialogue import DialogueSettings, dialogue_token_limit, dialogue_world
from dvpo_lib.tasks.dialogue_rules import user_reply
from dvpo_lib.tasks.dialogue_scores import dialogue_details, dialogue_reward
from dvpo_lib.tasks.facts import facts_world
from dvpo_lib.tasks.suites import SPLITS, World, build_split


class Family(NamedTuple):
    """A task family, as the trainer and the tests see it.

    Attributes:
        build: settings -> the family's `World`.
        reward: The true reward, 0 to 1, in TRL's signature.
        max_completion_tokens: Number of steps of a problem -> token limit of its completion.
        reply: (record, transcript) -> the user's next turn; None for families with single-turn completions.
        details: Table of scored completions -> {name: value}, reported beside the mean reward.
        answer_of: completion -> its answer, for majority votes; None if completions have no single answer.
    """

    build: Callable[..., World]
    reward: Callable[..., list[float]]
    max_completion_tokens: Callable[[int], int]
    reply: Callable[[Mapping, str], str | None] | None = None
    details: Callable[[Any], dict[str, float]] = lambda table: {}
    answer_of: Callable[[str], str | None] | None = None

    def max_completion_length(self, records) -> int:
        """Token limit for the longest of these records, by their `steps`."""
        steps = records["steps"] if hasattr(records, "column_names") else [r["steps"] for r in records]
        return self.max_completion_tokens(max(steps))


FAMILIES = {
    "math": Family(arithmetic_world, accuracy_reward, chain_token_limit, answer_of=final_answer),
    "science": Family(facts_world, accuracy_reward, chain_token_limit, answer_of=final_answer),
    "dialogue": Family(dialogue_world, dialogue_reward, dialogue_token_limit, user_reply, dialogue_details),
}


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TaskSettings:
    """Settings of every family; the field names are the keys of FAMILIES."""

    math: ChainSettings = ChainSettings()
    science: ChainSettings = ChainSettings()
    dialogue: DialogueSettings = DialogueSettings()


def build_worlds(cfg: TaskSettings) -> dict[str, World]:
    """Builds every family's world: {family: world}."""
    return {name: family.build(getattr(cfg, name)) for name, family in FAMILIES.items()}


def build_suites(cfg: TaskSettings):
    """Generates every family's suite: {family: datasets.DatasetDict with the splits of SPLITS}."""
    from datasets import Dataset, DatasetDict

    return {
        name: DatasetDict({s: Dataset.from_list(list(build_split(w, s, getattr(cfg, name)))) for s in SPLITS})
        for name, w in build_worlds(cfg).items()
    }


def build_tokenizer(cfg: TaskSettings):
    """Builds a word-level `PreTrainedTokenizerFast` over the vocabulary of all families: one token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    words = [w for world in build_worlds(cfg).values() for w in world.words]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(special + words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
