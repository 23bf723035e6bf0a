"""Generated passages: replaced between their marks, with everything around them left alone."""

from __future__ import annotations

import pytest

from dvpo_lib.common.marked_text import insert_between_marks

START, END = "<!-- start -->\n", "<!-- end -->"


def test_a_passage_is_replaced_and_nothing_else(tmp_path):
    file = tmp_path / "a.md"
    file.write_text(f"before\n{START}old\n{END}\nafter <!-- end -->\n", encoding="utf-8")
    for text in ("new\n", "newer ü\n"):
        insert_between_marks(file, START, END, text)
    assert file.read_text(encoding="utf-8") == f"before\n{START}newer ü\n{END}\nafter <!-- end -->\n"


@pytest.mark.parametrize("text", ["", START, END, f"{END}\n{START}"])
def test_a_missing_mark_is_an_error_and_leaves_the_file_alone(tmp_path, text):
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(ValueError, match="a.md: expected the marks '<!-- start -->' and '<!-- end -->'"):
        insert_between_marks(tmp_path / "a.md", START, END, "new")
    assert (tmp_path / "a.md").read_text() == text
