"""The embedded families: truth, splits, demonstrations, tokenizer."""

import numpy as np
import pytest
from conftest import ROOT

from dvpo_lib.chain import params as config
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.chains import ChainSettings, accuracy_reward, final_answer
from dvpo_lib.tasks.dialogue import DialogueSettings
from dvpo_lib.tasks.facts import RELATIONS, knowledge_base
from dvpo_lib.tasks.suites import SPLITS, hash_split, load_suites, save_suites

SMALL = ChainSettings(demonstrations=600, train=80, test=40)
TALKS = DialogueSettings(demonstrations=600, train=80, test=40)
CFG = tasks.TaskSettings(math=SMALL, science=SMALL, dialogue=TALKS)
CHAINS = [name for name, family in tasks.FAMILIES.items() if family.reply is None and not family.published]


@pytest.fixture(scope="module")
def suites():
    return tasks.build_suites(CFG)


def test_math_truth_by_hand():
    family = tasks.build_worlds(CFG)["math"]
    assert family.prompt("7", ["+5", "*3"]) == "math 7 a +5 b *3 ?"
    assert family.answer("7", ["+5", "*3"]) == "6"  # 12 -> 2, 6
    assert family.answer("3", ["-8"]) == "5"


def test_every_math_operation_is_a_bijection():
    family = tasks.build_worlds(CFG)["math"]
    for op in family.operations:
        assert {family.apply(s, op) for s in family.states} == set(family.states)


def test_every_relation_is_a_permutation_and_depends_on_the_seed():
    facts = knowledge_base(7)
    species = {s for s, _ in facts}
    for relation in RELATIONS:
        assert {facts[s, relation] for s in species} == species
    assert facts != knowledge_base(8)


def test_every_family_can_be_trained_on_and_has_settings():
    assert set(tasks.GENERATED) == set(tasks.build_worlds(CFG)) and set(tasks.FAMILIES) == set(CFG.__dataclass_fields__)
    for name in tasks.GENERATED:
        assert config.load_params(ROOT / "params.yaml", changes={"families": [name]}).families == [name]


@pytest.mark.parametrize("name", tasks.GENERATED)
def test_careful_demonstrations_without_errors_have_the_full_reward(name):
    world, cfg, rng = tasks.build_worlds(CFG)[name], getattr(CFG, name), np.random.default_rng(0)
    for _ in range(50):
        record = world.draw(rng, cfg.long, cfg)
        completion = world.demonstrate(record, "careful", 0.0, 0.5, rng)
        assert completion.startswith("careful ")
        columns = {column: [value] for column, value in record.items() if column != "prompt"}
        assert tasks.FAMILIES[name].reward([record["prompt"]], [completion], **columns) == [1.0]


@pytest.mark.parametrize("name", tasks.GENERATED)
@pytest.mark.parametrize("kind", ["train", "ood"])
def test_the_token_limit_is_above_every_demonstration_and_not_far_above(name, kind):
    """Errors, questions and restatements included; `<eos>` is the last token."""
    world, cfg, rng = tasks.build_worlds(CFG)[name], getattr(CFG, name), np.random.default_rng(0)
    steps = cfg.long if kind == "ood" else cfg.short
    records = [world.draw(rng, steps, cfg) for _ in range(300)]
    longest = max(len(f"{world.demonstrate(r, 'average', 0.1, 1.0, rng)} <eos>".split()) for r in records)
    limit = tasks.FAMILIES[name].max_completion_length(records)
    assert 0.6 * limit < longest < limit


def test_step_errors_come_at_the_set_rate():
    family, rng = tasks.build_worlds(CFG)["math"], np.random.default_rng(0)
    right = [final_answer(family.solution("3", ["+4"], "average", 0.3, 0.0, rng)) == "7" for _ in range(4000)]
    assert abs(np.mean(right) - 0.7) < 0.03


def test_restatements_make_lengths_vary(suites):
    lengths = {len(c.split()) for r in suites["math"]["demonstrations"] if r["steps"] == 2 for c in [r["completion"]]}
    assert len(lengths) >= 3


@pytest.mark.parametrize("name", tasks.GENERATED)
def test_splits_share_no_prompt(suites, name):
    prompts = {split: set(suites[name][split]["prompt"]) for split in SPLITS}
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not prompts[a] & prompts[b], (a, b)


def test_long_problems_are_longer_than_all_trained_ones(suites):
    for data in suites.values():
        assert min(data["ood"]["steps"]) > max(data["train"]["steps"])
        assert len(set(data["train"]["steps"])) == 2 and set(data["train"]["steps"]) == set(data["test"]["steps"])


def test_answers_of_the_suite_are_true(suites):
    for name in CHAINS:
        for record in suites[name]["train"]:
            words = record["prompt"].split()
            assert tasks.build_worlds(CFG)[name].answer(words[1], words[3::2]) == record["answer"]


def test_equal_seeds_give_equal_suites_and_files(suites, tmp_path):
    again = tasks.build_suites(CFG)
    save_suites(suites, tmp_path / "a")
    save_suites(again, tmp_path / "b")
    for file in (tmp_path / "a").rglob("*.jsonl"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    loaded = load_suites(tmp_path / "a")
    for name in tasks.GENERATED:
        assert list(loaded[name]["test"]) == list(suites[name]["test"])


def test_malformed_suite_names_file_and_line(suites, tmp_path):
    save_suites(suites, tmp_path)
    file = tmp_path / "math" / "train.jsonl"
    file.write_text(file.read_text().replace("\n", "\n{broken\n", 1))
    with pytest.raises(ValueError, match=r"train\.jsonl:2: not valid JSON: Expecting property name"):
        load_suites(tmp_path)
    file.write_text('{"prompt": "p"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:1: the field `answer` is missing"):
        load_suites(tmp_path)


def test_too_many_prompts_is_a_clear_error():
    cfg = tasks.TaskSettings(science=ChainSettings(train=5000, short=(2, 2)))
    with pytest.raises(ValueError, match=r"tasks\.science\.train: found only \d+ of 5000 distinct prompts"):
        tasks.build_suites(cfg)


def test_tokenizer_knows_every_word_and_round_trips(suites, tmp_path):
    tokenizer = tasks.build_tokenizer(CFG)
    for data in suites.values():
        for record in data["demonstrations"].select(range(100)):
            ids = tokenizer(record["completion"]).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == record["completion"]
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path)("math 7 ?").input_ids == tokenizer("math 7 ?").input_ids


@pytest.mark.parametrize(
    ("completion", "found"),
    [("careful a +5 = 2 answer 2", "2"), ("answer 2 answer 3", "3"), ("careful answer", None), ("", None)],
)
def test_final_answer(completion, found):
    assert final_answer(completion) == found


def test_accuracy_reward():
    assert accuracy_reward(["p", "p"], ["answer 2", "answer 3"], answer=["2", "2"]) == [1.0, 0.0]


def test_hash_split_shares():
    shares = [hash_split(f"prompt {i}") for i in range(4000)]
    assert abs(shares.count("demonstrations") / 4000 - 0.6) < 0.03
    assert abs(shares.count("train") / 4000 - 0.25) < 0.03
