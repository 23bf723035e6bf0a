"""The world: task families, each with demonstrations, training prompts and tests, as `datasets`.

A family is a row of `FAMILIES`; `build_suites` turns all of them into one `datasets.DatasetDict` per family, and
`build_tokenizer` into one word-level tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.common.jsonl import read_json_lines, record_problem, write_json_lines
from dvpo_lib.tasks import arithmetic as math
from dvpo_lib.tasks import chains, dialogue
from dvpo_lib.tasks import facts as science
from dvpo_lib.tasks.chains import Chains, ChainSettings, accuracy_reward, final_answer
from dvpo_lib.tasks.dialogue import Dialogues, DialogueSettings
from dvpo_lib.tasks.dialogue_rules import dialogue_details, dialogue_reward, reply
from dvpo_lib.tasks.suites import SPLITS, STYLES, World, build_split, hash_split

__all__ = [
    "FAMILIES",
    "SPLITS",
    "STYLES",
    "Chains",
    "ChainSettings",
    "DialogueSettings",
    "Dialogues",
    "Family",
    "TaskSettings",
    "World",
    "accuracy_reward",
    "build_suites",
    "build_tokenizer",
    "dialogue_reward",
    "families",
    "final_answer",
    "hash_split",
    "load_suites",
    "save_suites",
]


class Family(NamedTuple):
    """What trainer and tests need to know of a family.

    Attributes:
        build: settings -> the family's `World`.
        reward: the true reward, 0 to 1, in TRL's signature.
        room: steps of a problem -> tokens that a completion may take.
        reply: (record, transcript) -> what the user says next; None where completions are single answers.
        details: scored completions (a table) -> {name: value}, what is told beside the mean reward.
        answer_of: completion -> its answer, which votes are taken on; None where completions have no single answer.
    """

    build: Callable[..., World]
    reward: Callable[..., list[float]]
    room: Callable[[int], int]
    reply: Callable[[Mapping, str], str | None] | None = None
    details: Callable[[Any], dict[str, float]] = lambda table: {}
    answer_of: Callable[[str], str | None] | None = None

    def max_completion_length(self, records) -> int:
        """Tokens that a completion of any of these records (`steps` tells) may take."""
        steps = records["steps"] if hasattr(records, "column_names") else [r["steps"] for r in records]
        return self.room(max(steps))


FAMILIES = {
    "math": Family(math.family, accuracy_reward, chains.room, answer_of=final_answer),
    "science": Family(science.family, accuracy_reward, chains.room, answer_of=final_answer),
    "dialogue": Family(dialogue.family, dialogue_reward, dialogue.room, reply, dialogue_details),
}


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TaskSettings:
    """Settings of every family."""

    math: ChainSettings = ChainSettings()
    science: ChainSettings = ChainSettings()
    dialogue: DialogueSettings = DialogueSettings()


def families(cfg: TaskSettings) -> dict[str, World]:
    """{name: world} of every family."""
    return {name: family.build(getattr(cfg, name)) for name, family in FAMILIES.items()}


def build_suites(cfg: TaskSettings):
    """All suites: {family: datasets.DatasetDict with the splits demonstrations, train, test, ood}."""
    from datasets import Dataset, DatasetDict

    return {
        name: DatasetDict({s: Dataset.from_list(list(build_split(w, s, getattr(cfg, name)))) for s in SPLITS})
        for name, w in families(cfg).items()
    }


def save_suites(suites, path) -> None:
    """Writes every split as JSON lines, `path/family/split.jsonl`: readable by people, equal bytes for equal data."""
    for name, splits in suites.items():
        (Path(path) / name).mkdir(parents=True, exist_ok=True)
        for split, data in splits.items():
            write_json_lines(Path(path) / name / f"{split}.jsonl", data)


def load_suites(path, splits: tuple[str, ...] = ("train", "test", "ood")):
    """The inverse of `save_suites`, demonstrations only where asked for.

    Raises:
        FileNotFoundError: a split's file is missing.
        ValueError: a line is no JSON record with a prompt and an answer; names file and line.
    """
    from datasets import Dataset, DatasetDict

    def read(file: Path):
        return Dataset.from_list(read_json_lines(file, lambda record: record_problem(record, "prompt", "answer")))

    return {
        name: DatasetDict({split: read(Path(path) / name / f"{split}.jsonl") for split in splits})
        for name in sorted(p.name for p in Path(path).iterdir() if p.is_dir())
    }


def build_tokenizer(cfg: TaskSettings):
    """A word-level `PreTrainedTokenizerFast` over every word of every family: one token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    words = [w for world in families(cfg).values() for w in world.words]
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
