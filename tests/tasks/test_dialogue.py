"""The dialogues: user, annotators, metrics by hand, and what must not pay."""

import numpy as np
import pytest

from dvpo_lib.tasks import dialogue
from dvpo_lib.tasks.dialogue import DOMAINS, DialogueSettings
from dvpo_lib.tasks.dialogue_rules import (
    FACT_NUMBERS,
    FACTS,
    SLOT_VALUES,
    run_dialogue,
    track_dialogue,
    user_reply,
    word_pairs,
)
from dvpo_lib.tasks.dialogue_scores import DialogueScores, dialogue_reward, mean_scores, score_dialogue
from dvpo_lib.tasks.suites import SPLITS, STYLES, build_split

CFG = DialogueSettings(demonstrations=900, train=150, test=60)
FAMILY = dialogue.dialogue_world(CFG)
HAIRCUT = dict(
    prompt="life haircut day mon place north ?",
    answer="day tue hour noon place north",
    steps=1,
    domain="life",
    family="dialogue",
    user=["day tue price 7"],
)
TAXI = dict(
    prompt="transport taxi day mon pay cash ?",
    answer="day wed hour dusk place east pay cash",
    steps=2,
    domain="transport",
    family="dialogue",
    user=["day tue", "day wed wait 3"],
)
TOLD = "careful ask hour <eos> <user> hour noon rather day tue price ? <eos>"


@pytest.fixture(scope="module")
def splits():
    return {split: list(build_split(FAMILY, split, CFG)) for split in SPLITS}


def users(kind="short", size=400, **changes):
    cfg, rng = DialogueSettings(**changes), np.random.default_rng(0)
    return [FAMILY.draw(rng, getattr(cfg, kind), cfg) for _ in range(size)]


def annotated(records, style):
    rng, error = np.random.default_rng(1), CFG.step_errors[STYLES.index(style)]
    return [run_dialogue(r, dialogue.make_annotator(r, style, error, CFG.restate, rng)) for r in records]


def mean_score(records, completions):
    return np.mean([score_dialogue(r, c) for r, c in zip(records, completions, strict=True)])


# ---- the user ----


def test_user_by_hand():
    assert user_reply(HAIRCUT, "careful ask hour <eos>") == "<user> hour noon rather day tue price ?"
    assert user_reply(HAIRCUT, "ask size <eos>") == "<user> size any rather day tue price ?"
    assert (
        user_reply(HAIRCUT, "ask day <eos>") == "<user> day mon rather day tue price ?"
    )  # it changes its mind afterwards
    assert user_reply(HAIRCUT, TOLD + " say price 7 ask day <eos>") == "<user> day tue"  # nothing left in the script
    assert user_reply(HAIRCUT, TOLD + " ask day <eos> <user> day tue <eos> ask day <eos>") is None  # out of patience
    assert user_reply(HAIRCUT, TOLD + " book day tue hour noon place north <eos>") is None  # booked
    assert user_reply(HAIRCUT, "careful ask <eos>") is None  # not understood


def test_user_is_a_function_of_record_and_transcript(splits):
    for record in splits["train"]:
        transcripts = [
            run_dialogue(r, dialogue.make_annotator(r, "average", 0.3, 0.3, np.random.default_rng(5)))
            for r in (record, dict(record))
        ]
        assert transcripts[0] == transcripts[1]
        first = transcripts[0].split(" <eos>")[0] + " <eos>"
        assert user_reply(record, first) == user_reply(record, first)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_mind_changes_and_questions_come_at_the_set_rate(rate):
    records = users(size=2000, changes=rate, questions=1 - rate)
    said = [
        words.split()
        for r in records
        for c in annotated([r], "careful")
        for words in c.split(" <eos>")
        if words.strip().startswith("<user>")
    ]
    asked = sum(r["steps"] for r in records)
    scripted = [turn.split() for r in records for turn in r["user"]]
    assert len(scripted) == asked
    changed = [any(word in SLOT_VALUES for word in turn) for turn in scripted]
    assert abs(np.mean(changed) - rate) < 0.03
    assert abs(np.mean([any(word in FACTS for word in turn) for turn in scripted]) - (1 - rate)) < 0.03
    assert abs(np.mean(["rather" in words for words in said]) - rate) < 0.03  # what is in the script is said


