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


def test_loss_and_gradient_of_grpo_equal_trls(tmp_path):
    """From equal weights, rollouts, old log-probabilities, reference and settings, with a clip that acts."""
    pytest.importorskip("trl")
    import torch
    from conftest import run_settings
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from dvpo_lib.models.tokens import Tokens
    from dvpo_lib.rl.rewards import Scores
    from dvpo_lib.rl.sampling.rollouts import Rollouts
    from dvpo_lib.rl.trainer import DVPOTrainer
    from dvpo_lib.rl.updates import policy_objective

    tokenizer = against_trl.build_tokenizer(against_trl.TaskSettings())
    base = against_trl.build_policy(tokenizer, against_trl.PolicySettings(hidden_size=32, num_hidden_layers=2), seed=1)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    records = [{"prompt": f"math {i // 4} ?"} for i in range(8)]
    data = Dataset.from_list(records)

    def length(completions, **others):
        return [float(len(completion)) for completion in completions]

    common = dict(num_generations=4, max_completion_length=12, beta=0.3, epsilon=0.1, temperature=0.9)
    theirs = GRPOTrainer(
        str(tmp_path / "base"),
        length,
        GRPOConfig(
            str(tmp_path / "trl"),
            per_device_train_batch_size=8,
            loss_type="grpo",
            scale_rewards="group",
            use_bias_correction_kl=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **common,
        ),
        data,
        processing_class=tokenizer,
    )
    policy, _ = against_trl.load_policy(str(tmp_path / "base"))
    args = run_settings(method="grpo", generation_batch_size=8, num_mini_batches=1, **common)
    ours = DVPOTrainer(policy, length, args, data, processing_class=tokenizer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # the policies move away from the reference, alike
        for a, b in zip(theirs.model.parameters(), ours.policy.parameters(), strict=True):
            a.add_(0.1 * torch.randn(a.shape, generator=generator))
            b.copy_(a)
    theirs.current_gradient_accumulation_steps = 1
    batch = theirs._generate_and_score_completions(records)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1).long()
    tokens = Tokens(ids, seen, batch["completion_mask"].bool())
    now = ours.logprobs_of(ours.policy, tokens).detach()
    old = torch.where(tokens.mask, now + 0.2 * torch.randn(now.shape, generator=generator), 0.0)
    loss = theirs._compute_loss(theirs.model, batch | {"old_per_token_logps": old})
    loss.backward()
    texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    prompts = [record["prompt"] for record in records]
    rewards = torch.tensor(length(texts))
    x = ours.build_experience(Rollouts(tokens, old, prompts, texts), Scores(rewards, {}))
    advantages, _ = ours.method.advantage(x, ours.args)
    torch.testing.assert_close(advantages[:, 0], batch["advantages"].flatten(), atol=1e-5, rtol=1e-5)
    own, _ = policy_objective(ours.policy, ours.make_batch(x, advantages, None), tokens, torch.arange(8), ours.args)
    own.backward()
    assert own.item() == pytest.approx(loss.item(), abs=1e-5) and abs(own.item()) > 1e-3
    for a, b in zip(theirs.model.parameters(), ours.policy.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-5)


def test_one_script_runs_under_both_trainers(tmp_path):
    pytest.importorskip("trl")
    from test_contract import TEMPLATE, run_script

    tokenizer = against_trl.build_tokenizer(against_trl.TaskSettings())
    tokenizer.chat_template = TEMPLATE
    logs = []
    for library, name in (("trl", "GRPO"), ("dvpo_lib", "DVPO")):
        (tmp_path / library).mkdir()
        t = run_script(tokenizer, tmp_path / library, library, f"{name}Config", f"{name}Trainer")
        assert t.state.global_step == 3
        logs.append({key for key in t.state.log_history[0] if key.startswith("reward")})
    assert logs[0] <= logs[1] and {"rewards/length/mean", "rewards/at_times/std", "reward_std"} <= logs[0]
