"""Published data sets: small made-up files in the format of each, and the published ones where they are present."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import ROOT

from dvpo_lib.tasks.families import TaskSettings, build_tokenizer
from dvpo_lib.tasks.published import datasets as sources
from dvpo_lib.tasks.published import files as source_files
from dvpo_lib.tasks.published import verify
from dvpo_lib.tasks.published.datasets import SOURCES, load_problems
from dvpo_lib.tasks.published.files import SourceError
from dvpo_lib.tasks.published.suites.acts import DIALOGUE_ACTS

HERE = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))


def published(*names: str):
    return pytest.mark.skipif(
        not all((HERE / name).exists() for name in names),
        reason="the published data is not here: set DVPO_REAL_DATA to the folder that holds it",
    )


def actions(*acts) -> list[dict]:
    return [dict(zip(("act", "slot", "values", "canonical_values"), act)) for act in acts]


TURNS = [
    ("USER", "A table for two.", [("INFORM", "seats", ["two"], ["2"]), ("INFORM_INTENT", "intent", ["Reserve"], [])]),
    ("SYSTEM", "Where?", [("REQUEST", "city", [], [])]),
    ("USER", "In Bern. No, for 3.", [("INFORM", "city", ["Bern"], ["Bern"]), ("INFORM", "seats", ["3"], ["3"])]),
    ("SYSTEM", "Done.", [("NOTIFY_SUCCESS", "", [], [])]),
    ("USER", "Thanks.", [("THANK_YOU", "", [], [])]),
]
DIALOGUE = {
    "dialogue_id": "1",
    "services": ["Restaurants_1"],
    "turns": [
        {"speaker": who, "utterance": said, "frames": [{"service": "Restaurants_1", "actions": actions(*acts)}]}
        for who, said, acts in TURNS
    ],
}
RECORDS = {
    "gsm8k": [
        {"question": "Ann has 3 plums and buys 1,300. How many?", "answer": "<<3+1300=1303>>1303\n#### 1,303"},
        {"question": "And then?", "answer": "#### -4"},
    ],
    "math500": [
        {
            "problem": "Half?",
            "solution": "...",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "test/algebra/1.json",
        }
    ],
    "light_r1": [
        {
            "conversations": [
                {"from": "user", "value": "Two and two?"},
                {"from": "assistant", "value": "<think>\\boxed{5}?</think>It is \\boxed{4}."},
            ]
        }
    ],
    "mmlu": [
        {"question": "Which one?", "subject": "astronomy", "choices": ["Venus", "Mars", "Io", "Sun"], "answer": 1},
        {"question": "Who said?", "subject": "philosophy", "choices": ["a", "b", "c", "d"], "answer": 1},
    ],
    "supergpqa": [
        {
            "uuid": "x",
            "question": "Which?",
            "options": list("abcdefghij"),
            "answer": "j",
            "answer_letter": "J",
            "discipline": "Science",
            "field": "Physics",
            "subfield": "Optics",
            "difficulty": "hard",
            "is_calculation": False,
        }
    ],
    "sgd": [DIALOGUE],
}
ANSWERS = {
    "gsm8k": ["1303", "-4"],
    "math500": ["\\frac{1}{2}"],
    "light_r1": ["4"],
    "mmlu": ["B"],
    "supergpqa": ["J"],
    "sgd": ['{"seats": ["two", "2"]}', '{"city": ["Bern"], "seats": ["3"]}'],
}


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(write(path.with_suffix(""), records).read_bytes()))
        path.with_suffix("").unlink()
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(str(path))
    elif path.suffix == ".csv":
        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items()} for r in records]
        pd.DataFrame(flat).to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


# ---- every source, every format ----


@pytest.mark.parametrize("kind", sorted(source_files.FORMATS))
@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_read(tmp_path, name, kind):
    split = list(SOURCES[name].splits)[-1]
    data = load_problems(name, split, write(tmp_path / f"x{kind}", RECORDS[name]))
    assert data.column_names == ["prompt", "answer", "verify", "source"]
    assert data["answer"] == ANSWERS[name]
    assert set(data["verify"]) == {SOURCES[name].verify} and set(data["source"]) == {name}
    first = next(iter(RECORDS[name][0].values()))
    assert all(data["prompt"]) and (name in ("light_r1", "sgd", "supergpqa") or data["prompt"][0].startswith(first))


def test_the_prompts_ask_for_what_is_verified(tmp_path):
    files = {name: write(tmp_path / f"{name}.jsonl", RECORDS[name]) for name in SOURCES}
    prompts = {name: load_problems(name, list(SOURCES[name].splits)[0], file)["prompt"] for name, file in files.items()}
    assert prompts["gsm8k"][0].endswith("How many?\n\n" + sources.BOX_INSTRUCTION + "\n")
    assert (
        "A. Venus\nB. Mars\nC. Io\nD. Sun\n\n" + sources.LETTER_INSTRUCTION in prompts["mmlu"][0]
        and len(prompts["mmlu"]) == 1
    )
    assert "\nJ. j\n" in prompts["supergpqa"][0]
    assert "Where?" not in prompts["sgd"][0] and "User: A table for two." in prompts["sgd"][0]
    assert "Assistant: Where?\nUser: In Bern." in prompts["sgd"][1] and "Done." not in prompts["sgd"][1]
    assert "Slots: city, seats." in prompts["sgd"][0], "the slots of the service, not those given so far"


def test_hub_form_of_dialogues(tmp_path):
    """The hub keeps lists of objects as objects of lists, and speakers and acts as numbers."""

    def columns(rows):
        return {key: [row[key] for row in rows] for key in rows[0]}

    turns = []
    for turn in DIALOGUE["turns"]:
        acts = [a | {"act": DIALOGUE_ACTS.index(a["act"])} for frame in turn["frames"] for a in frame["actions"]]
        turns.append(
            {
                "speaker": int(turn["speaker"] == "SYSTEM"),
                "utterance": turn["utterance"],
                "frames": columns([{"service": "Restaurants_1", "actions": columns(acts)}]),
            }
        )
    data = load_problems("sgd", "train", write(tmp_path / "0000.parquet", [{**DIALOGUE, "turns": columns(turns)}]))
    assert data["answer"] == ANSWERS["sgd"]
    flat = {
        "service": "Restaurants_1",
        "turns": [{"speaker": who, "text": said, "acts": [a[:3] for a in acts]} for who, said, acts in TURNS],
    }
    data = load_problems("sgd", "train", write(tmp_path / "flat.jsonl", [flat]))
    assert data["answer"] == ['{"seats": ["two"]}', ANSWERS["sgd"][1]]


def test_chat_template_or_plain_text(tmp_path):
    file = write(tmp_path / "test.jsonl", RECORDS["math500"])
    tokenizer = build_tokenizer(TaskSettings())
    plain = load_problems("math500", "test", file, tokenizer)["prompt"][0]
    assert plain == load_problems("math500", "test", file)["prompt"][0] == f"Half?\n\n{sources.BOX_INSTRUCTION}\n"
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert (
        load_problems("math500", "test", file, tokenizer)["prompt"][0]
        == f"<user>Half?\n\n{sources.BOX_INSTRUCTION}<assistant>"
    )


def test_limit_and_records_without_an_answer(tmp_path, caplog):
    more = [{"conversations": [{"from": "human", "value": "Prove it."}, {"from": "gpt", "value": "Proved."}]}]
    file = write(tmp_path / "stage2-3k.json", more + RECORDS["light_r1"] * 3)
    assert len(load_problems("light_r1", "train", file)) == 3
    assert "1 records without a boxed answer were left out" in caplog.text
    assert len(load_problems("light_r1", "train", file, limit=2)) == 2
    with pytest.raises(SourceError, match="limit should be at least 1, not 0"):
        load_problems("light_r1", "train", file, limit=0)
    with pytest.raises(SourceError, match=r"holds no problem of light_r1 \(1 records of another kind\)"):
        load_problems("light_r1", "train", write(tmp_path / "none.json", more))


# ---- values as they are written ----

WRITTEN = ["12345.678", "0.1", "1.50", "-0.0", "1e-7", "123456789012345678901234567890", "18", "2024-01-31"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_numbers_and_dates_pass_as_they_are_written(tmp_path, ending):
    """Numbers beside texts, integers beside floats: no column is given a common type."""
    file = tmp_path / f"test{ending}"
    literals = [w if w != "2024-01-31" else f'"{w}"' for w in WRITTEN]
    if ending == ".csv":
        raw = "problem,answer\n" + "".join(f"p,{w}\n" for w in WRITTEN)
    else:
        records = [f'{{"problem": "p", "answer": {w}}}' for w in literals]
        raw = f"[{', '.join(records)}]" if ending == ".json" else "\n".join(records)
    file.write_bytes(gzip.compress(raw.encode()) if ending.endswith("gz") else raw.encode())
    assert load_problems("math500", "test", file)["answer"] == WRITTEN


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_words_that_look_like_missing_values_are_words(tmp_path, ending):
    words = ["None", "null", "NA", "nan", "N/A", "true"]
    file = write(tmp_path / f"test{ending}", [{"problem": word, "answer": word} for word in words])
    data = load_problems("math500", "test", file)
    assert data["answer"] == words and [prompt.split()[0] for prompt in data["prompt"]] == words


def test_columns_of_parquet_keep_their_types(tmp_path):
    days = [datetime.date(2024, 1, 31), datetime.date(1999, 12, 1)]
    columns = {
        "floats": ([12345.678, 18.0], ["12345.678", "18.0"]),
        "integers": ([2**62, 7], [str(2**62), "7"]),
        "dates": (days, ["2024-01-31", "1999-12-01"]),
        "times": (pd.to_datetime(days), ["2024-01-31", "1999-12-01"]),
        "decimals": ([decimal.Decimal("1.50"), decimal.Decimal("2.25")], ["1.50", "2.25"]),
        "categories": (pd.Categorical(["a", "b"]), ["a", "b"]),
    }
    for name, (values, answers) in columns.items():
        pd.DataFrame({"problem": "p", "answer": values}).to_parquet(tmp_path / f"{name}.parquet")
        assert load_problems("math500", "test", tmp_path / f"{name}.parquet")["answer"] == answers, name


@pytest.mark.parametrize("number", ["1.0", "1", '"1"', '"1.0"', '"B"'])
def test_the_number_of_an_option_may_be_a_float(tmp_path, number):
    record = json.dumps(RECORDS["mmlu"][0]).replace('"answer": 1', f'"answer": {number}')
    (tmp_path / "test.jsonl").write_text(record)
    assert load_problems("mmlu", "test", tmp_path / "test.jsonl")["answer"] == ["B"]


@pytest.mark.parametrize("number", ["1.5", "true", '"1.5"', "1e400", "null"])
def test_other_numbers_of_options_are_refused(tmp_path, number):
    record = json.dumps(RECORDS["mmlu"][0]).replace('"answer": 1', f'"answer": {number}')
    (tmp_path / "test.jsonl").write_text(record)
    with pytest.raises(SourceError, match="record 1: column `answer`: 0 to 3"):
        load_problems("mmlu", "test", tmp_path / "test.jsonl")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_a_column_that_only_later_records_have_is_read(tmp_path, ending):
    first = [{"question": f"q{i}", "subject": "astronomy", "choices": ["a", "b"], "answer": 1} for i in range(20_000)]
    last = {"question": "last", "type": "astronomy", "choices": ["a", "b"], "answer": 0, "extra": {"x": [1]}}
    if ending == ".csv":
        first, last = first[:2], {**last, "subject": "astronomy"}
    data = load_problems("mmlu", "test", write(tmp_path / f"test{ending}", [*first, last]))
    assert len(data) == len(first) + 1 and data["answer"][-1] == "A"


# ---- folders ----


def test_copies_of_jupyter_and_hidden_files_are_no_data(tmp_path):
    one, two = RECORDS["gsm8k"]
    write(tmp_path / "train.jsonl", [one])
    for copy in (
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        ".train.jsonl",
        ".cache/train.parquet",
        "__MACOSX/train.csv",
    ):
        write(tmp_path / copy, [two])
    assert load_problems("gsm8k", "train", tmp_path)["answer"] == ["1303"]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training.jsonl", "testing.jsonl"),
        ("GsmTrain.jsonl", "GsmTest.jsonl"),
        ("trainset.jsonl", "testset.jsonl"),
        ("train_test_split/train.jsonl", "train_test_split/test.jsonl"),
        ("TRAIN/a.jsonl", "TEST/a.jsonl"),
        ("train/latest.jsonl", "test/latest.jsonl"),
    ],
)
def test_training_and_test_files_are_not_read_together(tmp_path, train, test):
    one, two = RECORDS["gsm8k"]
    write(tmp_path / train, [one])
    write(tmp_path / test, [two])
    assert load_problems("gsm8k", "train", tmp_path)["answer"] == ["1303"]
    assert load_problems("gsm8k", "test", tmp_path)["answer"] == ["-4"]


def test_a_file_of_several_splits_has_to_be_given_by_its_path(tmp_path):
    file = write(tmp_path / "train_and_test.jsonl", RECORDS["gsm8k"])
    with pytest.raises(SourceError, match="of the split test or train"):
        load_problems("gsm8k", "train", tmp_path)
    assert len(load_problems("gsm8k", "train", file)) == 2


def test_folders_of_save_to_disk_are_read(tmp_path):
    one, two = (datasets.Dataset.from_list([record]) for record in RECORDS["gsm8k"])
    one.save_to_disk(str(tmp_path / "one"))
    assert load_problems("gsm8k", "train", tmp_path / "one")["answer"] == ["1303"]
    datasets.DatasetDict(train=one, test=two).save_to_disk(str(tmp_path / "both"))
    assert load_problems("gsm8k", "train", tmp_path / "both")["answer"] == ["1303"]
    assert load_problems("gsm8k", "test", tmp_path / "both")["answer"] == ["-4"]


def test_the_files_of_a_split_are_found(tmp_path):
    one, two = RECORDS["gsm8k"]
    write(tmp_path / "main/train-00000-of-00002.parquet", [one])
    write(tmp_path / "main/train-00001-of-00002.parquet", [two])
    write(tmp_path / "main/test-00000-of-00001.parquet", [two])
    write(tmp_path / "socratic/train-00000-of-00001.parquet", [one])
    write(tmp_path / "dataset_infos.json", [{}])
    assert load_problems("gsm8k", "train", tmp_path)["answer"] == ["1303", "-4"]
    assert load_problems("gsm8k", "test", tmp_path)["answer"] == ["-4"]
    write(tmp_path / "sgd/dev/dialogues_001.json", [DIALOGUE])
    write(tmp_path / "sgd/dev/schema.json", [{"service_name": "x"}])
    assert len(load_problems("sgd", "validation", tmp_path / "sgd")) == 2
    with pytest.raises(SourceError, match="holds no file of the split 'test'; there are: dev/dialogues_001.json"):
        load_problems("sgd", "test", tmp_path / "sgd")
    write(tmp_path / "any/SuperGPQA-all.jsonl", RECORDS["supergpqa"])
    assert len(load_problems("supergpqa", "train", tmp_path / "any")) == 1


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    load_problems("gsm8k", "test", write(tmp_path / "data/test.jsonl", RECORDS["gsm8k"]))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gsm8k", {"answer": "no mark"}, "column `answer`: holds no `#### final answer`: 'no mark'"),
        ("gsm8k", {"question": " "}, "column `question`: a text that is not empty is expected, not ' '"),
        ("gsm8k", {"question": None}, "column `question`: a text that is not empty is expected, not 'None'"),
        ("math500", {"answer": ["1"]}, "column `answer`: a text that is not empty is expected"),
        ("mmlu", {"answer": 4}, "column `answer`: 0 to 3 (or a letter) is expected, not 4"),
        ("mmlu", {"answer": "E"}, "column `answer`: 0 to 3 (or a letter) is expected, not 4"),
        ("mmlu", {"choices": "Venus"}, "column `choices`: a list of texts is expected, not 'Venus'"),
        ("mmlu", {"choices": ["Venus"]}, "column `choices`: 2 to 4 options are expected, not 1"),
        ("supergpqa", {"answer_letter": "K"}, "column `answer_letter`: A to J is expected, not 'K'"),
        ("supergpqa", {"options": list("abcdefghijk")}, "column `options`: 2 to 10 options are expected, not 11"),
        (
            "light_r1",
            {"conversations": [{"from": "user", "value": "?"}]},
            "column `conversations`: nothing is said by the",
        ),
        (
            "light_r1",
            {"conversations": [{"from": "user"}]},
            "column `conversations`: a message needs `from` and `value`",
        ),
        ("light_r1", {"conversations": "x"}, "column `conversations`: a list of records is expected, not 'x'"),
        ("sgd", {"turns": [{"speaker": "USER", "utterance": "Hi"}]}, "column `turns`: turn 1 is malformed: KeyError("),
        (
            "sgd",
            {"turns": [{"speaker": "BOT", "utterance": "Hi", "frames": []}]},
            "column `turns`: turn 1 is malformed",
        ),
        ("sgd", {"services": 3}, "column `services`: a list of texts is expected, not '3'"),
    ],
)
def test_a_bad_record_is_named(tmp_path, name, change, message):
    file = write(tmp_path / "x.jsonl", [RECORDS[name][0], RECORDS[name][0] | change])
    with pytest.raises(SourceError) as caught:
        load_problems(name, list(SOURCES[name].splits)[0], file)
    assert str(caught.value).startswith(f"{file}: record 2: {message}") and "\n" not in str(caught.value)


GOOD = '{"question": "q", "answer": "#### 1"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "q", "answer": "#### 1"}\n\n{"question": "q",\n', "record 2: not valid JSON: "),
        ('{"question": "q", "answer": "#### 1"}\n{"question": "\udcff"}\n', "record 2: not valid UTF-8"),
        ("", "the file is empty"),
        (
            '{"question": "q", "reply": "#### 1"}\n',
            "record 1: column `answer` is missing; there are: ['question', 'reply']",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "train.jsonl"
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SourceError) as caught:
        load_problems("gsm8k", "train", file)
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        (".jsonl", GOOD + '{"question": ' + "[" * 2000, "record 2: nested deeper than 100 levels"),
        (".jsonl", GOOD + "[" * 20_000 + "]" * 20_000, "record 2: nested deeper than 100 levels"),
        (".json", "[" * 20_000 + "]" * 20_000, "nested deeper than 100 levels"),
        (".jsonl", GOOD + '{"question": "q", "question": "r"}', "record 2: the key 'question' is given twice"),
        (".jsonl", GOOD + "[1]", "record 2: an object is expected, not '[1]'"),
        (".jsonl", GOOD + '{"question": ' + "9" * 5000 + "}", "record 2: "),
        (
            ".jsonl",
            GOOD + '{"question": "\\ud800", "answer": "#### 1"}',
            "record 2: column `problem or answer`: holds a",
        ),
        (".csv", "question,answer\nq,#### 1\nq\n", "record 2: 1 values for 2 columns"),
        (".csv", 'question,answer\nq,#### 1\n"q,#### 1\n', "record 2: not valid CSV"),
        (".csv", "question,question\nq,#### 1\n", "the column 'question' is given twice"),
        (".json", '{"question": "q"', "not valid JSON"),
        (".json", "3", "a list of records is expected"),
        (".jsonl.gz", "no gzip", "cannot be read: BadGzipFile"),
    ],
    ids=range(13),
)
def test_hostile_files_are_one_clear_error(tmp_path, ending, content, message):
    file = tmp_path / f"train{ending}"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        load_problems("gsm8k", "train", file)
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_wrong_names_and_paths(tmp_path):
    for arguments, message in [
        (("gsm9k", "train"), "there is no source 'gsm9k'; there are: gsm8k, "),
        (("gsm8k", "dev"), "gsm8k has no split 'dev'; it has: train, test"),
        (("gsm8k", "train", tmp_path / "absent"), "absent: there is no such file or folder"),
        (("gsm8k", "train", tmp_path), "holds no file that can be read"),
    ]:
        with pytest.raises(SourceError, match=message):
            load_problems(*arguments)
    (tmp_path / "train.txt").write_text("x")
    with pytest.raises(SourceError, match=r"train.txt: .parquet, .jsonl, .json, .csv can be read, not .txt"):
        load_problems("gsm8k", "train", tmp_path / "train.txt")
    (tmp_path / "train.parquet").write_text("x")
    with pytest.raises(SourceError, match=r"train.parquet: cannot be read: "):
        load_problems("gsm8k", "train", tmp_path / "train.parquet")


# ---- the hub ----


@pytest.mark.parametrize("name", SOURCES)
def test_the_hub_is_asked_as_it_names_things(monkeypatch, name):
    asked = {}

    def load_dataset(path, config=None, split=None, revision=None):
        asked.update(path=path, config=config, split=split, revision=revision)
        return datasets.Dataset.from_list(RECORDS[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source, split = SOURCES[name], list(SOURCES[name].splits)[-1]
    assert load_problems(name, split)["answer"] == ANSWERS[name]
    assert asked == dict(path=source.hub, config=source.config, split=split, revision=source.revision)


def test_a_bad_record_of_the_hub_is_named(monkeypatch):
    bad = [*RECORDS["gsm8k"], {"question": "q", "answer": "x"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(bad))
    with pytest.raises(SourceError, match=r"^openai/gsm8k \(train\): record 3: column `answer`: holds no"):
        load_problems("gsm8k", "train")


def test_without_the_hub_the_way_out_is_named(tmp_path):
    code = (
        "from dvpo_lib.tasks.published.datasets import *\n"
        "try: load_problems('gsm8k', 'train')\nexcept SourceError as e: print(e)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=offline, capture_output=True, text=True).stdout
    assert shown.startswith("gsm8k: openai/gsm8k, config main, split train cannot be had from the Hugging Face hub (")
    assert "load_problems('gsm8k', 'train', path=FILE_OR_FOLDER)" in shown and "columns question, answer\n" in shown


def test_import_is_light():
    code = (
        "import sys, dvpo_lib.tasks.published.datasets; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"


# ---- the published files ----


@published("gsm8k/train.jsonl", "gsm8k/test.jsonl")
def test_published_gsm8k():
    train, test = (load_problems("gsm8k", split, HERE / "gsm8k") for split in ("train", "test"))
    assert (len(train), len(test)) == (7473, 1319) and test["answer"][:3] == ["18", "3", "70000"]
    assert all(float(answer) == float(answer) for answer in train["answer"])


@published("mmlu/mmlu_stem.jsonl")
def test_published_mmlu():
    data = load_problems("mmlu", "test", HERE / "mmlu")
    assert len(data) == 3018 and data["answer"][0] == "C" and set(data["answer"]) == set("ABCD")
    assert set(sources.STEM_SUBJECTS) == {json.loads(line)["type"] for line in open(HERE / "mmlu/mmlu_stem.jsonl")}


@published("sgd/sgd_5domain.jsonl")
def test_published_dialogues():
    data = load_problems("sgd", "test", HERE / "sgd", limit=200)
    assert len(data) == 200
    completions = ["\n".join(f"{s} = {v[-1]}" for s, v in json.loads(a).items()) for a in data["answer"]]
    assert verify.slots_reward(data["prompt"], completions, data["answer"]) == [1.0] * 200
    named = [prompt.rpartition("Slots: ")[2] for prompt in data["prompt"]]
    assert all(slot in slots for slots, a in zip(named, data["answer"]) for slot in json.loads(a))


@published("gsm8k/example_model_solutions.jsonl")
def test_verdicts_on_published_solutions_are_the_published_ones():
    """Real model output: solutions that end with "A: 18", against the labels that came with them."""
    lines = [json.loads(line) for line, _ in zip(open(HERE / "gsm8k/example_model_solutions.jsonl"), range(60))]
    completions = [r[g]["solution"] for r in lines for g in ("6b_finetuning", "175b_verification")]
    labels = [float(r[g]["is_correct"]) for r in lines for g in ("6b_finetuning", "175b_verification")]
    answers = [r["ground_truth"].rpartition("A:")[2] for r in lines for _ in range(2)]
    verdicts = verify.math_reward([""] * len(answers), completions, answers)
    assert sum(a != b for a, b in zip(verdicts, labels)) <= 2 and 0 < sum(verdicts) < len(verdicts)
