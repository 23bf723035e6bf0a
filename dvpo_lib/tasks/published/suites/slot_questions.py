"""Questions about the slots that a user has given, made from the schema-guided dialogues (SGD).

A question shows the last turns of a conversation and asks for one or more slots of its service::

    User: Find me a table for 2 at half past 11.
    Assistant: In which city?
    User: In San Jose, and I do not mind which kind.

    city, time, date, category
                                    city = San Jose
                                    time = half past 11
                                    date = none
                                    category = dontcare
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.tasks.published.datasets import SOURCES
from dvpo_lib.tasks.published.files import checked_records, load_from_hub, name_record_in_errors, read_source_file
from dvpo_lib.tasks.published.slots import given_slots, normal_slot_name, normal_slot_value
from dvpo_lib.tasks.published.suites.acts import collect_service_slots, dialogue_turns
from dvpo_lib.tasks.published.suites.worlds import PublishedWorld, chat_prompt, share_of

INSTRUCTION = "Write slot = value, or slot = none."
NOT_GIVEN, NO_PREFERENCE = "none", "dontcare"  # the second is the data's own word
KINDS = {  # kind of a question: what makes it hard
    "said last": "given in the user's last turn",
    "said earlier": "given in an earlier turn",
    "no preference": f"the user does not care: {NO_PREFERENCE}",
    "not said": f"not given: {NOT_GIVEN}",
    "several slots": "several slots at once",
}
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SlotSettings:
    """Questions about slots. Dialogues are split by a hash of their name, so no two splits share one."""

    trained: dict[str, tuple[str, ...]]  # {domain: services}: demonstrations, training and in-distribution test
    unseen: dict[str, tuple[str, ...]]  # {domain: services}: out-of-distribution test
    slots: tuple[Count, Count] = (1, 2)  # slots asked for at once, fewest and most
    turns: Count = 2  # turns of the user that are shown at most
    earlier: Share = 0.25  # share of questions that show earlier turns than the last
    not_given: Share = 0.2  # share of slots asked for that the user has not given
    questions: Count = 2  # questions a turn of the user
    demonstrated: Share = 0.4  # share of the trained services' dialogues that are demonstrated
    tested: Share = 0.2  # share that is tested; the rest is trained on
    demonstrations: Count = 1_000  # at most, of each split
    train: Count = 1_000
    test: Count = 256
    seed: Annotated[int, Field(ge=0)] = 7


def slot_token_limit(steps: int) -> int:
    """Token limit of an answer with this many slots, for tokenizers with vocabularies of tens of thousands."""
    return 2 + 18 * steps


def slot_world(name: str, cfg: SlotSettings, folder: str | Path | None = None, tokenizer=None) -> PublishedWorld:
    """Reads the dialogues of the services in `cfg` and makes their questions.

    Args:
        name: Of the family.
        cfg: Services, difficulty and sizes.
        folder: Folder of published files, in which `sgd/` is searched; None: the hub.
        tokenizer: Its chat template writes the prompts; None: plain text.

    Raises:
        SourceError: If the data cannot be had or a record is malformed.
        ValueError: If a split has no question.
    """
    domain = {service: d for part in (cfg.trained, cfg.unseen) for d, services in part.items() for service in services}
    unseen = {service for services in cfg.unseen.values() for service in services}
    dialogues = sorted(_dialogues(folder, domain), key=lambda found: found[0])
    known: dict[str, set[str]] = {}
    for _, service, record in dialogues:
        collect_service_slots({**record, "services": [service]}, known)
    splits: dict[str, list[dict]] = {split: [] for split in ("demonstrations", "train", "test", "ood")}
    for key, service, record in dialogues:
        share = share_of(f"{cfg.seed} {key}")
        split = "demonstrations" if share < cfg.demonstrated else "test" if share >= 1 - cfg.tested else "train"
        split = "ood" if service in unseen else split
        for question in _questions(key, record, sorted(known[service]), cfg):
            splits[split].append({**question, "family": name, "domain": domain[service]})
    for split, records in splits.items():
        order = np.random.default_rng([cfg.seed, len(split)]).permutation(len(records))
        distinct = list({records[i]["prompt"]: records[i] for i in order}.values())
        if not distinct:
            raise ValueError(f"tasks.{name}: the services of `{split}` have no dialogue in the data")
        size = cfg.test if split == "ood" else getattr(cfg, split)
        splits[split] = [
            {c: v for c, v in r.items() if c != "completion" or split == "demonstrations"}
            | {"prompt": chat_prompt(tokenizer, r["prompt"], INSTRUCTION), "question": r["prompt"]}
            for r in distinct[:size]
        ]
    return PublishedWorld(name, splits, wrong_word=first_wrong_slot_word)


def first_wrong_slot_word(record: Mapping, completion: str) -> int | None:
    """Index of the first word that no right answer has there; None if there is none.

    Words of the values are compared line by line, in the order of the completion.
    """
    truth = {normal_slot_name(s): [normal_slot_value(v).split() for v in vs] for s, vs in _answer(record).items()}
    place = 0
    for line in completion.split("\n"):
        words = line.split()
        found = given_slots(line)
        slot = next(iter(found), None)
        if words and slot not in truth:
            return place
        start = len(words) - len(found[slot].split()) if words else 0
        for i in range(start, len(words)):
            said = normal_slot_value(" ".join(words[start : i + 1])).split()
            if not any(value[: len(said)] == said for value in truth[slot]):
                return place + i
        if words and not any(value == found[slot].split() for value in truth[slot]):
            return place + len(words) - 1
        place += len(words)
    return None


def _answer(record: Mapping) -> dict[str, list[str]]:
    return json.loads(record["answer"])


def _dialogues(folder: str | Path | None, services) -> Iterator[tuple[str, str, dict]]:
    """(key, service, record) of each dialogue with a single service that is asked for; the key is its first words."""
    source = SOURCES["sgd"]
    if folder is None:
        tables = [(f"{source.hub} ({split})", load_from_hub("sgd", source, split)) for split in source.splits]
    else:
        files = sorted(p for p in (Path(folder) / "sgd").rglob("*.json*") if p.is_file())
        tables = [(str(file), read_source_file(file)) for file in files]
    for label, table in tables:
        for number, record in checked_records(label, table, source):
            with name_record_in_errors(label, number):
                given = record["services"]
                given = [given] if isinstance(given, str) else list(given)
                if len(given) == 1 and given[0] in services:
                    yield "\n".join(said for _, said, _ in dialogue_turns(record)), given[0], record


def _questions(key: str, record: dict, slots: list[str], cfg: SlotSettings) -> Iterator[dict[str, Any]]:
    """The questions about one dialogue: prompt (no template yet), answer, completion, steps (slots asked for), kind."""
    rng = np.random.default_rng([cfg.seed, int(share_of(key) * 2**32)])
    shown: list[tuple[str, str, dict[str, list[str]]]] = []  # speaker, text, slots that the user gives
    for speaker, said, acts in dialogue_turns(record):
        given = {slot: list(dict.fromkeys(values)) for act, slot, values in acts if act == "INFORM" and values}
        shown.append((speaker, said, given if speaker == "USER" else {}))
        if speaker == "USER":
            for _ in range(cfg.questions):
                yield from _question(shown, slots, cfg, rng)


def _question(shown: list, slots: list[str], cfg: SlotSettings, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """A question about the last turns of a conversation; none if they give nothing to ask about."""
    wanted = int(rng.integers(cfg.slots[0], cfg.slots[1] + 1))
    count = int(rng.integers(2, cfg.turns + 1)) if cfg.turns > 1 and rng.random() < cfg.earlier else 1
    users = [i for i, (speaker, _, _) in enumerate(shown) if speaker == "USER"]
    window = shown[users[max(0, len(users) - count)] :]
    last = window[-1][2]
    given = {slot: values for _, _, told in window for slot, values in told.items()}
    before = {slot for _, _, told in shown[: len(shown) - len(window)] for slot in told}
    absent = [slot for slot in slots if slot not in given and slot not in before]
    asked: dict[str, tuple[list[str], str]] = {}
    for missing in rng.random(wanted) < cfg.not_given:
        pool = [slot for slot in (absent if missing else given) if slot not in asked]
        if not pool:
            continue
        slot = pool[int(rng.integers(len(pool)))]
        values = [NOT_GIVEN] if missing else given[slot]
        kind = "not said" if missing else "no preference" if NO_PREFERENCE in values else "said last"
        asked[slot] = values, "said earlier" if kind == "said last" and slot not in last else kind
    if not asked:
        return
    lines = [said for _, said, _ in window]
    if len(window) > 1:
        lines = [f"{'User' if speaker == 'USER' else 'Assistant'}: {said}" for speaker, said, _ in window]
    names = sorted(asked, key=lambda slot: rng.random())
    yield {
        "prompt": "\n".join([*lines, "", ", ".join(names)]),
        "answer": json.dumps({slot: asked[slot][0] for slot in names}),
        "completion": "\n".join(f"{slot} = {asked[slot][0][0]}" for slot in names),
        "steps": len(names),
        "kind": asked[names[0]][1] if len(names) == 1 else "several slots",
    }
