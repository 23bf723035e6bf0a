"""Recipes: they load, name files that exist, fit their GPUs by the committed plans, and train a tiny model."""

from __future__ import annotations

import json
import re

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT

from dvpo_lib.common.settings_tree import ConfigError
from dvpo_lib.experiments.launch.network_outlines import load_model_config
from dvpo_lib.experiments.launch.recipes import read_recipe, reward_of, train_command
from dvpo_lib.experiments.launch.run_plans import RunOutline, plan_heading
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

FOLDER = ROOT / "recipes"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def recipe_run(name: str) -> RunOutline:
    own = read_recipe(FOLDER / name).planned()
    return RunOutline(**{**own, "config": load_model_config(own["config"])})


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_load_and_their_plans_are_of_their_settings(name):
    recipe, run = read_recipe(FOLDER / name), recipe_run(name)
    args = run.arguments()
    assert callable(reward_of(recipe.reward))
    launch = load_config_from_file(str(FOLDER / recipe.hardware.accelerate))
    assert launch.num_processes == run.gpus and (launch.distributed_type == "FSDP") == run.sharded
    assert launch.mixed_precision == ("bf16" if args.bf16 else "no")
    line = re.search(r"^# (accelerate launch .+)$", (FOLDER / name).read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert line.split()[3:] == [f"recipes/{recipe.hardware.accelerate}", "-m", "dvpo_lib", "train", f"recipes/{name}"]
    assert line in README
    passage = README[README.index(f"## {name}") :].split("\n## ")[0]  # `python -m benchmarks.plan --recipes`
    assert plan_heading(run) in passage and "  fits: " in passage


def test_sizes_of_the_models_are_those_of_qwen3():
    counts = {}
    for name in ("qwen3_1.7b", "qwen3_8b"):
        c = load_model_config(FOLDER / "models" / f"{name}.json")
        attention = 2 * c.hidden_size * c.head_dim * (c.num_attention_heads + c.num_key_value_heads) + 2 * c.head_dim
        layer = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
        words = c.vocab_size * c.hidden_size * (1 if c.tie_word_embeddings else 2)
        counts[name] = c.num_hidden_layers * layer + words + c.hidden_size
    assert counts == {"qwen3_1.7b": 1_720_574_976, "qwen3_8b": 8_190_735_360}  # of the published weights


def _said(speaker: str, text: str) -> dict:
    return {"from": speaker, "value": text}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_with_a_tiny_model(name, tmp_path, monkeypatch):
    if read_recipe(FOLDER / name).peft is not None:
        pytest.importorskip("peft")
    tokenizer = build_tokenizer(TaskSettings())
    tokenizer.save_pretrained(tmp_path / "model")
    build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=1), 0).save_pretrained(tmp_path / "model")
    rows = [{"question": "math 7 a", "answer": f"so #### {i}"} for i in range(4)]
    if read_recipe(FOLDER / name).data.name == "light_r1":
        rows = [{"conversations": [_said("user", "math 7 a"), _said("assistant", f"\\boxed{{{i}}}")]} for i in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    changes = {
        "model": tmp_path / "model",
        "data.path": tmp_path / "train.jsonl",
        "training.output_dir": tmp_path / "out",
        "training.max_completion_length": 4,
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.max_steps": 1,
        "training.bf16": "false",
        "training.model_init_kwargs": "{dtype: float32}",
        "training.use_cpu": "true",
    }

    class Chosen:
        recipe, parameter = FOLDER / name, [f"{key}={value}" for key, value in changes.items()]

    train_command(Chosen)
    assert any((tmp_path / "out").glob("*.safetensors"))
    assert json.loads((tmp_path / "out/checkpoint-1/trainer_state.json").read_text())["global_step"] == 1


def test_wrong_keys_are_named(tmp_path):
    file = tmp_path / "mine.yaml"
    text = (FOLDER / "full_80gb.yaml").read_text(encoding="utf-8")
    for wrong, message in (
        (text.replace("prompt_length: 512", "prompt_length: long"), "mine.yaml: hardware.prompt_length"),
        (text.replace("reward:", "rewards:"), "mine.yaml: rewards"),
    ):
        file.write_text(wrong, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_recipe(file)
    with pytest.raises(ConfigError, match="reward nowhere:f"):
        reward_of("nowhere:f")
