"""Trees of settings: dotted names, merging, and errors that name the key."""

from __future__ import annotations

import pytest

from dvpo_lib.common.settings_tree import (
    ConfigError,
    did_you_mean,
    get_dotted,
    merge_trees,
    nest_dotted,
    set_dotted,
    to_builtins,
)
from dvpo_lib.common.settings_yaml import read_yaml


def test_yaml_is_read_as_version_1_2(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1e-4\nb: yes\nc: 0o10\n")
    assert to_builtins(read_yaml(tmp_path / "a.yaml")) == {"a": 1e-4, "b": "yes", "c": 8}


def test_builtins_have_no_subclasses_of_the_yaml_reader(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1e-4, 0o10, 'x', true, null]}\n")
    values = to_builtins(read_yaml(tmp_path / "a.yaml"))["a"]["b"]
    assert [type(value) for value in values] == [float, int, str, bool, type(None)]


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1", "a.yaml:1: not valid YAML"), ("- 1\n", "a.yaml:1: expected a mapping of sections")]
)
def test_an_unreadable_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "a.yaml")


def test_dotted_names_reach_into_a_tree():
    tree = {"a": {"b": {"c": 1}}, "d": 2}
    assert get_dotted(tree, "a.b.c") == 1 and get_dotted(tree, "a.b") == {"c": 1}
    assert set_dotted(tree, {"a.b.c": 3, "a.b.new": 4}) is tree
    assert tree == {"a": {"b": {"c": 3, "new": 4}}, "d": 2}


@pytest.mark.parametrize(
    ("dotted", "message"),
    [("a.bb.c", r"a.bb.c: there is no `bb`; did you mean `b`\?"), ("d.e.f", "d.e.f: there is no `e`")],
)
def test_a_wrong_dotted_name_is_named_whole(dotted, message):
    tree = {"a": {"b": {"c": 1}}, "d": 2}
    with pytest.raises(ConfigError, match=f"^{message}"):
        get_dotted(tree, dotted)
    with pytest.raises(ConfigError, match=f"^changes: {message}"):
        set_dotted(tree, {dotted: 1})
    with pytest.raises(ConfigError, match="^changes: d.e: `d` has no settings below it"):
        set_dotted(tree, {"d.e": 1})


def test_dotted_names_become_a_tree():
    point = {"critic.q.radius": 0.1, "critic.q.other": 2, "critic.kind": "x", "training.learning_rate": 1e-4}
    nested = {"critic": {"q": {"radius": 0.1, "other": 2}, "kind": "x"}, "training": {"learning_rate": 1e-4}}
    assert nest_dotted(point) == nested and nest_dotted({}) == {}


def test_trees_are_merged_mapping_by_mapping():
    base = {"a": {"b": 1, "c": {"d": 2}}, "e": [1, 2], "f": {"g": 3}}
    assert merge_trees(base, {"a": {"c": {"d": 4, "new": 5}}, "e": [6], "f": None}) is base
    assert base == {"a": {"b": 1, "c": {"d": 4, "new": 5}}, "e": [6], "f": None}


def test_a_row_set_to_null_is_dropped_from_a_table_and_nowhere_else():
    base = {"rows": {"x": {"y": 1}, "z": 2}, "other": {"x": 1}}
    top = {"rows": {"x": None, "w": {"v": None}}, "other": {"x": None}}
    assert merge_trees(base, top, tables=["rows"]) == {"rows": {"z": 2, "w": {"v": None}}, "other": {"x": None}}


def test_only_known_settings_are_merged_on_request():
    base = {"a": {"rate": 1}}
    assert merge_trees(base, {"a": {"rate": 2}}, only_known=True) == {"a": {"rate": 2}}
    with pytest.raises(ConfigError, match=r"^a.rte: there is no such setting; did you mean `rate`\?"):
        merge_trees(base, {"a": {"rte": 2}}, only_known=True)


def test_a_suggestion_needs_a_close_name():
    assert did_you_mean("sedes", ["seed", "seeds"]) == "; did you mean `seeds`?"
    assert did_you_mean("x", ["seed"]) == did_you_mean("x", 3) == ""
