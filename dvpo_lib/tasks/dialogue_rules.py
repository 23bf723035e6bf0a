"""Rules of the task-oriented dialogues: the policy's grammar, the simulated user, and the state of a transcript.

A record describes its user completely: `prompt` (domain, service, slots given at once), `answer` (the slots and values
wanted in the end) and `user`, a script: for each of the user's turns, the slots it changes and the facts it asks for,
with their true numbers. A completion is the whole dialogue; `tasks.dialogue` shows one.

Grammar of a policy's turn:  [STYLE, first turn only]  [ok SLOT VALUE]  {say FACT NUMBER}  then  ask SLOT  or
book SLOT VALUE {SLOT VALUE}.  `ok` restates and is never scored. Anything else fails the dialogue, the user's marker
`<user>` included.

The user is a function of its record and the transcript (`user_reply`). It answers the question about a slot (`SLOT any`
if the service does not need the slot), then follows its script for this turn: it may change a slot that the prompt gave
(`rather SLOT VALUE`) and ask a question (`FACT ?`). It leaves after `steps` + 2 turns of the policy: one for each slot
to ask for, one to book, one to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dvpo_lib.tasks.suites import STYLES

END_OF_TURN = "<eos>"  # closes every turn; the tokenizer's end of sequence
USER_MARKER = "<user>"  # opens every turn of the user
SPARE_TURNS = 1  # turns that the policy may waste before the user leaves
FACTS = ("price", "wait", "rating")
FACT_NUMBERS = tuple("0123456789")
SLOT_VALUES = {
    "day": ("mon", "tue", "wed", "thu", "fri", "sat"),
    "hour": ("dawn", "morning", "noon", "dusk", "evening", "night"),
    "place": ("north", "south", "east", "west", "centre", "harbour"),
    "who": ("anna", "ben", "carla", "dan", "eva", "finn"),
    "pay": ("cash", "card", "cheque", "invoice", "voucher", "coins"),
    "size": ("one", "two", "three", "four", "five", "six"),
    "seat": ("window", "aisle", "front", "rear", "upper", "lower"),
    "sign": ("cough", "fever", "rash", "ache", "burn", "sprain"),
    "music": ("jazz", "rock", "folk", "pop", "soul", "swing"),
    "sum": ("100", "200", "300", "400", "500", "600"),
}


class PolicyTurn(NamedTuple):
    """One parsed turn of the policy.

    Attributes:
        says: Answers to questions: (fact, number).
        ask: The slot asked for; None in a booking.
        book: The slots booked; None in a turn that asks.
    """

    says: list[tuple[str, str]]
    ask: str | None
    book: dict[str, str] | None


def parse_turn(words: list[str], first: bool) -> PolicyTurn | None:
    """Parses a turn of the policy; None if it breaks the grammar.

    Args:
        words: The turn, without the end of sequence.
        first: Whether it opens the dialogue, with an optional style token.
    """
    words = words[1:] if first and words[:1] and words[0] in STYLES else words
    if words[:1] == ["ok"]:
        if not _are_slot_values(words[1:3]):
            return None
        words = words[3:]
    says = []
    while words[:1] == ["say"]:
        if len(words) < 3 or words[1] not in FACTS or words[2] not in FACT_NUMBERS:
            return None
        says.append((words[1], words[2]))
        words = words[3:]
    if words[:1] == ["ask"] and len(words) == 2 and words[1] in SLOT_VALUES:
        return PolicyTurn(says, words[1], None)
    if words[:1] == ["book"] and _are_slot_values(words[1:]):
        return PolicyTurn(says, None, dict(word_pairs(words[1:])))
    return None


def word_pairs(words: Iterable[str]) -> list[tuple[str, str]]:
    """[a, b, c, d] -> [(a, b), (c, d)]."""
    words = list(words)
    return list(zip(words[::2], words[1::2]))


def _are_slot_values(words: list[str]) -> bool:
    """Whether words are distinct slots, each followed by one of its values."""
    slots = words[::2]
    return (
        0 < len(slots) == len(set(slots))
        and len(words) % 2 == 0
        and all(value in SLOT_VALUES.get(slot, ()) for slot, value in word_pairs(words))
    )


@dataclass
class DialogueState:
    """State of a dialogue after a transcript.

    Attributes:
        known: {slot: value} as the user last told it.
        stale: {slot: the value told before}.
        open: {fact: true number} of questions not yet answered.
        heard: Slots told in the user's last turn; at first, those of the prompt.
        done: Right acts of the policy, as ACR counts them.
        needless: Needless acts of the policy, as ACR counts them.
        turns: Finished turns of the policy.
        booking: The booking; None before there is one.
        failed: Whether the dialogue broke the rules.
    """

    known: dict[str, str]
    stale: dict[str, str] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)
    done: int = 0
    needless: int = 0
    turns: int = 0
    booking: dict[str, str] | None = None
    failed: bool = False


def split_turns(completion: str) -> list[list[str]]:
    """The words of every finished turn, policy first. A last turn without end of sequence is dropped."""
    turns, words = [], []
    for word in completion.split():
        if word == END_OF_TURN:
            turns.append(words)
            words = []
        else:
            words.append(word)
    return turns


def track_dialogue(record: Mapping, completion: str) -> tuple[DialogueState, str | None]:
    """Replays a transcript.

    A user's turn that differs from what the simulated user would say fails the dialogue: the policy forged it.

    Args:
        record: With prompt, answer and user.
        completion: The transcript so far.

    Returns:
        The state, and the user's next turn; None if the dialogue is over or the transcript ends with a user's turn.
    """
    goal, given = dict(word_pairs(record["answer"].split())), dict(word_pairs(record["prompt"].split()[2:-1]))
    state, said, turns = DialogueState(known=dict(given), heard=list(given)), None, split_turns(completion)
    for i, words in enumerate(turns):
        if i % 2:
            if said is None or words != said.split():
                state.failed = True
                return state, None
            said = None
            continue
        turn = parse_turn(words, first=i == 0)
        state.turns += 1
        if turn is None:
            state.failed = True
            return state, None
        for fact, number in turn.says:
            state.needless += fact not in state.open
            state.done += state.open.pop(fact, None) == number
        state.heard, state.booking = [], turn.book
        if turn.book is not None:
            state.failed = i + 1 < len(turns)  # a turn after the booking
            return state, None
        if turn.ask in goal and turn.ask not in state.known:
            state.done += 1
        else:
            state.needless += 1
        if state.turns <= len(record["user"]) + SPARE_TURNS:
            said = _take_user_turn(record["user"], goal, turn.ask, state)
    return state, said


def _take_user_turn(script: list[str], goal: dict[str, str], asked: str, state: DialogueState) -> str:
    """The user's answer to `ask asked`; updates `state` with what it tells."""
    if asked in goal:
        state.known.setdefault(asked, goal[asked])  # slots that the prompt does not give never change
        state.heard.append(asked)
    words = [USER_MARKER, asked, state.known.get(asked, "any")]
    for name, value in word_pairs(script[state.turns - 1].split() if state.turns <= len(script) else []):
        if name in FACTS:
            state.open[name] = value
            words += [name, "?"]
        else:
            state.stale[name], state.known[name] = state.known[name], value
            state.heard.append(name)
            words += ["rather", name, value]
    return " ".join(words)


def user_reply(record: Mapping, completion: str) -> str | None:
    """The user's next turn, without the closing end of sequence; None if the dialogue is over.

    Args:
        record: With prompt, answer and user.
        completion: The transcript so far, up to the end of a policy's turn.
    """
    return track_dialogue(record, completion)[1]


def run_dialogue(record: Mapping, speak: Callable[[str], str], limit: int = 100) -> str:
    """Runs a dialogue between the user and a policy.

    Args:
        record: With prompt, answer and user.
        speak: The policy: transcript so far -> its next turn, without end of sequence.
        limit: Turns of the policy at most.

    Returns:
        The transcript.
    """
    completion = ""
    for _ in range(limit):
        completion = f"{completion} {speak(completion)} {END_OF_TURN}".strip()
        said = user_reply(record, completion)
        if said is None:
            break
        completion = f"{completion} {said} {END_OF_TURN}"
    return completion