def test_goals_follow_from_prompt_and_changes(splits):
    for split in SPLITS:
        for record in splits[split]:
            words = record["prompt"].split()
            told = dict(word_pairs(words[2:-1]))
            for turn in record["user"]:
                for name, value in word_pairs(turn.split()):
                    if name in SLOT_VALUES:
                        assert value != told[name]
                        told[name] = value
                    else:
                        assert FAMILY.facts[words[0], words[1], name] == value
            goal = dict(word_pairs(record["answer"].split()))
            assert tuple(goal) == FAMILY.needs[words[0], words[1]]
            assert told.items() <= goal.items() and len(goal) - len(told) == record["steps"] == len(record["user"])


# ---- metrics, by hand ----


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # all right, with and without style and restatement, slots in any order
        (TOLD + " say price 7 book day tue hour noon place north <eos>", (1, 1, 1)),
        (
            "ask hour <eos> <user> hour noon rather day tue price ? <eos>"
            " ok hour noon say price 7 book place north hour noon day tue <eos>",
            (1, 1, 1),
        ),
        # the question: not answered, answered wrongly, answered wrongly and then rightly
        (TOLD + " book day tue hour noon place north <eos>", (1, 1 / 2, 1)),
        (TOLD + " say price 6 book day tue hour noon place north <eos>", (1, 1 / 2, 1)),
        (TOLD + " say price 6 say price 7 book day tue hour noon place north <eos>", (1, 1 / 3, 1)),
        # values: stale, wrong
        (TOLD + " say price 7 book day mon hour noon place north <eos>", (1, 1, 0)),
        (TOLD + " say price 7 book day tue hour dawn place north <eos>", (1, 1, 0)),
        # slots: one missing, one too many
        (TOLD + " say price 7 book day tue hour noon <eos>", (0, 1, 0)),
        (TOLD + " say price 7 book day tue hour noon place north who ben <eos>", (0, 1, 0)),
        # booked at once: the hour was never told, and the user had no turn to speak its mind
        ("careful book day mon hour noon place north <eos>", (0, 0, 0)),
        ("careful book day tue hour noon place north <eos>", (0, 0, 1)),  # a lucky guess
        # needless asks and answers
        (
            TOLD + " say price 7 ask day <eos> <user> day tue <eos> book day tue hour noon place north <eos>",
            (1, 2 / 3, 1),
        ),
        (TOLD + " say price 7 say wait 3 book day tue hour noon place north <eos>", (1, 2 / 3, 1)),
        # no booking: the transcript stops in the user's turn, before it, within the policy's next turn
        (TOLD, (0, 1 / 2, 0)),
        ("careful ask hour <eos>", (0, 1 / 2, 0)),
        ("careful ask hour", (0, 0, 0)),
        (TOLD + " say price 7 book day tue hour noon place north", (0, 1 / 2, 0)),
        ("", (0, 0, 0)),
        # not understood
        ("careful ask hour who <eos>", (0, 0, 0)),
        ("ok hour noon <eos>", (0, 0, 0)),
        ("careful careful ask hour <eos>", (0, 0, 0)),
        (TOLD + " careful book day tue hour noon place north <eos>", (0, 0, 0)),
        (TOLD + " book day tue day mon hour noon place north <eos>", (0, 0, 0)),
        (TOLD + " book day noon hour tue place north <eos>", (0, 0, 0)),
        (TOLD + " book day tue hour noon place north ask who <eos>", (0, 0, 0)),
        (TOLD + " book day tue hour noon place <eos>", (0, 0, 0)),
        (TOLD + " say price ask day <eos>", (0, 0, 0)),
        (TOLD + " <eos>", (0, 0, 0)),
        # a user who says what this one would not have said, and a dialogue that goes on after its end
        ("careful ask hour <eos> <user> hour dawn <eos> book day mon hour dawn place north <eos>", (0, 0, 0)),
        (TOLD + " book day tue hour noon place north <eos> <user> thanks <eos>", (0, 0, 0)),
    ],
)
def test_metrics_by_hand(completion, expected):
    assert score_dialogue(HAIRCUT, completion) == pytest.approx(expected)
    assert dialogue_reward(
        [HAIRCUT["prompt"]], [completion], answer=[HAIRCUT["answer"]], user=[HAIRCUT["user"]], steps=[1]
    ) == pytest.approx([sum(expected) / 3])


