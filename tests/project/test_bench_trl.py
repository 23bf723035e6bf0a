"""The comparison with TRL: its arithmetic, what it says without TRL, and where TRL is installed a round of it."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from benchmarks import against_trl


def test_ratios_are_taken_round_by_round():
    rows = [
        {"trl_seconds": t, "dvpo_seconds": d, "trl_cpu": t / 2, "dvpo_cpu": d, "trl_length": 30.0, "dvpo_length": 28.0}
        for t, d in [(2.0, 1.0), (3.0, 1.0), (4.0, 0.5)]
    ]
    table, ratios = against_trl.summarize_rounds(rows)
    assert ratios["seconds"].to_dict() == {"median": 3.0, "min": 2.0, "max": 8.0}
    assert ratios["cpu"].tolist() == [1.5, 1.0, 4.0]
    assert table.loc["dvpo"].tolist() == [1.0, 128.0, 4.0, 28.0]
    assert table.loc["trl"].tolist() == pytest.approx([3.0, 128 / 3, 4 / 3, 30.0])


def test_without_trl_it_names_the_command(monkeypatch, capsys):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(SystemExit) as stop:
        against_trl.main([])
    assert stop.value.code == 2 and "make bench-trl" in capsys.readouterr().err


def test_a_missing_policy_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        against_trl.main(["--policy", str(tmp_path / "missing")])
    assert "missing is no folder of a saved policy" in capsys.readouterr().err


def test_a_run_replaces_its_own_part_of_the_file(tmp_path):
    def run(seconds):
        ratio = {"median": seconds, "min": 1.0, "max": 9.0}
        return {
            "seconds": {"dvpo": 1.0, "trl": seconds},
            "response_length": {"dvpo": 15.0, "trl": 16.0},
            "trl_over_ours": {"seconds": ratio, "cpu": ratio},
            "rounds": [{}, {}],
        }

    file = tmp_path / "new" / "against_trl.json"
    for part, seconds in (("trained", 2.0), ("untrained", 3.0), ("trained", 4.0)):
        everything = against_trl.replace_part(file, part, run(seconds))
    assert json.loads(file.read_text()) == everything and list(everything) == ["untrained", "trained"]
    table = against_trl.overview_table(everything)
    assert table.loc["TRL over ours, seconds, median"].to_dict() == {"untrained": 3.0, "trained": 4.0}
    assert table.loc["response_length, trl"].tolist() == [16.0, 16.0] and table.loc["rounds"].tolist() == [2, 2]


@pytest.mark.parametrize("part", against_trl.POLICY_PARTS)
def test_a_round_measures_both_trainers(tmp_path, part):
    pytest.importorskip("trl")
    policy = []
    if part == "trained":
        tokenizer = against_trl.build_tokenizer(against_trl.TaskSettings())
        small = against_trl.PolicySettings(hidden_size=32, num_hidden_layers=1)
        against_trl.build_policy(tokenizer, small, seed=1).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        policy = ["--policy", str(tmp_path / "base")]
    against_trl.main(["--rounds", "1", "--warmup", "0", "--out", str(tmp_path), *policy])
    found = json.loads((tmp_path / "against_trl.json").read_text())[part]
    assert found["response_length"]["trl"] == pytest.approx(found["response_length"]["dvpo"], rel=0.2)
    assert len(found["rounds"]) == 1 and found["trl_over_ours"]["seconds"]["median"] > 0
