"""Pieces of profile `real` at the smallest scale: a tiny pretrained model, made-up dialogues, one table of rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import transformers as hf
from chat_families import tokenizer_of
from conftest import ROOT
from published_dialogues import made_up_dialogue
from safetensors.torch import save_file

from dvpo_lib.chain.commands import pieces as commands
from dvpo_lib.chain.params import load_params
from dvpo_lib.common.durable_files import locked_file
from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.real import pieces
from dvpo_lib.experiments.run_store import RunsFailed, spec_key
from dvpo_lib.experiments.specs.base_policy import base_policy_spec
from dvpo_lib.models.policy import load_policy
from dvpo_lib.noise.reward_model import RewardModel, load_reward_model
from dvpo_lib.tasks.families import FAMILIES

TINY = {
    "tasks.slots.trained": {"life": ["Food_1"]},
    "tasks.slots.unseen": {"life": ["Food_2"]},
    "tasks.other_slots": None,
    "policy.steps": 2,
    "policy.batch_size": 4,
    "budget": 32,
    "training.generation_batch_size": 16,
    "training.num_generations": 4,
    "training.bf16": None,
    "evaluation.prompts": 4,
    "evaluation.k": 1,
    "runtime.workers": 1,
    **{f"critics.{name}.pretrain_rollouts": 16 for name in ("scalar", "scalar_clipped", "quantile")},
    **{f"critics.{name}.pretrain_epochs": 1 for name in ("scalar", "scalar_clipped", "quantile")},
    **{f"critics.{name}.layers": 1 for name in ("scalar", "scalar_clipped", "quantile")},
}


PUBLISHED = Path(os.environ.get("DVPO_REAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """Profile `real` with another model, by one setting, and other dialogues."""
    place = tmp_path_factory.mktemp("real")
    tokenizer = tokenizer_of("ChatML")
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        dtype="bfloat16",
    )
    hf.LlamaForCausalLM(config).bfloat16().save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "sgd").mkdir()
    records = [made_up_dialogue(i, service) for service in ("Food_1", "Food_2") for i in range(30)]
    (place / "sgd" / "dialogues.jsonl").write_text("\n".join(map(json.dumps, records)))
    changes = TINY | {"policy.name_or_path": str(place / "model"), "real.dir": str(place)}
    return load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "real.yaml", changes=changes)


def test_pieces_are_computed_once_and_become_rows(params, tmp_path, monkeypatch):
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    table = tmp_path / "reports" / "runs.csv"
    for name in ("dvpo/spikes/0", "base"):
        [run] = pieces.find_piece(params, "real", name)
        pieces.add_rows(table, pieces.run_piece(params, run, tmp_path / name.replace("/", "-")))
    found = pd.read_csv(table)
    assert found["method"].drop_duplicates().tolist() == ["base", "dvpo"]
    assert set(found["suite"]) == {"slots_id", "slots_ood"} and found["value"].between(0, 1).all()
    greedy = found[(found["method"] == "dvpo") & found["metric"].str.startswith("greedy: ")]
    assert set(greedy["metric"].str.removeprefix("greedy: ")) <= {
        "said last",
        "said earlier",
        "not said",
        "several slots",
        "no preference",
    }
    assert found.groupby("method")["plan"].nunique().eq(1).all() and found["plan"].nunique() == found["key"].nunique()
    assert len(list((tmp_path / "store").glob("*/critic.safetensors"))) == 1
    [folder] = (tmp_path / "store").glob(found[found["method"] == "dvpo"]["key"].iloc[0])
    assert sorted(file.name for file in folder.iterdir()) == ["answers.csv", "curves.csv", "final.csv"], "no weights"
    before, stored = table.read_bytes(), {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.csv")}
    [run] = pieces.find_piece(params, "real", "dvpo/spikes/0")
    pieces.add_rows(table, pieces.run_piece(params, run, tmp_path / "again"))
    assert table.read_bytes() == before and stored == {p: p.stat().st_mtime_ns for p in stored}
    [base] = pieces.execute_specs([base_policy_spec(params)], 1, None)
    policy, _ = load_policy(str(base / "base"))
    assert str(policy.dtype) == "torch.float32" and len(pd.read_csv(base / "losses.csv")) == 2
    model = RewardModel(policy, layers=1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert load_reward_model(tmp_path / "model.safetensors", policy).backbone.config.num_hidden_layers == 1


def test_pieces_that_are_missing_are_computed_until_the_time_is_over(params, tmp_path, monkeypatch):
    """Each process takes what no other computes; a piece that is there is computed no more."""
    root, made = tmp_path / "project", []
    root.mkdir()
    (root / "README.md").write_text("<!-- findings: written by `make real` -->\n<!-- end of findings: real -->\n")

    def made_up_rows(params, run, scratch):
        made.append(run.labels)
        score = dict(suite="slots_id", role="ID", metric="sampled", value=0.5, diverged=None)
        return pd.DataFrame([run.labels | score | dict(key="k", plan="", machine="m")])

    monkeypatch.chdir(root)  # the command goes there; the directory of other tests is theirs again afterwards
    monkeypatch.setattr(commands, "project_root", lambda: root)
    monkeypatch.setattr(commands, "load_params", lambda *_, **__: params)
    monkeypatch.setattr(commands, "run_piece", made_up_rows)
    names = list(pieces.all_pieces(params, "real"))
    chosen = argparse.Namespace(pieces=[], profile="real", minutes=1.0)
    with locked_file(root / "work" / "pieces" / "real" / f"{names[3].replace('/', '-')}.lock"):
        commands.run_pieces(chosen)
    assert len(made) == len(names) - 1
    table = root / "reports" / "real" / "runs.csv"
    assert pieces.missing_pieces(table, pieces.all_pieces(params, "real")) == [names[3]]
    commands.run_pieces(argparse.Namespace(pieces=[], profile="real", minutes=-1.0))
    assert len(made) == len(names) - 1, "the time is over"
    commands.run_pieces(chosen)
    assert len(made) == len(names) and len(pd.read_csv(table)) == len(names)
    commands.run_pieces(chosen)
    assert len(made) == len(names)
    assert f"- Computed on: m ({len(names)} runs)." in (root / "README.md").read_text()


def test_a_piece_that_fails_is_named_and_the_others_go_on(params, tmp_path, monkeypatch, capsys):
    def fails(params, run, scratch):
        raise RunsFailed("1 of 1 runs failed")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "project_root", lambda: tmp_path)
    monkeypatch.setattr(commands, "load_params", lambda *_, **__: params)
    monkeypatch.setattr(commands, "run_piece", fails)
    assert commands.run_pieces(argparse.Namespace(pieces=["base"], profile="real", minutes=1.0)) == 1
    printed = capsys.readouterr()
    assert all(f"error: piece {name}: 1 of 1" in printed.err for name in pieces.all_pieces(params, "real"))


@pytest.mark.skipif(not (PUBLISHED / "mmlu").is_dir(), reason="the published problems are not here")
def test_published_problems_run_for_an_iteration(params, tmp_path, monkeypatch):
    """GSM8K and MMLU: the same chain, another profile. Answers are cut short here."""
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    for name in ("gsm8k", "mmlu"):
        monkeypatch.setitem(FAMILIES, name, FAMILIES[name]._replace(max_completion_tokens=lambda steps: 4))
    changes = {
        "families": ["gsm8k"],
        "tasks.gsm8k": {"train": 20, "test": 4},
        "tasks.mmlu": {"train": 20, "test": 4},
        "policy.name_or_path": params.policy.name_or_path,
        "real.dir": str(PUBLISHED),
        "budget": 16,
        "training": {"generation_batch_size": 8, "num_generations": 4},
        "evaluation.prompts": 2,
        "runtime.workers": 1,
        **{f"critics.{name}.pretrain_rollouts": 8 for name in ("scalar", "scalar_clipped", "quantile")},
    }
    profile = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "problems.yaml", changes=changes)
    run = pieces.find_piece(profile, "problems", "grpo/none/0")[0]
    rows = pieces.run_piece(profile, run, tmp_path)
    roles = rows.drop_duplicates("suite").set_index("suite")["role"].to_dict()
    assert roles == {"gsm8k_id": "ID", "gsm8k_ood": "OOD", "mmlu_id": "transfer", "mmlu_ood": "transfer"}
    assert rows["value"].between(0, 1).all()


def test_all_pieces_of_the_profile(params):
    names = list(pieces.all_pieces(params, "real"))
    assert names[0] == "base"
    assert {"grpo/none/0", "ppo_clip_reward/reward_model/2", "core/spikes/1"} <= set(names)
    with pytest.raises(ConfigError, match="there is no piece dvpo/spike/0; did you mean `dvpo/spikes/0`?"):
        pieces.find_piece(params, "real", "dvpo/spike/0")


def test_a_missing_model_is_named_before_anything_runs(params):
    with pytest.raises(
        ConfigError, match=r"policy\.name_or_path: there is no folder data/models/none; `make base-model`"
    ):
        load_params(
            ROOT / "params.yaml",
            overlaid=ROOT / "profiles" / "real.yaml",
            changes={"policy.name_or_path": "data/models/none", "real.dir": params.real.dir},
        )


def test_a_pretrained_model_is_keyed_by_its_bytes(params, tmp_path):
    """The same model at another place has the same key."""
    (tmp_path / "moved").symlink_to(params.policy.name_or_path)
    moved = dataclasses.replace(params.policy, name_or_path=str(tmp_path / "moved"))
    specs = [base_policy_spec(params), dataclasses.replace(base_policy_spec(params), policy=moved)]
    assert spec_key(specs[0]) == spec_key(specs[1])
