"""JSON-lines files: what is written is read back, and a bad record is named by file and line."""

from __future__ import annotations

import json

import pytest

from dvpo_lib.common.jsonl import parse_json, read_json_lines, record_problem, write_json_lines

RECORDS = [{"a": 1, "text": "ü\u2028"}, {"a": None, "text": ""}]  # U+2028 ends a line for str.splitlines


def needs_a(record):
    return record_problem(record, "a")


def test_records_are_read_back(tmp_path):
    write_json_lines(tmp_path / "x.jsonl", RECORDS)
    assert read_json_lines(tmp_path / "x.jsonl", needs_a) == RECORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', "x:2: not valid JSON"),
        (b'{"a": 1}\n\xff\n', "x:2: not valid UTF-8"),
        (b'{"b": 1}\n', "x:1: the field `a` is missing"),
        (b"[1]\n", r"x:1: a record is expected, not '\[1\]'"),
        (b"", "x: the file is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json_lines(tmp_path / "x.jsonl", needs_a, name="x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": ' + "[" * 2000 + "]" * 2000 + "}", "nested deeper than 100 levels"),
        ("[" * 200_000, "nested deeper than 100 levels"),  # deep enough to end the process of a reader that recurses
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ('{"a": ' + "9" * 5000 + "}", "limit"),
    ],
)
def test_json_that_no_reader_should_see_is_named_with_its_line(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=f"^x:2: .*{message}"):
        read_json_lines(tmp_path / "x.jsonl", needs_a, name="x")


def test_brackets_inside_texts_do_not_nest():
    text = "[" * 500 + '\\" {' * 500
    assert parse_json(json.dumps({"a": text})) == {"a": text}
    assert parse_json("[" * 100 + "]" * 100)


def test_floats_keep_their_spelling_on_request():
    for spelling in ("12345.678", "1.50", "1e5", "-0.0"):
        assert str(parse_json(spelling, as_written=True)) == spelling
        assert parse_json(spelling, as_written=True) == float(spelling)
    assert type(parse_json("1.5")) is float and type(parse_json("3", as_written=True)) is int
