"""Malformed inputs: each kind makes an input from a seed, hands it to the library, and judges what comes back.

    python -m malformed                    10,000 inputs; the counts go to benchmarks/fuzz.json
    python -m malformed data_files 17      one input again, with its traceback

An input is accepted, or refused by the library's own error, whose message is one short line that names the file and the
record or key. Anything else is a fault: another exception, a crash, a hang, a message that names nothing.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LONGEST_MESSAGE = 1500  # characters
SECONDS = 30  # on the clock, for one input


SHARES = {  # inputs of each kind, of 10,000
    "settings_files": 2500,  # params.yaml, and settings on the command line
    "settings": 1000,  # settings classes in Python
    "data_files": 2500,  # published data sets
    "real_files": 1000,  # the project's own data files
    "answers": 1500,  # for the judges
    "checkpoints": 500,
    "rewards": 1000,  # of reward functions
}


class Fault(AssertionError):
    """What no input may cause."""


class Hang(BaseException):
    """An input took longer than SECONDS."""


@dataclass
class Case:
    """One input.

    Attributes:
        shown: The input, or what was done to a good one.
        call: Hands it to the library.
        refusals: Exceptions that the library documents.
        names: Regular expression that the message of a refusal matches.
        check: Raises AssertionError if the result of an accepted input is not of its kind.
    """

    shown: str
    call: Callable
    refusals: tuple[type[BaseException], ...] = ()
    names: str = ""
    check: Callable = lambda result: None


def case_random(kind: str, number: int) -> random.Random:
    """The generator of one input: kind and number are all that is needed to make it again."""
    return random.Random(f"{kind} {number}")


def judge_case(case: Case) -> str:
    """Runs one input.

    Returns:
        "accepted" or "refused".

    Raises:
        Fault: If the library does anything else.
    """

    def late(signum, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        result = case.call()
    except Hang:
        raise Fault(f"no answer within {SECONDS} s\n  input: {case.shown[:500]}") from None
    except case.refusals as error:
        message = str(error)
        if len(message) > LONGEST_MESSAGE or "\n" in message or not re.search(case.names, message):
            raise Fault(f"message: {message[:500]!r}, expected {case.names}\n  input: {case.shown[:500]}") from error
        return "refused"
    except BaseException as error:
        raise Fault(f"{type(error).__name__}: {str(error)[:300]}\n  input: {case.shown[:500]}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    try:
        case.check(result)
    except AssertionError as error:
        raise Fault(f"accepted with the wrong result: {error}\n  input: {case.shown[:500]}") from error
    return "accepted"


def make_kind(kind: str, folder: Path) -> Callable[[random.Random], Case]:
    """The generator of a kind of input, which may write below `folder`."""
    if kind == "settings_files":
        from malformed.settings import SettingsFileCases

        return SettingsFileCases(folder)
    if kind == "settings":
        from malformed.settings import settings_case

        return settings_case
    if kind == "data_files":
        from malformed.data_files import DataFileCases

        return DataFileCases(folder)
    if kind == "real_files":
        from malformed.data_files import RealFileCases

        return RealFileCases(folder)
    if kind == "answers":
        from malformed.answers import AnswerCases

        return AnswerCases()
    if kind == "checkpoints":
        from malformed.checkpoints import CheckpointCases

        return CheckpointCases(folder)
    from malformed.rewards import reward_case

    return reward_case
