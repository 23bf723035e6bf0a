"""Checkpoints: whole, hashed, of the last step, and refused by a run that is another one."""

import json
import shutil

import pytest
import torch
from conftest import run_settings
from test_trainer import arm, config, networks, quiet_trainer, records_of, trainer

from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.trainer_base import checkpoints
from dvpo_lib.rl.trainer_base.manifests import CheckpointError
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def saving(tokenizer, folder, method="ppo", rewards=arm, **changes):
    """A trainer of three iterations of 4 optimiser steps that saves after each 5."""
    places = dict(output_dir=str(folder), save_strategy="steps", save_steps=5, save_total_limit=None)
    return trainer(tokenizer, method, rewards, **places | changes)


def places(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_steps_are_saved_and_old_checkpoints_go(tokenizer, tmp_path):
    saving(tokenizer, tmp_path / "all").train()
    assert places(tmp_path / "all") == ["checkpoint-10", "checkpoint-12", "checkpoint-5"]
    saving(tokenizer, tmp_path / "two", save_total_limit=2).train()
    assert places(tmp_path / "two") == ["checkpoint-10", "checkpoint-12"]
    files = {path.name for path in (tmp_path / "all" / "checkpoint-10").iterdir()}
    own = {"critic.safetensors", "critic_optimizer.pt", "batch.safetensors", "optimizer.pt", "scheduler.pt"}
    assert own | {"model.safetensors", "manifest.json", "trainer_state.json", "rng_state.pth"} <= files
    assert "batch.safetensors" not in {path.name for path in (tmp_path / "all" / "checkpoint-12").iterdir()}


def test_an_interrupted_write_leaves_no_checkpoint(tokenizer, tmp_path, monkeypatch):
    def fail(*arguments, **others):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_checkpoint_manifest", fail)
    with pytest.raises(KeyboardInterrupt):
        saving(tokenizer, tmp_path).train()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    saving(tokenizer, folder).train()
    return folder


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(learning_rate=1e-3), "learning_rate was 0.01 and is 0.001"),
        (dict(method="ppo_clip_reward"), "method was ppo and is ppo_clip_reward"),
        (dict(method="grpo"), "method was ppo and is grpo"),
        (dict(lam=0.5), "lam was 0.95 and is 0.5"),
        (dict(seed=1), "seed was 0 and is 1"),
        (dict(critic=config("ppo").critic.__class__(kind="scalar", value_clip=0.1)), "critic.value_clip was 0.2"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tokenizer, finished, changes, message):
    with pytest.raises(CheckpointError, match=message):
        saving(tokenizer, finished, **changes).train(resume_from_checkpoint=str(finished / "checkpoint-10"))