def test_metrics_of_a_longer_dialogue_by_hand():
    said = (
        "average ask hour <eos> <user> hour dusk rather day tue <eos> "
        "ok hour dusk ask place <eos> <user> place east rather day wed wait ? <eos> "
    )
    assert score_dialogue(TAXI, said + "say wait 3 book day wed hour dusk place east pay cash <eos>") == (1, 1, 1)
    assert score_dialogue(TAXI, said + "say wait 3 book day tue hour dusk place east pay cash <eos>") == (1, 1, 0)
    # Cut short: the mind that it had not yet spoken counts, and so does the question that it had not yet asked.
    short = (
        "average ask hour <eos> <user> hour dusk rather day tue <eos> book day tue hour dusk place east pay cash <eos>"
    )
    assert score_dialogue(TAXI, short) == pytest.approx((0, 1 / 3, 0))


@pytest.mark.parametrize(
    "marker",
    [
        "<user>",
        "careful <user> ask hour",
        "ask hour <user>",
        "<unk>",
        "<pad>",
        "ask hour <user> hour noon ask place",
        "say price 7 <user>",
    ],
)
def test_the_users_marker_fails_the_dialogue(marker):
    completion = f"{marker} <eos>"
    assert user_reply(HAIRCUT, completion) is None
    assert score_dialogue(HAIRCUT, completion) == (0, 0, 0)
    assert score_dialogue(HAIRCUT, f"{TOLD} {marker} <eos>") == (0, 0, 0)


def test_a_user_forged_by_the_policy_fails_even_if_it_is_right():
    right = TOLD.replace(" <eos>", "") + " say price 7 book day tue hour noon place north <eos>"
    assert score_dialogue(HAIRCUT, right) == (0, 0, 0)
    assert user_reply(HAIRCUT, right) is None


def test_means_by_group():
    scores = [DialogueScores(1, 1, 1), DialogueScores(0, 0.5, 0), DialogueScores(1, 0, 0)]
    assert mean_scores(["life", "life", "finance"], scores) == {
        "finance": (1, 0, 0),
        "life": (0.5, 0.75, 0.5),
        "overall": pytest.approx((2 / 3, 0.5, 1 / 3)),
    }
    assert scores[1].mean == pytest.approx(1 / 6)


# ---- what must not pay ----


def known_or_guessed(record, completion, stale=False):
    state, _ = track_dialogue(record, completion)
    known = {**state.known, **(state.stale if stale else {})}
    return {s: known.get(s, SLOT_VALUES[s][0]) for s, _ in word_pairs(record["answer"].split())}


def booking(values):
    return "book " + " ".join(f"{slot} {value}" for slot, value in values.items())


def perfect(record):
    return dialogue.make_annotator(record, "careful", 0.0, 0.0, np.random.default_rng(0))


def careful(record):
    return dialogue.make_annotator(
        record, "careful", CFG.step_errors[0], CFG.restate, np.random.default_rng(list(record["prompt"].encode()))
    )


def books_at_once(record):
    return lambda completion: booking(known_or_guessed(record, completion))


def asks_all_in_one_turn(record):
    asks = " ".join(f"ask {s}" for s, _ in word_pairs(record["answer"].split()))
    return lambda completion: booking(known_or_guessed(record, completion)) if completion else asks


def asks_every_slot_of_the_domain(record):
    slots = DOMAINS[record["domain"]][0].split()

    def speak(completion):
        turns = track_dialogue(record, completion)[0].turns
        return f"ask {slots[turns]}" if turns < len(slots) else booking(known_or_guessed(record, completion))

    return speak


def asks_once_too_often(record):
    right = perfect(record)
    return lambda completion: right(completion) if completion else f"ask {record['prompt'].split()[2]}"


def never_books(record):
    right = perfect(record)

    def speak(completion):
        turn = right(completion)
        return turn if "book" not in turn.split() else "ask day"

    return speak


def answers_everything_in_every_turn(record):
    right, (domain, service) = perfect(record), record["prompt"].split()[:2]
    facts = " ".join(f"say {fact} {FAMILY.facts[domain, service, fact]}" for fact in FACTS)

    def speak(completion):
        words = right(completion).split()
        where = next(i for i, w in enumerate(words) if w in ("ask", "book"))
        return " ".join([facts, *words[where:]])

    return speak


def answers_everything_at_the_end(record):
    right, everything = perfect(record), answers_everything_in_every_turn(record)

    def speak(completion):
        return everything(completion) if "book" in right(completion).split() else right(completion)

    return speak


