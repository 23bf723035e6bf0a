"""Published data sets of mathematics, science and dialogue as problems, by hub name or from files, with one code.

    load_problems("gsm8k", "train", tokenizer=tokenizer)                  from the Hugging Face hub (kept in its cache)
    load_problems("mmlu", "test", path="mmlu_stem.jsonl")                 from a file, or a folder, in the hub's format

Both give a `datasets.Dataset` with the columns `prompt` (by the tokenizer's chat template if it has one), `answer`,
`verify` (which reward function of `verify` judges it: "math", "choice" or "slots") and `source`. `SOURCES` is the table
of data sets. Every record is checked; the first bad one is named by file, record (from 1) and column.

Columns and splits are those of the data sets' cards and of public code that reads them; the hub itself could not be
reached when this was written. gsm8k, mmlu and sgd were tried on published files, the others on small made-up ones.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from dvpo_lib.common.tables import short_repr
from dvpo_lib.tasks.published.answers import boxed_answer
from dvpo_lib.tasks.published.files import (
    BadRecord,
    PublishedSource,
    SourceError,
    checked_records,
    find_split_files,
    load_from_hub,
    name_record_in_errors,
    nested_records,
    read_source_file,
    record_text,
    record_text_list,
    whole_number,
)
from dvpo_lib.tasks.published.formulas.reader import is_formula
from dvpo_lib.tasks.published.statements import answers_compared_as_text
from dvpo_lib.tasks.published.suites.acts import collect_service_slots, sgd_problems

log = logging.getLogger(__name__)

BOX_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER_INSTRUCTION = "Please reason step by step, and put the letter of the right option within \\boxed{}."
_LETTERS = "ABCDEFGHIJ"
STEM_SUBJECTS = (  # in the grouping of Hendrycks et al. (2021): physics to engineering, 18 of 57 subjects
    "astronomy",
    "college_physics",
    "conceptual_physics",
    "high_school_physics",
    "college_chemistry",
    "high_school_chemistry",
    "college_biology",
    "high_school_biology",
    "college_computer_science",
    "computer_security",
    "high_school_computer_science",
    "machine_learning",
    "abstract_algebra",
    "college_mathematics",
    "elementary_mathematics",
    "high_school_mathematics",
    "high_school_statistics",
    "electrical_engineering",
)


# ---- from a record to problems ----


def _options_of(record: dict, column: str, most: int) -> list[str]:
    """A list of two to `most` options."""
    found = record_text_list(record, column)
    if not 2 <= len(found) <= most:
        raise BadRecord(column, f"2 to {most} options are expected, not {len(found)}")
    return found


def _choice_prompt(question: str, listed: list[str]) -> str:
    """A question with its options and the instruction."""
    lines = [f"{letter}. {option}" for letter, option in zip(_LETTERS, listed)]
    return "\n".join([question, *lines, "", LETTER_INSTRUCTION])


def gsm8k_problems(record: dict, _) -> Iterator[tuple[str, str]]:
    """The question, and the answer behind "####" without thousands separators."""
    solution, mark, answer = record_text(record, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise BadRecord("answer", f"holds no `#### final answer`: {(solution + mark + answer)[-60:]!r}")
    yield f"{record_text(record, 'question')}\n\n{BOX_INSTRUCTION}", answer.strip().replace(",", "")


def math500_problems(record: dict, _) -> Iterator[tuple[str, str]]:
    """The problem and the answer as they are."""
    yield f"{record_text(record, 'problem')}\n\n{BOX_INSTRUCTION}", record_text(record, "answer")


def light_r1_problems(record: dict, _) -> Iterator[tuple[str, str]]:
    r"""The problem is what the user says first, the answer the last `\boxed{}` of the reply; without one, nothing."""
    said = {}
    for message in nested_records(record["conversations"], "conversations"):
        speaker, said_text = message.get("from"), message.get("value")
        if not (isinstance(speaker, str) and isinstance(said_text, str)):
            raise BadRecord("conversations", f"a message needs `from` and `value`, not {str(message)[:60]!r}")
        said.setdefault({"human": "user", "gpt": "assistant"}.get(speaker, speaker), said_text)
    for speaker in ("user", "assistant"):
        if not said.get(speaker, "").strip():
            raise BadRecord("conversations", f"nothing is said by the {speaker}")
    answer = boxed_answer(said["assistant"].rpartition("</think>")[2]) or boxed_answer(said["assistant"])
    if answer and answer.strip():
        problem = said["user"].strip()
        yield problem if "\\boxed" in problem else f"{problem}\n\n{BOX_INSTRUCTION}", answer.strip()


def mmlu_problems(record: dict, _) -> Iterator[tuple[str, str]]:
    """The question with its options and the letter of the right one; of other subjects than STEM, nothing."""
    if record_text(record, "subject").replace(" ", "_").lower() not in STEM_SUBJECTS:
        return
    listed, answer = _options_of(record, "choices", 4), record["answer"]
    if isinstance(answer, str) and answer.strip() in tuple(_LETTERS):
        answer = _LETTERS.index(answer.strip())
    place = whole_number(answer)
    if place is None or not 0 <= place < len(listed):
        raise BadRecord("answer", f"0 to {len(listed) - 1} (or a letter) is expected, not {short_repr(answer)}")
    yield _choice_prompt(record_text(record, "question"), listed), _LETTERS[place]


def supergpqa_problems(record: dict, _) -> Iterator[tuple[str, str]]:
    """The question with its options and the letter of the right one."""
    listed, letter = _options_of(record, "options", len(_LETTERS)), record_text(record, "answer_letter").upper()
    if letter not in tuple(_LETTERS[: len(listed)]):
        raise BadRecord("answer_letter", f"A to {_LETTERS[len(listed) - 1]} is expected, not {short_repr(letter)}")
    yield _choice_prompt(record_text(record, "question"), listed), letter


# ---- the table ----

TRAIN, TEST, VALIDATION = {"train": ("train",)}, {"test": ("test",)}, {"validation": ("validation", "val")}
SOURCES = {
    "gsm8k": PublishedSource(
        "openai/gsm8k",
        TRAIN | TEST,
        {"question": ("question",), "answer": ("answer",)},
        "math",
        "math",
        gsm8k_problems,
        config="main",
    ),
    "math500": PublishedSource(
        "HuggingFaceH4/MATH-500",
        TEST,
        {"problem": ("problem",), "answer": ("answer",)},
        "math",
        "math",
        math500_problems,
    ),
    # "stage2" (3 k problems) is a file of the same repository: load it by path. Records without a boxed answer are
    # left out, and counted in a warning.
    "light_r1": PublishedSource(
        "qihoo360/Light-R1-SFTData", TRAIN, {"conversations": ("conversations",)}, "math", "math", light_r1_problems
    ),
    "mmlu": PublishedSource(
        "cais/mmlu",
        TEST | VALIDATION | {"dev": ("dev",)},
        {"question": ("question",), "subject": ("subject", "type"), "choices": ("choices",), "answer": ("answer",)},
        "science",
        "choice",
        mmlu_problems,
        config="all",
    ),
    "supergpqa": PublishedSource(
        "m-a-p/SuperGPQA",
        TRAIN,
        {"question": ("question",), "options": ("options",), "answer_letter": ("answer_letter",)},
        "science",
        "choice",
        supergpqa_problems,
    ),
    # The hub keeps this one as a script, which `datasets` no longer runs, and its parquet copy in a branch.
    "sgd": PublishedSource(
        "google-research-datasets/schema_guided_dstc8",
        TRAIN | {"validation": ("validation", "val", "dev")} | TEST,
        {"services": ("services", "service"), "turns": ("turns",)},
        "dialogue",
        "slots",
        sgd_problems,
        config="dialogues",
        revision="refs/convert/parquet",
        survey=collect_service_slots,
    ),
}


# ---- loading ----


def load_problems(name: str, split: str, path: str | Path | None = None, tokenizer=None, limit: int | None = None):
    """Problems with their answers.

    Args:
        name: A key of SOURCES.
        split: One of its splits.
        path: A file, a folder of `Dataset.save_to_disk`, or a folder that is searched for files of the split, with the
            hub's columns in parquet, JSON lines, JSON or CSV (also with .gz). Without it the hub is asked. Of a folder,
            the files whose name or folder names the split are read; if none names any split, all of them. A file is
            read whole, whatever its name. Values pass as the file has them.
        tokenizer: A tokenizer of `transformers`. With a chat template, a prompt is one message of the user, ready for
            the reply; tokenize it without adding special tokens if the template writes them itself.
        limit: Read only this many problems.

    Returns:
        `datasets.Dataset` with text columns prompt, answer, verify and source.

    Raises:
        SourceError: If the name or the split is unknown, the data cannot be had (with a way to use a local copy), a
            column is missing, a record is bad (named by file, record and column), or there is no problem at all.
    """
    if name not in SOURCES:
        raise SourceError(f"there is no source {name!r}; there are: {', '.join(SOURCES)}")
    source = SOURCES[name]
    if split not in source.splits:
        raise SourceError(f"{name} has no split {split!r}; it has: {', '.join(source.splits)}")
    if limit is not None and limit < 1:
        raise SourceError(f"limit should be at least 1, not {limit}")
    from datasets import Dataset, Features, Value

    if path is None:
        tables = [(f"{source.hub} ({split})", load_from_hub(name, source, split))]
    else:
        tables = [(str(file), read_source_file(file)) for file in find_split_files(Path(path), source, split)]
    known: dict = {}
    problems: list[tuple[str, str]] = []
    empty = 0
    for label, table in tables if source.survey else ():
        for number, record in checked_records(label, table, source):
            with name_record_in_errors(label, number):
                source.survey(record, known)
    for label, table in tables:
        for number, record in checked_records(label, table, source):
            if limit is not None and len(problems) >= limit:
                break
            with name_record_in_errors(label, number):
                found = [tuple(map(_valid_text, pair)) for pair in source.convert(record, known)]
            problems += found
            empty += not found
    if not problems:
        raise SourceError(f"{path or source.hub}: holds no problem of {name} ({empty} records of another kind)")
    if empty and name == "light_r1":
        log.warning("light_r1: %d records without a boxed answer were left out", empty)
    if source.verify == "math":
        _warn_of_unread_answers(name, [answer for _, answer in problems[:limit]])
    table = [
        {"prompt": _problem_prompt(tokenizer, problem), "answer": answer, "verify": source.verify, "source": name}
        for problem, answer in problems[:limit]
    ]
    return Dataset.from_list(table, Features({c: Value("string") for c in ("prompt", "answer", "verify", "source")}))


def _valid_text(part: str) -> str:
    """The text itself.

    Raises:
        BadRecord: If it holds a lone surrogate, which no file and no tokenizer can take.
    """
    if any("\ud800" <= character <= "\udfff" for character in part):
        raise BadRecord("problem or answer", f"holds a lone surrogate: {ascii(part)[:60]}")
    return part


def _warn_of_unread_answers(name: str, answers: list[str]) -> None:
    """Warns of right answers that cannot be read as formulas, with their number and the first of them."""
    texts = answers_compared_as_text(answers, is_formula)
    if texts:
        first = "; ".join(repr(text[:60]) for text in dict.fromkeys(texts[:40]))[:300]
        log.warning(
            "%s: %d of %d right answers are not read whole as formulas and are compared as texts: %s",
            name,
            len(texts),
            len(answers),
            first,
        )


def _problem_prompt(tokenizer, problem: str) -> str:
    """A problem as a prompt: by the tokenizer's chat template, or, without one, as plain text with a line feed."""
    if getattr(tokenizer, "chat_template", None) is None:
        return f"{problem}\n"
    messages = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
