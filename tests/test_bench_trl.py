"""The comparison with TRL: its arithmetic, what it says without TRL, and where TRL is installed a round of it."""

from __future__ import annotations

import importlib.metadata
import json

import pytest

from benchmarks import against_trl


def test_summary():
    rows = [{"trl_seconds": t, "dvpo_seconds": d, "trl_cpu": t / 2, "dvpo_cpu": d, "trl_length": 30.0,
             "dvpo_length": 28.0} for t, d in [(2.0, 1.0), (3.0, 1.0), (4.0, 0.5)]]  # fmt: skip
    table, ratios = against_trl.summary(rows)
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


def test_a_round(tmp_path):
    pytest.importorskip("trl")
    against_trl.main(["--rounds", "1", "--warmup", "0", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "against_trl.json").read_text())
    assert found["response_length"]["trl"] == pytest.approx(found["response_length"]["dvpo"], rel=0.2)
    assert len(found["rounds"]) == 1 and found["trl_over_ours"]["seconds"]["median"] > 0
