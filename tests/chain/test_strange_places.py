"""Strange places, as far as a few seconds show them; `make strange-places` runs the chain in each for real."""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil

import pytest
from configobj import ConfigObj
from conftest import ROOT

from dvpo_lib.chain.cli import main
from dvpo_lib.chain.commands import reproduction
from dvpo_lib.chain.commands.reproduction import available_memory, memory_notice
from dvpo_lib.chain.profiles import allow_no_git, list_project_files
from dvpo_lib.chain.stages import tool_environment


def test_without_git_the_same_files_are_copied(monkeypatch, tmp_path):
    listed = list_project_files(ROOT)
    assert {"Makefile", "dvpo_lib/chain/cli.py", ".dvc/config"} <= set(listed)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_project_files(ROOT) == listed


def test_dvc_is_told_that_there_is_no_git_and_keeps_its_other_settings(tmp_path):
    local = tmp_path / ".dvc" / "config.local"
    local.parent.mkdir()
    local.write_text("[core]\n    remote = é\n['remote \"é\"']\n    url = /é\n", encoding="utf-8")
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    allow_no_git(tmp_path)
    assert "no_scm" not in local.read_text("utf-8")
    (tmp_path / ".git").unlink()
    allow_no_git(tmp_path)
    found = ConfigObj(str(local), encoding="utf-8")
    assert found == {"core": {"remote": "é", "no_scm": "true"}, 'remote "é"': {"url": "/é"}}


def test_a_home_that_cannot_be_used_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tool_environment(tmp_path) == {"PYTHONUTF8": "1"}
    monkeypatch.setenv("HOME", os.devnull)
    home = tool_environment(tmp_path)["HOME"]
    assert home == str(tmp_path / "work" / "home") and os.path.isdir(home)


@pytest.mark.parametrize(
    "code, advice", [("EROFS", "copy the project"), ("EACCES", "copy the project"), ("ENOSPC", "space")]
)
def test_a_checkout_that_cannot_be_written_to_is_one_clear_error(project, monkeypatch, capsys, code, advice):
    def fail(path, wait):
        raise OSError(getattr(errno, code), "cannot be written", str(path))

    shutil.copy(ROOT / "params.yaml", project)
    monkeypatch.setattr(reproduction, "locked_file", fail)
    assert main(["repro"]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown.startswith("error: ") and "chain.lock" in shown and advice in shown


def test_memory_that_is_lacking_is_announced(monkeypatch):
    assert memory_notice(1e-3) == "0.001 GB of memory"
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**9, 10**9))  # as `ulimit -v` sets it
    assert available_memory() <= 10**9
    assert memory_notice(3).startswith("3 GB of memory, of which ") and "runtime.workers" in memory_notice(3)


def test_code_is_python_3_11_and_opens_texts_as_utf8():
    """`open`, `read_text` and `write_text` without an encoding depend on the locale."""
    for path in [*(ROOT / "dvpo_lib").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"), feature_version=(3, 11))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                words = [
                    a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)
                ]
                owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
                text = name in ("read_text", "write_text") or name == "open" and owner in ("", "path", "file")
                known = {"utf-8", "ascii"} & {*words} or any(
                    "b" in w for w in words if isinstance(w, str) and len(w) < 4
                )
                assert not text or known, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_the_chain_worked_in_every_strange_place():
    from strange_places import PLACES

    found = json.loads((ROOT / "benchmarks" / "strange_places.json").read_text("utf-8"))
    assert set(PLACES) <= set(found)
    assert {f"Python 3.{minor}" for minor in (11, 12, 13)} <= {name[:11] for name in found}
    for outcomes in found.values():
        assert outcomes["check"] == "works" and not outcomes["repro"].startswith("fault")
