"""The judge of answers: decided cases by kind, formulas read whole or not at all, real answers raised and respelled."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from pathlib import Path

import pytest
from conftest import ROOT

from dvpo_lib.tasks.published.answers import boxed_answer, judged_text
from dvpo_lib.tasks.published.datasets import load_problems
from dvpo_lib.tasks.published.formulas.equality import same_answer
from dvpo_lib.tasks.published.formulas.reader import is_formula, read_formula
from dvpo_lib.tasks.published.formulas.spelling import comparable_text, respell_formula
from dvpo_lib.tasks.published.formulas.tokens import UnreadFormula
from dvpo_lib.tasks.published.formulas.units import split_unit
from dvpo_lib.tasks.published.options import chosen_letter
from dvpo_lib.tasks.published.slots import given_slots
from dvpo_lib.tasks.published.statements import extract_answer, extract_right_answer
from dvpo_lib.tasks.published.verify import MathReward, answer_reward

CASES = [json.loads(line) for line in (Path(__file__).parent / "answer_cases.jsonl").open(encoding="utf-8")]
HERE = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))


def published(name: str):
    return pytest.mark.skipif(
        not (HERE / name).exists(),
        reason="the published data is not here: set DVPO_REAL_DATA to the folder that holds it",
    )


@pytest.mark.parametrize("kind", sorted({case[0] for case in CASES}))
def test_decided_cases(kind):
    _, verify, answers, completions, right = zip(*(case for case in CASES if case[0] == kind))
    verdicts = answer_reward([""] * len(right), completions, answer=answers, verify=verify)
    wrong = [case[2:] for case, verdict in zip(zip([kind] * len(right), verify, answers, completions, right), verdicts)
             if verdict != case[4]]  # fmt: skip
    assert wrong == [] and len(right) >= 15


# ---- read whole ----

WHOLE = [
    "7",
    "-3.5",
    r"\frac{1}{2}",
    r"2\sqrt{3}",
    "x+1",
    "(1,2)",
    r"\{1,2\}",
    "[1,2)",
    "x=4",
    "x>2",
    r"3\pi+1",
    "2^{10}",
]
REST = [r"\foo", r"\blob{3}", "_7", r"\pmod{5}", r",\ldots", r"\equiv 1", " more or less", "@", r"\text{ or more}",
        "&", "#"]  # fmt: skip


@pytest.mark.parametrize("rest", REST)
def test_a_formula_with_a_rest_that_is_not_understood_is_a_text(rest):
    for formula in WHOLE:
        assert is_formula(formula)
        text = formula + rest
        assert not is_formula(text), text
        assert not same_answer(formula, text) and not same_answer(text, formula) and same_answer(text, f" {text} ")


@pytest.mark.parametrize("formula", WHOLE)
def test_the_beginning_of_a_formula_is_another_answer(formula):
    longer = formula + "+5" if "=" not in formula and ">" not in formula and formula[0] not in r"\([" else None
    for text in filter(None, [longer, formula[:-1], f"({formula}", f"{formula})"]):
        assert not same_answer(formula, text), text


def test_reading_is_cheap_and_bounded():
    hostile = [
        "(" * 5000,
        r"\frac{" * 900,
        "9^" * 700,
        "1" * 5000,
        "x" * 5000,
        r"\sqrt{" * 300 + "}" * 300,
        "1,2" * 400,
    ]
    started = time.process_time()
    assert [text[:9] for text in hostile if is_formula(text)] == []
    assert time.process_time() - started < 1
    with pytest.raises(UnreadFormula, match="nested too deeply"):
        read_formula("(" * 60 + "1" + ")" * 60)
    for cut in ("2+", r"\frac{1}", r"\begin", r"\sqrt[3", "x^", "|x", r"\left(", r"\sum_{k=1}"):
        with pytest.raises(UnreadFormula):
            read_formula(cut)


def test_one_spelling():
    same = [r"\dfrac{1}{2}", r"\tfrac12", "½", r"\frac 1 2", r"\left.\frac{1}{2}\right."]
    assert {respell_formula(text).replace(" ", "") for text in same} == {r"\frac{1}{2}"}
    assert comparable_text(r"\text{ Monday.}") == comparable_text("monday") and comparable_text(
        r"\pmod{8}"
    ) == comparable_text(r"\pmod 8")
    assert split_unit("8 km/h") == ("8", "km/h") and split_unit("8 square metres") == ("8", "m^2")
    assert split_unit("2m") == ("2m", "") and split_unit("8 or more") == ("8 or more", "")


# ---- where an answer stands ----


def test_what_is_judged():
    assert judged_text("<think>5</think> 6") == " 6" and judged_text("<think>5") == judged_text("<answer>5") == ""
    assert boxed_answer(r"\boxed{1} and \boxed{2}") == "1, 2" and boxed_answer(r"\boxed{1} \boxed{1}") == "1"
    assert (
        boxed_answer(r"\boxed{1} so \boxed{2}") == "2"
        and boxed_answer(r"\boxed{1}, \boxed{") == ""
        and boxed_answer("1") is None
    )


HOSTILE = ["$" * 4000, "$a " * 1300, r"\(" * 2000, "answer is " * 400, "answer is " + "(" * 3900, "1," * 2000,
           "A is " * 800,
           "{" * 2000 + "}" * 2000, "a = b, " * 500, "a b c d " * 500, "|" * 4000, "8 " + "km " * 1000, "$1 " * 1300,
           "1 1/1 " * 600, "²" * 4000, "not " * 1000, r"\boxed{" * 500, "=" * 4000,
           "8" + r"\text{m}/" * 400]  # fmt: skip


@pytest.mark.parametrize("before", ["", "The answer is ", "\\boxed{"])
def test_finding_an_answer_takes_little_time(before):
    for text in HOSTILE:
        started = time.process_time()
        extract_answer(judged_text(before + text), is_formula), chosen_letter(before + text), given_slots(before + text)
        assert time.process_time() - started < 2, text[:20]


def test_no_text_raises():
    bits = (
        r"\frac { } ( ) [ ] \boxed{ $ \text{ answer~is~ #### </think> ^ _ 1 2.5 x | \begin{pmatrix} \\ , = < \in~"
        r" \cup~ ! \% \pm~ \sum \{ \} : and~ not~ A ' .~ √ ² \det \mathbb{R} \infty~ 0"
    )
    bits = [bit.replace("~", " ") for bit in bits.split()] + ['"', "\n"]
    draw = random.Random(0)
    for _ in range(1500):
        text = "".join(draw.choices(bits, k=draw.randint(1, 20)))
        chosen_letter(text), given_slots(text), extract_right_answer(text, is_formula)
        given = extract_answer(judged_text(text), is_formula)
        assert not same_answer("7.25", given), text


def test_no_answer_takes_longer_than_its_limit():
    reward = MathReward(seconds=0.5, workers=1)
    slow = ["\\boxed{\\tan(x)+\\sin(x)\\cos(2x)>\\frac{1}{3}}"]
    reward([""], ["\\boxed{4/2}"], ["2"])  # the worker is ready
    started = time.monotonic()
    assert reward([""] * 2, [*slow, "\\boxed{6/2}"], ["(0,1)", "3"]) == [0.0, 1.0]
    assert time.monotonic() - started < 30 and reward.failures == {"limit": 1}
    reward.close()


# ---- real answers ----


def raised(text: str) -> str:
    """The text with its last number raised by one."""
    return re.sub(r"\d+(?=\D*$)", lambda m: str(int(m[0]) + 1), text)


@published("gsm8k/test.jsonl")
def test_answers_of_gsm8k_raised_and_respelled():
    lines = (HERE / "gsm8k" / "test.jsonl").open(encoding="utf-8")
    answers = sorted({json.loads(line)["answer"].rpartition("####")[2].strip().replace(",", "") for line in lines})
    assert len(answers) > 300 and all(map(is_formula, answers))
    answers = answers[::3]
    for spell in ("{:}", "${:}$", "\\${:}", " {:} ", "{:}.00", "{:} dollars", "\\text{{{:}}}", "x = {:}"):
        said = [f"So \\boxed{{{spell.format(answer)}}}." for answer in answers]
        assert answer_reward([""] * len(said), said, answer=answers, verify=["math"] * len(said)) == [1.0] * len(said)
    for form in ("\\boxed{{{}}}", "The answer is {}.", "#### {}"):
        said = [form.format(raised(answer)) for answer in answers]
        assert answer_reward([""] * len(said), said, answer=answers, verify=["math"] * len(said)) == [0.0] * len(said)


@published("mmlu/mmlu_stem.jsonl")
def test_letters_of_mmlu_raised():
    problems = load_problems("mmlu", "test", path=HERE / "mmlu" / "mmlu_stem.jsonl")
    answers = problems["answer"][:400]
    for form in ("\\boxed{{{}}}", "The answer is ({}).", "**Answer: {}**", "{}"):
        own, next_one = ([form.format(chr(ord(a) + step)) for a in answers] for step in (0, 1))
        assert answer_reward([""] * 400, own, answer=answers, verify=["choice"] * 400) == [1.0] * 400
        assert answer_reward([""] * 400, next_one, answer=answers, verify=["choice"] * 400) == [0.0] * 400


@published("sgd/sgd_5domain.jsonl")
def test_slots_of_sgd_raised_and_respelled():
    lines = [json.loads(line) for line in (HERE / "sgd" / "sgd_5domain.jsonl").open(encoding="utf-8")]
    goals = [{slot: values for slot, values in line["goal"].items() if values} for line in lines if line["goal"]]
    answers = [json.dumps(goal) for goal in goals]
    for form in ("{} = {}", "- **{}:** {}", "`{}` = `{}`", "| {} | {} |"):
        said = ["\n".join(form.format(slot, values[0]) for slot, values in goal.items()) for goal in goals]
        assert answer_reward([""] * len(said), said, answer=answers, verify=["slots"] * len(said)) == [1.0] * len(said)
        other = [text + "1" if form == "{} = {}" else text.replace(form[-4:], "", 1) + "\nextra = 1" for text in said]
        assert answer_reward([""] * len(said), other, answer=answers, verify=["slots"] * len(said)) == [0.0] * len(said)
    said = [json.dumps({slot: values[0] for slot, values in goal.items()}) for goal in goals]
    assert answer_reward([""] * len(said), said, answer=answers, verify=["slots"] * len(said)) == [1.0] * len(said)


# ---- counted when loaded ----


def test_right_answers_that_are_texts_are_counted(tmp_path, caplog):
    path = tmp_path / "test.jsonl"
    answers = ["\\frac{1}{2}", "2516_8", "\\text{Evelyn}", "5 \\text{ cm}"]
    path.write_text("".join(json.dumps({"problem": "?", "answer": answer}) + "\n" for answer in answers))
    with caplog.at_level(logging.WARNING):
        load_problems("math500", "test", path=path)
    assert "math500: 2 of 4 right answers are not read whole as formulas and are compared as texts:" in caplog.text
    assert "2516_8" in caplog.text and "Evelyn" in caplog.text
    caplog.clear()
    load_problems("math500", "test", path=path, limit=1)
    assert caplog.text == ""
