"""README.md: its programs run, its commands exist, its numbers are those of files."""

from __future__ import annotations

import re
import shutil

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from dvpo_lib.chain.cli import COMMANDS
from dvpo_lib.chain.commands.evidence import EVIDENCE_FOLDER, VERDICT_MARKS
from dvpo_lib.chain.exports import findings_of, insert_findings
from dvpo_lib.chain.stages import StageError
from dvpo_lib.experiments.grids.evidence import read_studies
from dvpo_lib.experiments.grids.studies import CLAIMED, SHOWN
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.reporting.findings.verdict_page import verdict_page
from dvpo_lib.reporting.statistics.comparisons import FEWEST_SEEDS
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")}
GUIDE = "\n".join([TEXT, *PAGES.values()])


def minutes(file: str) -> float:
    return YAML(typ="safe").load(ROOT / file)["runtime"]["expected_minutes"]


def test_programs_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer(TaskSettings())
    build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), 0).save_pretrained("data/base")
    tokenizer.save_pretrained("data/base")
    names: dict = {}
    programs = re.findall(r"```python\n(.*?)```", TEXT + PAGES["docs/guide/trainer.md"], re.DOTALL)
    assert len(programs) == 4
    for program in programs:
        exec(compile(program, "README.md", "exec"), names)
    logged = {name for log in names["trainer"].state.log_history for name in log}
    assert {"reward", "truth"} <= logged, logged
    assert len(names["values"]) == 2 and (tmp_path / "values.png").stat().st_size > 10_000


def test_commands_exist():
    assert set(re.findall(r"python -m dvpo_lib (\w+)", GUIDE)) <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"[`\n]make ([a-z-]+)", GUIDE))
    assert {"repro", "test"} <= named <= targets


def test_messages_of_troubleshooting_are_messages_of_the_library():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "dvpo_lib").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a text over several lines
    quoted = re.findall(r'^\*\*(".*?")\.\*\*', PAGES["docs/troubleshooting.md"], re.MULTILINE)
    parts = [part for text in quoted for part in re.split(r'", "|\.\.\.', text.strip('"'))]
    assert len(parts) >= 6
    for part in parts:
        assert part.strip() in source, part


def test_settings_of_its_experiments_can_be_set():
    """`dvc exp run -S` takes only what stands in params.yaml already."""
    changes = re.findall(r"-S ([\w.]+)=", GUIDE + (ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert len(changes) >= 2
    for dotted in changes:
        value = YAML(typ="safe").load(ROOT / "params.yaml")
        for part in dotted.split("."):
            value = value[part]


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", *PAGES])
def test_links_lead_to_files(file):
    for target in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / file).read_text(encoding="utf-8")):
        assert ((ROOT / file).parent / target).is_file(), target


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 200
    assert all(len(list(folder.iterdir())) <= 10 for folder in (ROOT / "docs", *ROOT.glob("docs/*/")))


def test_every_method_of_the_readme_exists_and_the_other_way_round():
    assert set(re.findall(r"^## (\w+)$", PAGES["docs/methods.md"], re.MULTILINE)) == set(METHODS)
    listed = TEXT.partition("There are eleven methods:")[2].partition("\n\n")[0]
    plain = {name for name in METHODS if not name.endswith("_clip_reward")}
    assert len(METHODS) == 11 and plain <= set(re.findall(r"`(\w+)`", listed))


def test_every_test_in_the_table_of_faults_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES["docs/faults.md"] + PAGES["docs/guide/sharing.md"])
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_settings_of_the_pages_exist():
    new = PAGES["docs/trl.md"].partition("## What is new")[2].partition("##")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", new, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    section = (ROOT / "dvpo_lib/rl/config.py").read_text().partition("# ---- the method ----")[2].partition("# ----")[0]
    own = set(re.findall(r"^    ([a-z_]+): ", section, re.MULTILINE))
    assert "worst_case" in own and own <= set(re.findall(r"`(\w+)`", PAGES["docs/trl.md"])), "settings without a word"
    same = re.search(r"\*\*Names of settings and logs\*\*: (.*?);", PAGES["docs/trl.md"], re.DOTALL)[1]
    names += re.findall(r"`(\w+)`", same)
    assert len(names) > 20 and set(names) <= set(DVPOConfig.__dataclass_fields__)


def test_numbers_are_those_of_files():
    evidence = (ROOT / "notebooks/06_evidence.ipynb").read_text(encoding="utf-8")
    assert (FEWEST_SEEDS, CLAIMED, SHOWN) == (10, 10, 5), "in words on these pages"
    assert "fewer than ten seeds" in TEXT and "fewer than ten seeds" in evidence and "at least five seeds" in evidence
    assert f"about {minutes('params.yaml'):g} minutes on two cores" in TEXT
    assert f"all of them (about {minutes('profiles/real.yaml'):g} minutes on two cores, an estimate)" in TEXT
    chain = PAGES["docs/guide/chain.md"]
    assert f"in a temporary copy (about {minutes('profiles/smoke.yaml'):g} minutes)" in chain
    assert f"with real data (about {minutes('profiles/reference.yaml'):g} minutes); writes" in chain


def test_findings_are_replaced_between_their_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(TEXT, encoding="utf-8")
    for text in ("- first\n", "- second\n"):
        insert_findings(readme, text, "real")
    written = readme.read_text(encoding="utf-8")
    assert "- second\n<!-- end" in written and "- first" not in written
    assert written.startswith(TEXT.partition("<!-- findings")[0])
    insert_findings(readme, text, "problems")
    assert readme.read_text(encoding="utf-8") == written, "README has no place for this profile"
    readme.write_text(TEXT.replace("<!-- end of findings: real -->", ""), encoding="utf-8")
    with pytest.raises(StageError, match="expected the marks"):
        insert_findings(readme, text, "real")


def test_the_findings_of_the_published_model_are_those_of_its_runs():
    assert findings_of(ROOT / "reports" / "real") in TEXT


def test_the_base_policy_and_partial_cells_are_no_part_of_the_order(tmp_path):
    text = findings_of(ROOT / "reports" / "real").partition("Are methods in the same order")[2]
    assert "base" not in text and "at most 10 seeds on generated problems" in text
    shutil.copytree(
        ROOT / "reports" / "real", tmp_path / "real", ignore=lambda _, names: {*names} - {"runs.csv", "machines.csv"}
    )
    alone = findings_of(tmp_path / "real")
    assert "same order" not in alone and alone in TEXT


def test_the_verdict_is_that_of_the_files():
    """After a change of its text: `python -m dvpo_lib evidence STUDY --minutes 0`."""
    files = read_studies(ROOT / EVIDENCE_FOLDER)
    start, end = VERDICT_MARKS
    assert verdict_page(files) and start + verdict_page(files) + end in TEXT
