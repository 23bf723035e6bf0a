"""Dialogues of the schema-guided data set: their turns and acts, and what the user has given at each turn.

turns(record)          (speaker, text, [(act, slot, values)]) of each turn
sgd(record, known)     (problem, answer) for each turn of the assistant
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from dvpo_lib.tasks.published.files import BadRecord, rows, texts

ACTS = (  # the hub's numbers of dialogue acts: positions in this list
    "AFFIRM",
    "AFFIRM_INTENT",
    "CONFIRM",
    "GOODBYE",
    "INFORM",
    "INFORM_COUNT",
    "INFORM_INTENT",
    "NEGATE",
    "NEGATE_INTENT",
    "NOTIFY_FAILURE",
    "NOTIFY_SUCCESS",
    "OFFER",
    "OFFER_INTENT",
    "REQUEST",
    "REQUEST_ALTS",
    "REQ_MORE",
    "SELECT",
    "THANK_YOU",
)


def turns(record: dict) -> Iterator[tuple[str, str, list[tuple[str, str, list[str]]]]]:
    """The turns of a dialogue: speaker ("USER" or "SYSTEM"), text, acts (act, slot, values).

    Read from frames with `actions` (the published files, the hub) or from `acts` (a flat list of [act, slot, values]).
    """
    for number, turn in enumerate(rows(record["turns"], "turns"), start=1):
        try:
            speaker = turn["speaker"]
            speaker = ("USER", "SYSTEM")[speaker] if isinstance(speaker, int) else speaker
            said = turn["utterance"] if "utterance" in turn else turn["text"]
            if speaker not in ("USER", "SYSTEM") or not isinstance(said, str):
                raise KeyError("speaker (USER or SYSTEM) and utterance")
            if "acts" in turn:
                acts = [(act, slot, list(values or ())) for act, slot, values in turn["acts"]]
            else:
                actions = [a for frame in rows(turn["frames"], "turns") for a in rows(frame["actions"], "turns")]
                acts = [
                    (
                        ACTS[a["act"]] if isinstance(a["act"], int) else a["act"],
                        a.get("slot") or "",
                        [*(a.get("values") or ()), *(a.get("canonical_values") or ())],
                    )
                    for a in actions
                ]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadRecord("turns", f"turn {number} is malformed: {error!r}") from None
        yield speaker, said.strip(), acts


def services(record: dict) -> list[str]:
    """The names of the services that a dialogue is about."""
    value = record["services"]
    return [value] if isinstance(value, str) and not value.startswith("[") else texts(record, "services")


def note_slots(record: dict, known: dict[str, set[str]]) -> None:
    """Adds to {service: slots} what the user gives in a dialogue: the schema, as far as the data shows it."""
    acts = [act for speaker, _, acts in turns(record) if speaker == "USER" for act in acts]
    given = {slot for act, slot, _ in acts if act == "INFORM"}
    for service in services(record):
        known.setdefault(service, set()).update(given)


def sgd(record: dict, known: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """A problem for each turn of the assistant: which slots has the user given so far, and with what values?

    The answer is JSON, {slot: [accepted values]}: of each slot the value that the user gave last (acts INFORM), as he
    said it and in its canonical form. Values that the assistant offers and the user accepts are not asked for.
    """
    names = sorted(set().union(*(known[service] for service in services(record))))
    history, given, heard = [], {}, False
    for speaker, said, acts in turns(record):
        if speaker == "SYSTEM" and heard and given:
            yield (
                "\n".join(
                    [
                        f"A user talks to an assistant ({', '.join(services(record))}).",
                        "",
                        *history,
                        "",
                        "Which slots has the user given so far? Write one line for each, `slot = value`, and "
                        f"nothing else. Slots: {', '.join(names)}.",
                    ]
                ),
                json.dumps({slot: given[slot] for slot in sorted(given)}),
            )
        heard = speaker == "USER"
        history.append(f"{'User' if heard else 'Assistant'}: {said}")
        if heard:
            given |= {slot: list(dict.fromkeys(values)) for act, slot, values in acts if act == "INFORM" and values}
