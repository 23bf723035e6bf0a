"""Suites of published problems: questions about slots from dialogues, and problems of mathematics and science."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from chat_families import tokenizer_of
from conftest import ROOT
from published_dialogues import made_up_dialogue

from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.published.suites import slot_questions
from dvpo_lib.tasks.published.suites.slot_questions import SlotSettings, first_wrong_slot_word, slot_world
from dvpo_lib.tasks.published.suites.worlds import chat_prompt

PUBLISHED = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Real data: 30 dialogues of each of two services, one of another, one of two services."""
    place = tmp_path_factory.mktemp("real")
    records = [made_up_dialogue(i, service) for service in ("Food_1", "Food_2") for i in range(30)]
    records += [made_up_dialogue(40, "Banks_1"), {**made_up_dialogue(41, "Food_1"), "services": ["Food_1", "Banks_1"]}]
    (place / "sgd" / "dev").mkdir(parents=True)
    (place / "sgd" / "dev" / "dialogues_001.json").write_text(json.dumps(records))
    return place


CFG = SlotSettings(trained={"life": ("Food_1",)}, unseen={"life": ("Food_2",)}, turns=3, earlier=0.6, questions=4)


def test_questions_come_from_their_own_dialogues(folder):
    """Each split has dialogues of its own; unseen services are tested alone; the right answer has the full reward."""
    world = slot_world("slots", CFG, folder)
    assert set(world.splits) == {"demonstrations", "train", "test", "ood"}
    numbers = {}
    for split, records in world.splits.items():
        assert len({r["prompt"] for r in records}) == len(records) > 0
        assert {r["domain"] for r in records} == {"life"}
        numbers[split] = {word.rstrip(".") for r in records for word in r["prompt"].split() if word[:-1].isdigit()}
    assert numbers["train"] and not numbers["train"] & (numbers["test"] | numbers["demonstrations"])
    shown = world.splits["demonstrations"]
    assert {r["kind"] for r in shown} == set(slot_questions.KINDS)
    answers, said = [r["answer"] for r in shown], [r["completion"] for r in shown]
    assert tasks.FAMILIES["slots"].reward([""] * len(shown), said, answer=answers) == [1.0] * len(shown)
    assert all(world.first_wrong_word(r, r["completion"]) is None for r in shown)
    assert "completion" not in world.splits["train"][0]
    again = slot_world("slots", CFG, folder)
    assert again.splits == world.splits


def test_a_question_shows_what_it_asks_for(folder):
    """By hand: a value of the last turn, of an earlier one, no preference, and what was never said."""
    by_kind = {r["kind"]: r for r in slot_world("slots", CFG, folder).splits["demonstrations"]}
    last = by_kind["said last"]
    assert json.loads(last["answer"]).keys() <= {"seats", "city"} and last["steps"] == 1
    earlier = by_kind["said earlier"]
    assert "Assistant: Where?" in earlier["prompt"] and "User: " in earlier["prompt"]
    assert by_kind["no preference"]["completion"] == "kind = dontcare"
    [(slot, values)] = json.loads(by_kind["not said"]["answer"]).items()
    assert values == ["none"] and by_kind["not said"]["prompt"].rstrip().endswith(slot)
    several = by_kind["several slots"]
    assert several["steps"] == 2 and len(several["completion"].split("\n")) == 2


@pytest.mark.parametrize(
    ("completion", "where"),
    [
        ("city = New York\ntime = 6 pm", None),
        ("time = 6 pm\ncity = new york.", None),
        ("city = New Haven\ntime = 6 pm", 3),
        ("city = New York\ntime = 7 pm", 6),
        ("city = New", 2),  # the value ends too early
        ("town = New York", 0),
        ("", None),
    ],
)
def test_the_first_wrong_word_of_an_answer(completion, where):
    record = {"answer": json.dumps({"city": ["New York"], "time": ["6 pm", "18:00"]})}
    assert first_wrong_slot_word(record, completion) == where


@pytest.mark.parametrize("family", ["ChatML", "Mistral"])
def test_prompts_are_written_by_the_chat_template(family):
    """A template that knows no system role gets its text in front of the question."""
    text = chat_prompt(tokenizer_of(family), "city", "Write it.")
    assert "Write it." in text and text.index("Write it.") < text.index("city")
    assert ("system" in text) == (family == "ChatML")
    assert chat_prompt(None, "city", "Write it.") == "Write it.\n\ncity\n"


def test_a_service_without_dialogues_is_named(folder):
    cfg = SlotSettings(trained={"life": ("Food_1",)}, unseen={"life": ("Homes_1",)})
    with pytest.raises(ValueError, match=r"tasks\.slots: the services of `ood` have no dialogue in the data"):
        slot_world("slots", cfg, folder)


@pytest.mark.skipif(not (PUBLISHED / "sgd").is_dir(), reason="the published dialogues are not here")
def test_the_published_dialogues_give_right_demonstrations():
    cfg = SlotSettings(
        trained={"transport": ("Flights_3", "RideSharing_1")}, unseen={"transport": ("RentalCars_1",)}, turns=3
    )
    world = slot_world("slots", cfg, PUBLISHED)
    shown = world.splits["demonstrations"]
    rewards = tasks.FAMILIES["slots"].reward(
        shown, [r["completion"] for r in shown], answer=[r["answer"] for r in shown]
    )
    assert len(shown) > 100 and sum(rewards) / len(rewards) > 0.99


@pytest.mark.parametrize("name", ["gsm8k", "mmlu"])
@pytest.mark.skipif(not (PUBLISHED / "mmlu").is_dir(), reason="the published problems are not here")
def test_problems_are_split_and_judged(name):
    cfg = tasks.TaskSettings(math=None, science=None, dialogue=None, **{name: dict(train=200, test=40)})
    world = tasks.build_worlds(cfg, str(PUBLISHED))[name]
    prompts = [{r["prompt"] for r in records} for records in world.splits.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) and all(prompts)
    length = {split: sum(len(r["prompt"]) for r in records) / len(records) for split, records in world.splits.items()}
    assert length["ood"] > 1.5 * length["test"]
    shown = world.splits["demonstrations"][:20]
    reward, said = tasks.FAMILIES[name].reward, [r["completion"] for r in shown]
    assert reward(shown, said, answer=[r["answer"] for r in shown]) == [1.0] * len(shown)