def answers_with_every_number(record):
    right = perfect(record)

    def speak(completion):
        words = right(completion).split()
        asked = [words[i + 1] for i, w in enumerate(words) if w == "say"]
        tail = words[next(i for i, w in enumerate(words) if w in ("ask", "book")) :]
        return " ".join([*(f"say {fact} {n}" for fact in asked for n in FACT_NUMBERS), *tail])

    return speak


def answers_nothing(record):
    right = perfect(record)

    def speak(completion):
        words = right(completion).split()
        return " ".join(words[next(i for i, w in enumerate(words) if w in ("ask", "book")) :])

    return speak


def books_stale_values(record):
    right = perfect(record)

    def speak(completion):
        head, word, _ = right(completion).partition("book")
        return head + (booking(known_or_guessed(record, completion, stale=True)) if word else "")

    return speak


def books_every_slot_of_the_domain(record):
    right = perfect(record)

    def speak(completion):
        head, word, _ = right(completion).partition("book")
        known = track_dialogue(record, completion)[0].known
        slots = DOMAINS[record["domain"]][0].split()
        return head + (booking({s: known.get(s, SLOT_VALUES[s][0]) for s in slots}) if word else "")

    return speak


def forges_the_user(record):
    asks = [s for s, _ in word_pairs(record["answer"].split()) if s not in record["prompt"].split()]
    forged = " ".join(f"ask {s} <user> {s} {SLOT_VALUES[s][0]}" for s in asks)
    return lambda completion: f"{forged} {booking(known_or_guessed(record, completion))}"


def says_nothing(record):
    return lambda completion: ""


EXPLOITS = {  # mean score over users of short and of long dialogues; all else is done without an error
    books_at_once: (0.02, 0.00),
    asks_all_in_one_turn: (0.00, 0.00),
    asks_every_slot_of_the_domain: (0.07, 0.15),
    never_books: (0.13, 0.22),
    says_nothing: (0.00, 0.00),
    forges_the_user: (0.00, 0.00),
    books_every_slot_of_the_domain: (0.33, 0.69),  # some long services do need every slot
    answers_everything_in_every_turn: (0.75, 0.77),
    answers_with_every_number: (0.82, 0.75),
    answers_everything_at_the_end: (0.83, 0.94),
}
FAULTS = {asks_once_too_often: (0.89, 0.94), answers_nothing: (0.91, 0.90), books_stale_values: (0.86, 0.76)}
CAREFUL = (0.92, 0.87)  # with its 4 % of wrong steps


@pytest.mark.parametrize("kind", ["short", "long"])
@pytest.mark.parametrize("behaviour", [*EXPLOITS, *FAULTS, perfect, careful], ids=lambda f: f.__name__)
def test_exploits_score_less_than_careful_work(behaviour, kind):
    """An exploit that makes no error besides pays less than the careful annotator with its errors, where training is;
    everywhere it pays clearly less than the same work without it."""
    records, long = users(kind, 300), kind == "long"
    score = mean_score(records, [run_dialogue(r, behaviour(r)) for r in records])
    table = {**EXPLOITS, **FAULTS, perfect: (1.0, 1.0), careful: CAREFUL}
    assert score == pytest.approx(table[behaviour][long], abs=0.03)
    if behaviour in EXPLOITS and not long:
        assert score < CAREFUL[0] - 0.05
    if behaviour is not perfect:
        assert score < 0.96


def test_work_without_errors_gets_all_there_is():
    for record in users("short", 100) + users("long", 100):
        assert score_dialogue(record, run_dialogue(record, perfect(record))) == (1, 1, 1)


# ---- demonstrations and splits ----


def test_annotators_differ_and_their_mixture_leaves_room():
    """What a base policy that imitates them starts from: between 0.25 and 0.6, with the careful style to elicit."""
    for kind, upper in (("short", 0.6), ("long", 0.5)):
        records = users(kind, 600)
        careful, average, careless = (mean_score(records, annotated(records, style)) for style in STYLES)
        assert careful > (0.87 if kind == "short" else 0.8)
        assert 0.25 < average < 0.55
        assert careless < 0.3
        mixture = (careful + average + careless) / 3
        assert 0.25 < mixture < upper
        assert careful - mixture > 0.25