@pytest.mark.parametrize("file", ["model.safetensors", "critic.safetensors", "optimizer.pt", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["flip", "empty", "missing"])
def test_a_damaged_checkpoint_is_named(tokenizer, finished, tmp_path, file, damage):
    copied = tmp_path / "checkpoint-10"
    shutil.copytree(finished / "checkpoint-10", copied)
    content = bytearray((copied / file).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        (copied / file).unlink()
    else:
        (copied / file).write_bytes(content if damage == "flip" else b"")
    with pytest.raises(CheckpointError, match=f"{file} is (damaged|missing).* earlier checkpoint"):
        saving(tokenizer, tmp_path).train(resume_from_checkpoint=str(copied))


def test_every_flipped_bit_of_a_manifest_is_seen(finished, tmp_path):
    content = (finished / "checkpoint-10" / "manifest.json").read_bytes()
    for place in range(0, len(content), 97):
        spoilt = bytearray(content)
        spoilt[place] ^= 1 << place % 8
        (tmp_path / "manifest.json").write_bytes(spoilt)
        with pytest.raises(CheckpointError, match="manifest.json is damaged"):
            checkpoints.read_checkpoint_manifest(tmp_path)


def test_a_model_alone_cannot_be_gone_on_from(tokenizer, tmp_path):
    saving(tokenizer, tmp_path, save_only_model=True, max_steps=2).train()
    with pytest.raises(CheckpointError, match="holds a model alone"):
        saving(tokenizer, tmp_path, save_only_model=True).train(resume_from_checkpoint=True)


def test_adapters_go_on_bit_for_bit_and_other_adapters_are_refused(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")

    def with_adapters(rank=4, alpha=8):
        lora = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        places = dict(output_dir=str(tmp_path), save_strategy="steps", save_steps=5, save_total_limit=None)
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
        return quiet_trainer(policy, arm, config("dvpo", **places), tokenizer, peft_config=lora)

    straight, resumed = with_adapters(), with_adapters()
    for a, b in zip(straight.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)  # the seed decides the adapters' first weights
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for one, other in zip(networks(straight), networks(resumed), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    for changes, name in ((dict(rank=2), "r was 4 and is 2"), (dict(alpha=2), "lora_alpha was 8 and is 2")):
        with pytest.raises(CheckpointError, match=f"peft_config.default.{name}"):
            with_adapters(**changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_a_reference_that_follows_the_policy_goes_on_bit_for_bit(tokenizer, tmp_path):
    settings = dict(method="grpo", beta=0.1, sync_ref_model=True, ref_model_sync_steps=3, ref_model_mixup_alpha=0.5)
    straight, resumed = (saving(tokenizer, tmp_path, **settings) for _ in range(2))
    first = [p.clone() for p in straight.ref_model.parameters()]
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for name in ("policy", "ref_model"):
        pairs = zip(getattr(straight, name).parameters(), getattr(resumed, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(torch.equal(a, b) for a, b in zip(first, straight.ref_model.parameters()))
    policy, reference = ([p.clone() for p in m.parameters()] for m in (straight.policy, straight.ref_model))
    straight.update_reference()
    for source, before, after in zip(policy, reference, straight.ref_model.parameters(), strict=True):
        torch.testing.assert_close(after, (source + before) / 2)
    with pytest.raises(ValueError, match="sync_ref_model needs a reference policy"):
        saving(tokenizer, tmp_path, **settings | dict(beta=0.0))


def test_what_is_no_checkpoint_is_named(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint of DVPOTrainer: it has no manifest.json"):
        saving(tokenizer, tmp_path).train(resume_from_checkpoint=str(tmp_path))


def test_another_reference_policy_is_refused(tokenizer, finished):
    other = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=1)
    places = dict(output_dir=str(finished), save_strategy="steps", save_steps=5, save_total_limit=None)
    t = quiet_trainer(other, arm, config("ppo", **places), tokenizer)
    with pytest.raises(CheckpointError, match="the reference policy of the checkpoint is another one"):
        t.train(resume_from_checkpoint=str(finished / "checkpoint-10"))


def test_a_model_of_another_size_is_refused(tokenizer, tmp_path):
    settings = dict(output_dir=str(tmp_path), save_strategy="steps", max_steps=1, beta=0.0)
    for layers in (1, 2):
        policy = build_policy(tokenizer, PolicySettings(hidden_size=16, num_hidden_layers=layers), seed=0)
        t = quiet_trainer(policy, arm, config("grpo", **settings), tokenizer)
        if layers == 1:
            t.train()
        else:
            with pytest.raises(
                CheckpointError, match="model was Qwen3ForCausalLM of .* parameters and is Qwen3ForCausalLM"
            ):
                t.train(resume_from_checkpoint=True)


def test_a_run_can_go_on_beyond_its_end(tokenizer, finished):
    t = saving(tokenizer, finished, max_steps=4, save_strategy="no")
    t.train(resume_from_checkpoint=str(finished / "checkpoint-12"))
    assert t.state.global_step == 16 and len(records_of(t)) == 4


def test_a_model_in_train_mode_resumes_bit_for_bit(tokenizer, tmp_path):
    """Dropout is on in the policy that came; it acts in no step, and the mode is what it was afterwards."""

    def in_train_mode(folder, **changes):
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
        policy.config.attention_dropout = 0.5
        for module in policy.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        places = dict(output_dir=str(folder), save_strategy="steps", save_steps=6, save_total_limit=None)
        return quiet_trainer(policy.train(), arm, config("dvpo", **places | changes), tokenizer)

    straight = in_train_mode(tmp_path / "a")
    straight.train()
    assert straight.policy.training
    resumed = in_train_mode(tmp_path / "a")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    for one, other in zip(networks(straight), networks(resumed), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_dropout_that_is_asked_for_resumes_bit_for_bit(tokenizer, tmp_path):
    def with_dropout():
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
        for module in policy.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.5
        places = dict(
            output_dir=str(tmp_path), save_strategy="steps", save_steps=6, save_total_limit=None, disable_dropout=False
        )
        return quiet_trainer(policy, arm, config("grpo", **places), tokenizer)

    straight, resumed = with_dropout(), with_dropout()
    straight.train()
    torch.manual_seed(5)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert all(torch.equal(a, b) for a, b in zip(straight.policy.parameters(), resumed.policy.parameters()))


def test_means_of_prompts_rewards_go_on_where_they_were(tokenizer, tmp_path):
    def by_prompt_means():
        readout = dict(kind="denoised", centre="prompt_mean", weight=0.5)
        places = dict(output_dir=str(tmp_path), save_strategy="steps", save_steps=6, save_total_limit=None)
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
        return quiet_trainer(policy, arm, config("ppo", **places, readout=readout), tokenizer)

    straight, resumed = by_prompt_means(), by_prompt_means()
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(straight.prompt_means.sums) > 1 and straight.prompt_means.sums == resumed.prompt_means.sums
    assert all(torch.equal(a, b) for a, b in zip(straight.policy.parameters(), resumed.policy.parameters()))


def test_manifest_lists_every_file(finished):
    folder = finished / "checkpoint-12"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert manifest["settings"]["method"] == "ppo" and len(manifest["reference"]) == 64
    own = manifest["settings"].keys() - {"critic", "model", "peft_config", "steps_per_iteration"}
    assert run_settings(method="ppo").to_dict().keys() >= own
