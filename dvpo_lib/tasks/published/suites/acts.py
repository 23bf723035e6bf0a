"""Dialogues of the schema-guided data set (SGD): turns, dialogue acts, and the slots that the user has given so far.

dialogue_turns(record)          (speaker, text, [(act, slot, values)]) of each turn
sgd_problems(record, known)     (problem, answer) for each turn of the assistant
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from dvpo_lib.tasks.published.files import BadRecord, nested_records, record_text_list

DIALOGUE_ACTS = (  # the hub numbers dialogue acts by their position in this list
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


def dialogue_turns(record: dict) -> Iterator[tuple[str, str, list[tuple[str, str, list[str]]]]]:
    """The turns of a dialogue: speaker ("USER" or "SYSTEM"), text, acts (act, slot, values).

    Read from frames with `actions` (the published files, the hub) or from `acts` (a flat list of [act, slot, values]).
    """
    for number, turn in enumerate(nested_records(record["turns"], "turns"), start=1):
        try:
            speaker = turn["speaker"]
            speaker = ("USER", "SYSTEM")[speaker] if isinstance(speaker, int) else speaker
            said = turn["utterance"] if "utterance" in turn else turn["text"]
            if speaker not in ("USER", "SYSTEM") or not isinstance(said, str):
                raise KeyError("speaker (USER or SYSTEM) and utterance")
            if "acts" in turn:
                acts = [(act, slot, list(values or ())) for act, slot, values in turn["acts"]]
            else:
                actions = [
                    a
                    for frame in nested_records(turn["frames"], "turns")
                    for a in nested_records(frame["actions"], "turns")
                ]
                acts = [
                    (
                        DIALOGUE_ACTS[a["act"]] if isinstance(a["act"], int) else a["act"],
                        a.get("slot") or "",
                        [*(a.get("values") or ()), *(a.get("canonical_values") or ())],
                    )
                    for a in actions
                ]
            if not all(isinstance(part, str) for act, slot, values in acts for part in (act, slot, *values)):
                raise TypeError("acts, slots and values should be texts")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadRecord("turns", f"turn {number} is malformed: {error!r}") from None
        yield speaker, said.strip(), acts


def _dialogue_services(record: dict) -> list[str]:
    """The services of a dialogue, by name."""
    value = record["services"]
    return [value] if isinstance(value, str) and not value.startswith("[") else record_text_list(record, "services")


def collect_service_slots(record: dict, known: dict[str, set[str]]) -> None:
    """Adds the slots that the user gives in a dialogue to `known`, {service: slots}: the schema seen in the data."""
    acts = [act for speaker, _, acts in dialogue_turns(record) if speaker == "USER" for act in acts]
    given = {slot for act, slot, _ in acts if act == "INFORM"}
    for service in _dialogue_services(record):
        known.setdefault(service, set()).update(given)


def sgd_problems(record: dict, known: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """A problem for each turn of the assistant: the slots that the user has given so far, with their values.

    The answer is JSON, {slot: [accepted values]}. It holds the last value the user gave for each slot (act INFORM), as
    spoken and in canonical form. Values that the assistant offers and the user accepts are not asked for.
    """
    names = sorted(set().union(*(known[service] for service in _dialogue_services(record))))
    history, given, heard = [], {}, False
    for speaker, said, acts in dialogue_turns(record):
        if speaker == "SYSTEM" and heard and given:
            yield (
                "\n".join(
                    [
                        f"A user talks to an assistant ({', '.join(_dialogue_services(record))}).",
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