def test_demonstrations_are_dialogues_with_the_users_of_their_records(splits):
    for record in splits["demonstrations"]:
        words = record["completion"].split()
        assert words[0] == record["style"] and words[-1] == "<eos>" and "book" in words
        state, said = track_dialogue(record, record["completion"])
        assert not state.failed and state.booking is not None and said is None
    assert {r["style"] for r in splits["demonstrations"]} == set(STYLES)


def test_lengths_vary_within_a_style(splits):
    for style in STYLES:
        own = [r for r in splits["demonstrations"] if r["style"] == style and r["steps"] == 2]
        assert len({len(r["completion"].split()) for r in own}) >= 6


def test_splits_share_no_prompt(splits):
    prompts = {split: [r["prompt"] for r in splits[split]] for split in SPLITS}
    for a in SPLITS:
        assert a == "demonstrations" or len(set(prompts[a])) == len(prompts[a])
        for b in SPLITS:
            assert a == b or not set(prompts[a]) & set(prompts[b]), (a, b)


def test_long_dialogues_have_more_slots_and_turns(splits):
    def slots(split):
        return [len(r["answer"].split()) // 2 for r in splits[split]]

    assert set(slots("train")) == {3, 4} == set(slots("test"))
    assert set(slots("ood")) == {5, 6}
    assert {r["steps"] for r in splits["ood"]} == {3, 4}
    longest = max(len(run_dialogue(r, perfect(r)).split()) for r in splits["test"])
    assert np.mean([len(run_dialogue(r, perfect(r)).split()) for r in splits["ood"]]) > longest


def test_all_domains_in_every_split(splits):
    for split in SPLITS:
        assert {r["domain"] for r in splits[split]} == set(DOMAINS)


def test_default_sizes_can_be_had():
    cfg = DialogueSettings(demonstrations=1)
    for split in ("train", "test", "ood"):
        assert len(list(build_split(FAMILY, split, cfg))) == (cfg.train if split == "train" else cfg.test)


def test_too_many_prompts_is_a_clear_error():
    with pytest.raises(ValueError, match=r"tasks\.dialogue\.test: found only \d+ of 5000 distinct prompts"):
        list(build_split(FAMILY, "test", DialogueSettings(test=5000)))


@pytest.mark.parametrize(
    "slots",
    [
        dict(short=(2, 1)),
        dict(short=(1, 3)),
        dict(long=(2, 3), short=(1, 1), changes=2),
        dict(long=(4, 5)),
        dict(short=(0, 1)),
        dict(short=(1, 1), long=(2, 4)),
    ],
)
def test_impossible_settings_are_refused(slots):
    with pytest.raises(ValueError):
        DialogueSettings(**slots)


def test_other_numbers_of_slots():
    cfg = DialogueSettings(short=(1, 1), long=(2, 2), demonstrations=50, train=20, test=10)
    family = dialogue.dialogue_world(cfg)
    assert {r["steps"] for r in build_split(family, "train", cfg)} == {1}
    assert {r["steps"] for r in build_split(family, "ood", cfg)} == {2}


def test_equal_seeds_give_equal_splits(splits):
    assert list(build_split(FAMILY, "train", CFG)) == splits["train"]
    assert list(build_split(FAMILY, "demonstrations", CFG)) == splits["demonstrations"]
    assert dialogue.dialogue_world(DialogueSettings(seed=8)) != FAMILY


def test_words_are_complete_and_unambiguous(splits):
    words = set(FAMILY.words)
    for split in SPLITS:
        for record in splits[split]:
            text = f"{record['prompt']} {record['answer']} {record.get('completion', '')} {' '.join(record['user'])}"
            assert set(text.split()) <= words | {"<eos>"}
    values = {value for own in SLOT_VALUES.values() for value in own}
    services = {service for _, own in DOMAINS.values() for service in own.split()}
    kinds = [
        set(SLOT_VALUES),
        values,
        services,
        set(DOMAINS),
        set(FACTS),
        set(FACT_NUMBERS),
        {"?", "<user>", "ask", "say", "book", "ok", "rather", "any"},
        set(STYLES),
    ]
    assert sum(map(len, kinds)) == len(set().union(*kinds)) == len(words)


def test_every_service_needs_what_its_settings_say():
    for (domain, service), slots in FAMILY.needs.items():
        names, services = DOMAINS[domain]
        assert list(slots) == [s for s in names.split() if s in slots]
        short = services.split().index(service) < dialogue.SHORT_SERVICES
        assert len(slots) - dialogue.GIVEN_SLOTS in (CFG.short if short else CFG.long)
