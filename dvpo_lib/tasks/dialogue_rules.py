"""Transcripts of task-oriented dialogues: what the user says next, and how well the policy did.

A record says all about its user: `prompt` (domain, service, slots that the user gives at once), `answer` (slots and
values that it wants in the end), `user` (for each of its turns, the slots that it will change and the facts that it
will ask for, with their true numbers). A completion is the whole dialogue, as in `tasks.dialogue`.

Grammar of a policy's turn:  [STYLE, first turn only]  [ok SLOT VALUE]  {say FACT NUMBER}  then  ask SLOT  or
book SLOT VALUE {SLOT VALUE}.  `ok` restates and is never judged. Anything else ends the dialogue, which counts as
failed: so does a policy that writes the user's marker `<user>`.

The user (`reply`) is a function of its record and of the transcript. It tells the slot that it was asked for (`SLOT
any` where the service does not need it); then, as the record's script has it for this turn, it changes its mind about a
slot that the prompt gave (`rather SLOT VALUE`) and asks a question (`FACT ?`). It leaves after `steps` + 2 turns of the
policy: one for every slot to ask for, one to book, one to spare.

Metrics of one dialogue, from its transcript alone; what they are measured against depends on the record alone, so that
a booking which cuts the user short saves nothing:

    TCR  task completion: 1 where it ends with a booking of exactly the slots that the service needs, each named once
         and each told by the user before, whatever the values.
    ACR  ask completion: done / (due + needless). Due are an `ask` for every slot that the service needs and the prompt
         does not give, and the right `say` for every question of the script. Needless is an `ask` for a slot already
         told or not needed, and a `say` without an open question. A question is closed by its first answer; a wrong
         one is not done.
    GCR  goal completion: 1 where it ends with a booking of the right slots and no others, with the right values: the
         last ones that the user wants, also where its script had no turn left to say so.

All three are 0 in a failed dialogue. A dialogue that ends without a booking (cut by a bound on its length, or out of
turns) has TCR 0 and GCR 0. The reward is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from dvpo_lib.tasks.suites import STYLES

END = "<eos>"  # closes every turn; the tokenizer's end of sequence
USER = "<user>"  # opens every turn of the user
SPARE = 1  # turns that the policy may waste before the user leaves
FACTS = ("price", "wait", "rating")
NUMBERS = tuple("0123456789")
VALUES = {
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


# ---- the dialogue ----


class Turn(NamedTuple):
    """What one turn of the policy says: answers (fact, number), and the slot asked for or the slots booked."""

    says: list[tuple[str, str]]
    ask: str | None
    book: dict[str, str] | None


def parse_turn(words: list[str], first: bool) -> Turn | None:
    """A turn of the policy, or None where it breaks the grammar."""
    words = words[1:] if first and words[:1] and words[0] in STYLES else words
    if words[:1] == ["ok"]:
        if not _pairs_fit(words[1:3]):
            return None
        words = words[3:]
    says = []
    while words[:1] == ["say"]:
        if len(words) < 3 or words[1] not in FACTS or words[2] not in NUMBERS:
            return None
        says.append((words[1], words[2]))
        words = words[3:]
    if words[:1] == ["ask"] and len(words) == 2 and words[1] in VALUES:
        return Turn(says, words[1], None)
    if words[:1] == ["book"] and _pairs_fit(words[1:]):
        return Turn(says, None, dict(pairs(words[1:])))
    return None


def pairs(words: Iterable[str]) -> list[tuple[str, str]]:
    """[a, b, c, d] -> [(a, b), (c, d)]."""
    words = list(words)
    return list(zip(words[::2], words[1::2]))


def _pairs_fit(words: list[str]) -> bool:
    """Whether words are slots, each once, each with one of its values."""
    slots = words[::2]
    return (
        0 < len(slots) == len(set(slots))
        and len(words) % 2 == 0
        and all(value in VALUES.get(slot, ()) for slot, value in pairs(words))
    )


@dataclass
class State:
    """Where a dialogue stands.

    Attributes:
        known: {slot: value} as the user told last. stale: {slot: the value told before}.
        open: {fact: true number} asked by the user and not answered. heard: slots told last, at first by the prompt.
        done, needless: acts of the policy, see ACR. turns: finished turns of the policy.
        booking: what was booked. failed: whether the dialogue broke the rules.
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
    """The words of every finished turn, policy first; a turn that `<eos>` does not close is left out."""
    turns, words = [], []
    for word in completion.split():
        if word == END:
            turns.append(words)
            words = []
        else:
            words.append(word)
    return turns


def follow(record: Mapping, completion: str) -> tuple[State, str | None]:
    """(state after the transcript, what the user says next).

    The user says None where the dialogue is over, and where the transcript ends with its own turn. A transcript in
    which it says anything but what it would have said is a failed dialogue.

    Args:
        record: with prompt, answer and user.
    """
    goal, given = dict(pairs(record["answer"].split())), dict(pairs(record["prompt"].split()[2:-1]))
    state, said, turns = State(known=dict(given), heard=list(given)), None, split_turns(completion)
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
            state.failed = i + 1 < len(turns)  # somebody went on after the end
            return state, None
        if turn.ask in goal and turn.ask not in state.known:
            state.done += 1
        else:
            state.needless += 1
        if state.turns <= len(record["user"]) + SPARE:
            said = _speak(record["user"], goal, turn.ask, state)
    return state, said


