"""README.md: its programs run, its commands exist, its numbers are those of files."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from dvpo_lib.chain.cli import COMMANDS
from dvpo_lib.chain.exports import FINDINGS, insert_findings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def minutes(file: str) -> float:
    return YAML(typ="safe").load(ROOT / file)["runtime"]["expected_minutes"]


def test_programs_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer(TaskSettings())
    build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), 0).save_pretrained("data/base")
    tokenizer.save_pretrained("data/base")
    names: dict = {}
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 2
    for program in programs:
        exec(compile(program, "README.md", "exec"), names)
    assert len(names["values"]) == 2 and (tmp_path / "values.png").stat().st_size > 10_000


def test_commands_exist():
    assert set(re.findall(r"python -m dvpo_lib (\w+)", TEXT)) <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", TEXT))
    assert {"repro", "test"} <= named <= targets


def test_settings_of_its_experiments_can_be_set():
    """`dvc exp run -S` takes only what stands in params.yaml already."""
    changes = re.findall(r"-S ([\w.]+)=", TEXT + (ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert len(changes) >= 2
    for dotted in changes:
        value = YAML(typ="safe").load(ROOT / "params.yaml")
        for part in dotted.split("."):
            value = value[part]


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"])
def test_links_lead_to_files(file):
    for target in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / file).read_text(encoding="utf-8")):
        assert ((ROOT / file).parent / target).is_file(), target


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 250


def test_numbers_are_those_of_files():
    assert f"about {minutes('params.yaml'):g} minutes on two cores" in TEXT
    assert f"in a temporary copy (about {minutes('profiles/smoke.yaml'):g} minutes)" in TEXT
    assert f"with real data (about {minutes('profiles/reference.yaml'):g} minutes); writes" in TEXT
    assert (ROOT / "reports" / FINDINGS).read_text(encoding="utf-8") in TEXT


def test_findings_are_replaced_between_their_marks(tmp_path):
    readme, findings = tmp_path / "README.md", tmp_path / "f.md"
    readme.write_text(TEXT, encoding="utf-8")
    for text in ("- first\n", "- second\n"):
        findings.write_text(text)
        insert_findings(readme, findings)
    written = readme.read_text(encoding="utf-8")
    assert "- second\n<!-- end" in written and "- first" not in written
    assert written.startswith(TEXT.partition("<!-- findings")[0])
