"""The table of task families, generated and published, their settings, and the suites and tokenizer built from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.arithmetic import arithmetic_world
from dvpo_lib.tasks.chains import ChainSettings, accuracy_reward, chain_token_limit, final_answer
from dvpo_lib.tasks.dialogue import DialogueSettings, dialogue_token_limit, dialogue_world
from dvpo_lib.tasks.dialogue_rules import user_reply
from dvpo_lib.tasks.dialogue_scores import dialogue_details, dialogue_reward
from dvpo_lib.tasks.facts import facts_world
from dvpo_lib.tasks.published.suites.problem_sets import ProblemSettings, problem_token_limit, problem_world
from dvpo_lib.tasks.published.suites.slot_questions import SlotSettings, slot_token_limit, slot_world
from dvpo_lib.tasks.published.suites.worlds import PublishedWorld
from dvpo_lib.tasks.published.verify import choice_reward, math_reward, slots_reward
from dvpo_lib.tasks.suites import SPLITS, World, build_split


class Family(NamedTuple):
    """A task family, as the trainer and the tests see it.

    Attributes:
        build: settings -> the family's `World`; of published families (name, settings, folder, tokenizer) -> world.
        reward: The true reward, 0 to 1, in TRL's signature.
        max_completion_tokens: Number of steps of a problem -> token limit of its completion.
        reply: (record, transcript) -> the user's next turn; None for families with single-turn completions.
        details: Table of scored completions -> {name: value}, reported beside the mean reward.
        answer_of: completion -> its answer, for majority votes; None if completions have no single answer.
        published: Its problems are read from real data, in whole words: they need a pretrained policy.
    """

    build: Callable[..., World]
    reward: Callable[..., list[float]]
    max_completion_tokens: Callable[[int], int]
    reply: Callable[[Mapping, str], str | None] | None = None
    details: Callable[[Any], dict[str, float]] = lambda table: {}
    answer_of: Callable[[str], str | None] | None = None
    published: bool = False

    def max_completion_length(self, records) -> int:
        """Token limit for the longest of these records, by their `steps`."""
        steps = records["steps"] if hasattr(records, "column_names") else [r["steps"] for r in records]
        return self.max_completion_tokens(max(steps))


FAMILIES = {
    "math": Family(arithmetic_world, accuracy_reward, chain_token_limit, answer_of=final_answer),
    "science": Family(facts_world, accuracy_reward, chain_token_limit, answer_of=final_answer),
    "dialogue": Family(dialogue_world, dialogue_reward, dialogue_token_limit, user_reply, dialogue_details),
    "slots": Family(slot_world, slots_reward, slot_token_limit, published=True),
    "other_slots": Family(slot_world, slots_reward, slot_token_limit, published=True),
    "gsm8k": Family(problem_world("gsm8k"), math_reward, problem_token_limit, published=True),
    "mmlu": Family(problem_world("mmlu"), choice_reward, problem_token_limit, published=True),
}
GENERATED = tuple(name for name, family in FAMILIES.items() if not family.published)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TaskSettings:
    """Settings of every family; the field names are the keys of FAMILIES. A family that is null does not take part."""

    math: ChainSettings | None = ChainSettings()
    science: ChainSettings | None = ChainSettings()
    dialogue: DialogueSettings | None = DialogueSettings()
    slots: SlotSettings | None = None  # of some domains
    other_slots: SlotSettings | None = None  # of other domains: the test of transfer
    gsm8k: ProblemSettings | None = None
    mmlu: ProblemSettings | None = None

    @property
    def families(self) -> list[str]:
        """The families that take part, in the order of FAMILIES."""
        return [name for name in FAMILIES if getattr(self, name) is not None]


def build_worlds(
    cfg: TaskSettings, folder: str | None = None, policy: str | None = None, names: Iterable[str] | None = None
) -> dict[str, World | PublishedWorld]:
    """Builds the world of every family that takes part: {family: world}.

    Args:
        cfg: Settings of the families.
        folder: Of real data, for published families; None: the hub.
        policy: Folder or hub name of the policy whose chat template writes the prompts of published families.
        names: Families to build; default: all that take part.
    """
    worlds, tokenizer = {}, None
    for name in cfg.families if names is None else names:
        family, own = FAMILIES[name], getattr(cfg, name)
        if not family.published:
            worlds[name] = family.build(own)
            continue
        tokenizer = tokenizer or (load_tokenizer_of(policy) if policy else None)
        worlds[name] = family.build(name, own, folder, tokenizer)
    return worlds


def load_tokenizer_of(policy: str):
    """The tokenizer of a pretrained policy, by folder or hub name."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(policy)


def build_suites(cfg: TaskSettings, folder: str | None = None, policy: str | None = None):
    """Builds every family's suite: {family: datasets.DatasetDict with the splits of SPLITS}.

    Arguments as of `build_worlds`.
    """
    from datasets import Dataset, DatasetDict

    def records(name: str, world, split: str) -> list[dict]:
        return world.splits[split] if FAMILIES[name].published else list(build_split(world, split, getattr(cfg, name)))

    return {
        name: DatasetDict({s: Dataset.from_list(records(name, w, s)) for s in SPLITS})
        for name, w in build_worlds(cfg, folder, policy).items()
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