def _speak(script: list[str], goal: dict[str, str], asked: str, state: State) -> str:
    """The user's turn after `asked`; `state` takes in what it says."""
    if asked in goal:
        state.known.setdefault(asked, goal[asked])  # what the prompt does not give, it never changes
        state.heard.append(asked)
    words = [USER, asked, state.known.get(asked, "any")]
    for name, value in pairs(script[state.turns - 1].split() if state.turns <= len(script) else []):
        if name in FACTS:
            state.open[name] = value
            words += [name, "?"]
        else:
            state.stale[name], state.known[name] = state.known[name], value
            state.heard.append(name)
            words += ["rather", name, value]
    return " ".join(words)


def reply(record: Mapping, completion: str) -> str | None:
    """The user's next turn, without the `<eos>` that closes it; None: the dialogue is over.

    Args:
        record: of a split. completion: the transcript so far; it ends with a turn of the policy.
    """
    return follow(record, completion)[1]


def hold(record: Mapping, speak: Callable[[str], str], limit: int = 100) -> str:
    """The transcript of a dialogue between the user and `speak`: transcript so far -> the policy's turn, no `<eos>`."""
    completion = ""
    for _ in range(limit):
        completion = f"{completion} {speak(completion)} {END}".strip()
        said = reply(record, completion)
        if said is None:
            break
        completion = f"{completion} {said} {END}"
    return completion


# ---- the metrics ----


class Scores(NamedTuple):
    """TCR, ACR and GCR of one dialogue, or means of them, all in 0..1."""

    tcr: float
    acr: float
    gcr: float

    @property
    def mean(self) -> float:
        return sum(self) / 3


def judge(record: Mapping, completion: str) -> Scores:
    """The metrics of one dialogue.

    Args:
        record: with prompt, answer and user. completion: the whole transcript.
    """
    state, _ = follow(record, completion)
    if state.failed:
        return Scores(0.0, 0.0, 0.0)
    goal, booking = dict(pairs(record["answer"].split())), state.booking
    questions = sum(word in FACTS for turn in record["user"] for word in turn.split())
    completed = booking is not None and booking.keys() == goal.keys() <= state.known.keys()
    acr = state.done / (len(record["user"]) + questions + state.needless)
    return Scores(float(completed), acr, float(booking == goal))


def first_fault(record: Mapping, completion: str) -> int | None:
    """Where the policy first does something wrong; what it forgets to do stands nowhere.

    A turn is wrong that breaks the grammar, asks or says what is needless, answers wrongly, or books other slots or
    values than the user wants in the end.

    Returns:
        Index, among the policy's words and the ends of its turns, of the last word of its first wrong turn, or None.
    """
    turns, goal, done, place = split_turns(completion), dict(pairs(record["answer"].split())), 0, 0
    for i in range(0, len(turns), 2):
        state, _ = follow(record, " ".join(f"{' '.join(words)} {END}" for words in turns[: i + 1]))
        turn = parse_turn(turns[i], first=i == 0)
        due = done + len(turn.says) + (turn.ask is not None) if turn else done
        if state.failed or state.done < due or state.booking not in (None, goal):
            return place + max(0, len(turns[i]) - 1)
        done, place = state.done, place + len(turns[i]) + 1
    return None


def metrics(
    prompts: list[str], completions: list[str], answer: list[str], user: list[list[str]], **columns
) -> list[Scores]:
    """TCR, ACR and GCR of every dialogue; arguments as of a reward function."""
    rows = zip(prompts, completions, answer, user, strict=True)
    return [judge(dict(prompt=p, answer=a, user=u), c) for p, c, a, u in rows]


def dialogue_reward(
    prompts: list[str], completions: list[str], answer: list[str], user: list[list[str]], **columns
) -> list[float]:
    """The mean of TCR, ACR and GCR of every dialogue (a reward function in TRL's signature)."""
    return [scores.mean for scores in metrics(prompts, completions, answer, user)]


def mean_scores(groups: Iterable[str], scores: Iterable[Scores]) -> dict[str, Scores]:
    """{group: mean scores of its dialogues} for the groups (domains, say) that dialogues belong to, and "overall"."""
    found: dict[str, list[Scores]] = {"overall": []}
    for group, own in zip(groups, scores, strict=True):
        found.setdefault(group, []).append(own)
        found["overall"].append(own)
    return {name: Scores(*np.mean(rows, axis=0).tolist()) for name, rows in sorted(found.items())}


def dialogue_details(table) -> dict[str, float]:
    """Mean TCR, ACR and GCR of dialogues, and the mean reward by domain.

    Args:
        table: columns prompt, completion, answer, user, domain.
    """
    scores = metrics(table["prompt"], table["completion"], table["answer"], table["user"])
    means = mean_scores(table["domain"], scores)
    return {**means.pop("overall")._asdict(), **{domain: own.mean for domain, own in means.items()}}
