"""JSON-lines files: what is written is read back, and a bad record is named by file and line."""

from __future__ import annotations

import pytest

from dvpo_lib.common.jsonl import read_json_lines, record_problem, write_json_lines

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
