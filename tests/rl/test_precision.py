"""Numbers and modes: float32 master weights, one precision for all networks, checkpointing without dropout, warm-up,
gradient scale, and runs that end as soon as a number is not finite."""

import copy
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import run_settings
from test_trainer import PROMPTS, Watcher, arm, config, networks, quiet_trainer, records_of, trainer
from transformers import GPT2Config, GPT2LMHeadModel, SchedulerType

from dvpo_lib.models.critic import CriticSettings, build_critic
from dvpo_lib.models.critic_training import fit_critic
from dvpo_lib.models.modes import inference_mode_of, learning_mode_of
from dvpo_lib.models.policy import PolicySettings, build_policy, fit_language_model, token_logprobs
from dvpo_lib.models.tokens import encode_completions
from dvpo_lib.noise.reward_model import RewardModel, RewardModelSettings, search_accuracy
from dvpo_lib.rl import updates
from dvpo_lib.rl.estimators import importance_weights
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.sampling.rollouts import sample_answers
from dvpo_lib.rl.updates import TrainingDiverged
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def small_policy(tokenizer):
    return build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)


def gpt2(tokenizer, dropout=0.3):
    rates = dict(resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    ends = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, **rates, **ends)
        )


# ---- precision ----


@pytest.mark.parametrize("method", ["ppo", "grpo", "cql"])
def test_every_weight_of_a_bf16_checkpoint_moves_at_a_small_learning_rate(tokenizer, method):
    """In bf16 97 % of the weights would stay as they are."""
    t = quiet_trainer(small_policy(tokenizer).bfloat16(), arm, config(method, learning_rate=1e-6), tokenizer)
    before = [p.clone() for p in t.policy.parameters()]
    assert {p.dtype for m in networks(t) for p in m.parameters()} == {torch.float32}
    t.train()
    same = sum((a == b).sum().item() for a, b in zip(before, t.policy.parameters()))
    assert same < 0.2 * sum(p.numel() for p in before)


@pytest.mark.parametrize("method", ["dvpo", "ppo", "grpo", "rfqi"])
def test_equal_weights_have_ratio_zero_under_autocast(tokenizer, method):
    """Reference, old log-probabilities and those of the update are of one precision; values are float32."""
    t = trainer(tokenizer, method, bf16=True, beta=0.1, old_logprobs=None)
    assert t.args.old_logprobs == "truncated"
    t.make_ready()
    batch = t.collect_batch()
    assert (batch.logprobs[batch.tokens.mask] == batch.reference_logprobs[batch.tokens.mask]).all()
    rows = torch.arange(16)
    part = batch.tokens.rows(rows)
    with t.accelerator.autocast(), learning_mode_of(t.policy):
        now = token_logprobs(t.policy, part, t.args.temperature)[0]
    old = batch.logprobs[rows, : part.completion_length]
    torch.testing.assert_close(now[part.mask], old[part.mask], atol=1e-6, rtol=0)
    values = t.by_micro_batch(t.critic, batch.tokens) if t.critic is not None else None
    for x in [values] if isinstance(values, torch.Tensor) else vars(values).values() if values is not None else []:
        assert x is None or x.dtype == torch.float32
    assert torch.isfinite(torch.tensor(t.step()["policy_loss"]))


@pytest.mark.parametrize("layers, bf16", [(None, False), (["embed_tokens"], True), (["embed_tokens"], False)])
def test_whole_layers_that_are_trained_beside_adapters_are_float32(tokenizer, layers, bf16):
    """The frozen base keeps its 16 bits, if it can read what float32 layers give."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=layers, task_type="CAUSAL_LM")
    args = config("dvpo", bf16=bf16, old_logprobs=None)
    t = quiet_trainer(small_policy(tokenizer).bfloat16(), arm, args, tokenizer, peft_config=lora)
    trained = {p.dtype for m in networks(t) for p in m.parameters() if p.requires_grad}
    frozen = {p.dtype for p in t.policy.parameters() if not p.requires_grad}
    assert (trained, frozen) == ({torch.float32}, {torch.float32 if layers and not bf16 else torch.bfloat16})
    assert torch.isfinite(torch.tensor(t.step()["policy_loss"]))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_critics_weights_decay_as_the_settings_say(tokenizer, rate):
    """Not at the rate that AdamW has by default."""
    t = trainer(tokenizer, "dvpo", weight_decay=rate)
    t.make_ready()
    decays = {id(p): group["weight_decay"] for group in t.critic_optimizer.param_groups for p in group["params"]}
    assert [decays[id(p)] for _, p in t.critic.named_parameters()] == [
        0.0 if "norm" in name or name.endswith("bias") else rate for name, _ in t.critic.named_parameters()
    ]


def test_importance_weights_are_truncated_at_the_cap(tokenizer):
    t = trainer(tokenizer, "grpo", old_logprobs="truncated", importance_sampling_cap=1.5)
    sampled, mask = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[True, True, False]])
    rollouts, columns = t.sample()
    x = t.build_experience(rollouts, t.score(rollouts, columns))
    tokens = replace(x.tokens, mask=mask, input_ids=x.tokens.input_ids[:1], attention_mask=x.tokens.attention_mask[:1])
    x = replace(x, tokens=tokens, logprobs=torch.tensor([[-0.1, -1.1, 9.0]]), sampled_logprobs=sampled)
    want = torch.tensor([[1.5, 0.9048374, 1.0]])
    torch.testing.assert_close(importance_weights(x, t.args), want)


@pytest.mark.parametrize(
    "changes", [dict(importance_sampling_level="sequence"), dict(delta=1.001), dict(use_bias_correction_kl=True)]
)
def test_settings_of_the_ratio_reach_the_update(tokenizer, changes):
    """The first step is at ratio 1, where they change nothing; later ones differ."""
    settings = dict(beta=0.1, num_iterations=2, epsilon=1e-4, learning_rate=1e-2)
    logs = []
    for t in (trainer(tokenizer, "grpo", **settings), trainer(tokenizer, "grpo", **settings | changes)):
        t.make_ready()
        batch = t.collect_batch()
        logs.append([t.update(batch, rows) for rows in t.rows_of_steps(batch)])
    assert logs[0][0]["policy_loss"] == pytest.approx(logs[1][0]["policy_loss"], abs=1e-6)
    assert logs[0][-1]["policy_loss"] != pytest.approx(logs[1][-1]["policy_loss"], abs=1e-6)


def test_sampling_under_autocast_casts_each_weight_once(tokenizer):
    """In `inference_mode` autocast would cast all weights for every token. No cast outlives an update."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            cast = "_to_copy" in str(function) and kwargs.get("dtype") == torch.bfloat16
            Casts.count += cast and any(args[0].data_ptr() == p.data_ptr() for p in policy.parameters())
            return function(*args, **kwargs)

    policy = small_policy(tokenizer)
    matrices = sum(p.ndim == 2 for p in policy.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            with Casts():
                rollouts = sample_answers(policy, tokenizer, [row["prompt"] for row in PROMPTS[:4]], 12)
            assert rollouts.tokens.mask.sum(1).max() > 4 and 0 < Casts.count <= matrices
            Casts.count = 0
            with torch.no_grad():
                [p.mul_(0.5) for p in policy.parameters()]


# ---- modes ----


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", ["dvpo", "grpo"])
def test_checkpointing_works_in_either_mode_and_changes_no_result(tokenizer, method, mode):
    """The sampler reads a cache, updates compute activations twice; dropout is off; the mode comes back."""
    results = []
    for checkpointing in (False, True):
        policy = getattr(gpt2(tokenizer), mode)()
        t = quiet_trainer(policy, arm, config(method, gradient_checkpointing=checkpointing), tokenizer)
        calls = []
        for module in policy.modules():
            if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
                own = module._gradient_checkpointing_func
                counted = lambda *a, own=own, calls=calls, **k: calls.append(1) or own(*a, **k)  # noqa: E731
                module._gradient_checkpointing_func = counted
        t.step()
        assert bool(calls) == checkpointing
        assert all(module.training == (mode == "train") for module in policy.modules())
        results.append([p.clone() for m in networks(t) for p in m.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_modes_are_contexts(tokenizer):
    policy = gpt2(tokenizer).train()
    policy.transformer.h[0].eval()
    flags = [module.training for module in policy.modules()]
    with inference_mode_of(policy, None):
        assert not any(module.training for module in policy.modules())
    policy.gradient_checkpointing_enable()
    with learning_mode_of(policy):
        dropouts = [module for module in policy.modules() if isinstance(module, torch.nn.Dropout)]
        assert dropouts and not any(module.training for module in dropouts)
        assert all(block.training for block in policy.transformer.h)
    with learning_mode_of(policy, dropout=True):
        assert all(module.training for module in policy.modules())
    assert [module.training for module in policy.modules()] == flags


# ---- schedules and scale ----


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_warm_up_rises_to_the_rate_and_no_step_is_at_zero(tokenizer, kind):
    """Three iterations of 4 optimiser steps, the first one of which is warm-up."""
    t = trainer(tokenizer, "grpo", lr_scheduler_type=kind, warmup_steps=1, logging_steps=1)
    t.train()
    rates = [logs["learning_rate"] / t.args.learning_rate for logs in t.state.log_history if "learning_rate" in logs]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0]) and min(rates) > 0
    assert (rates[-1] == 1) == (kind == "constant")


def test_a_rate_that_falls_on_a_plateau_waits_for_evaluations(tokenizer):
    """Two of them; no metric counts as better."""
    rule = dict(lr_scheduler_kwargs={"patience": 0, "threshold": 10.0})
    when = dict(eval_strategy="steps", eval_steps=4, metric_for_best_model="eval_reward", max_steps=2)
    args = config("grpo", **rule, **when)
    t = quiet_trainer(small_policy(tokenizer), arm, args, tokenizer, eval_dataset=PROMPTS[:1])
    t.args.lr_scheduler_type = SchedulerType.REDUCE_ON_PLATEAU
    t.train()
    assert t.lr_scheduler.get_last_lr()[0] == pytest.approx(0.01 * t.args.learning_rate)


@pytest.mark.parametrize("how", ["accelerator", "attribute"])
def test_accelerates_own_accumulation_scales_no_gradient(tokenizer, how):
    norms = []
    for steps in (1, 8):
        more = dict(accelerator=Accelerator(gradient_accumulation_steps=steps)) if how == "accelerator" else {}
        changes = (
            dict(accelerator_config={"gradient_accumulation_kwargs": {"num_steps": 1}}) if how != "accelerator" else {}
        )
        t = quiet_trainer(small_policy(tokenizer), arm, config("ppo", **changes), tokenizer, **more)
        if how == "settings":
            t.accelerator.gradient_accumulation_steps = steps
        logs = t.step()
        norms.append((logs["policy_grad_norm"], logs["critic_grad_norm"]))
    assert norms[0] == pytest.approx(norms[1])


# ---- divergence ----


@pytest.mark.parametrize("method, rate", [("grpo", 1e4), ("dr_grpo", 1e4), ("ppo", 1e4), ("dvpo", 1e4)])
def test_a_diverging_run_ends_with_method_seed_and_step(tokenizer, method, rate):
    """At the latest the log-probabilities of the next rollouts are not finite; weights are finite still."""
    t = trainer(tokenizer, method, learning_rate=rate, max_steps=20, seed=3, kl_placement="loss", kl_estimator="k3")
    try:
        t.train()
    except TrainingDiverged as error:
        assert f"{method}, seed 3, step " in str(error)
    assert all(p.isfinite().all() for p in t.policy.parameters())


@pytest.mark.parametrize("network", ["policy", "critic"])
def test_no_checkpoint_and_no_run_ends_with_a_weight_that_is_not_finite(tokenizer, network, tmp_path):
    t = trainer(tokenizer, "ppo", max_steps=1, output_dir=str(tmp_path), save_strategy="steps")

    def spoil(state):
        if state.global_step == 4:
            next(getattr(t, network).parameters()).data[0] = float("inf")

    t.add_callback(Watcher(on_step_end=spoil))
    with pytest.raises(TrainingDiverged, match="ppo, seed 0, step 4: .* is not finite"):
        t.train()
    assert not list(tmp_path.iterdir())


def test_evaluation_of_what_is_not_finite_says_so(tokenizer):
    t = trainer(tokenizer, "grpo")
    t.policy.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="grpo, seed 0, step 0"):
        t.evaluate(PROMPTS[:2])


@pytest.mark.parametrize("where", ["weights", "rollout", "loss", "critic"])
def test_what_is_not_finite_is_named_before_it_spoils_weights(tokenizer, where, monkeypatch):
    t = trainer(tokenizer, "ppo", seed=2)
    t.make_ready()
    if where == "weights":
        with torch.no_grad():
            t.policy.lm_head.weight[0, 0] = float("nan")
    batch = None if where == "weights" else t.collect_batch()
    before = copy.deepcopy(t.policy.state_dict())
    name = {"rollout": "policy_loss", "loss": "policy_loss", "critic": "critic_objective"}.get(where)
    if name is not None:
        real = getattr(updates, name)

        def spoilt(*arguments, **others):
            loss, terms = real(*arguments, **others)
            return loss * float("inf"), terms

        monkeypatch.setattr(updates, name, spoilt)
    with pytest.raises(TrainingDiverged, match="ppo, seed 2, step 0: .* (not finite|is (nan|-?inf))"):
        if batch is None:
            t.collect_batch()
        else:
            t.update(batch, torch.arange(16))
    assert all(torch.equal(v, before[k]) or where == "weights" for k, v in t.policy.state_dict().items())


@pytest.mark.parametrize("method", ["ppo", "dvpo", "cql"])
def test_a_critic_that_is_not_finite_ends_the_run_with_its_step(tokenizer, method):
    t = trainer(tokenizer, method, seed=2)
    t.make_ready()
    with torch.no_grad():
        next(t.critic.parameters())[:] = float("nan")
    with pytest.raises(TrainingDiverged, match=f"{method}, seed 2, step 0: "):
        t.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("answer", ["<eos>", "answer"])
def test_a_policy_that_gives_one_answer_or_never_ends_keeps_finite_weights(tokenizer, method, answer):
    """Every response is one token, or a word up to the limit: no valid token, so updates are skipped and counted."""
    policy = small_policy(tokenizer)
    word = tokenizer.convert_tokens_to_ids(answer)
    policy.lm_head = torch.nn.Linear(policy.config.hidden_size, len(tokenizer))
    with torch.no_grad():
        policy.lm_head.weight.mul_(0.01)
        policy.lm_head.bias.copy_(60.0 * torch.nn.functional.one_hot(torch.tensor(word), len(tokenizer)))
    t = quiet_trainer(policy, arm, config(method, mask_truncated_completions=True), tokenizer)
    logs = t.step()
    assert t.table is not None and logs["completions/mean_length"] == (1 if answer == "<eos>" else 4)
    assert all(p.isfinite().all() for network in networks(t) for p in network.parameters())
    assert logs.get("skipped_update", 0) == (answer != "<eos>")


def test_settings_are_checked_by_name():
    for changes, message in [
        (dict(beta=float("nan")), "beta"),
        (dict(lam=1.5), "lam"),
        (dict(logging_steps=float("inf")), "logging_steps: inf is no finite number"),
        (dict(num_train_epochs=float("nan")), "num_train_epochs: nan is no finite number"),
        (dict(old_logprobs="none"), "old_logprobs"),
        (dict(generation_kwargs={"penalty": 1}), "generation_kwargs: penalty"),
    ]:
        with pytest.raises(ValueError, match=message):
            run_settings(**changes)


def test_default_critics_learn_at_the_rate_of_real_backbones(tokenizer):
    args = run_settings(method="ppo")
    t = quiet_trainer(small_policy(tokenizer), arm, args, tokenizer)
    assert t.args.critic == CriticSettings(kind="scalar", learning_rate=5e-6)
    own = build_critic(t.policy, CriticSettings(kind="scalar"), 0)
    assert quiet_trainer(small_policy(tokenizer), arm, args, tokenizer, critic=own).critic is own
    assert METHODS["ppo"].critic == "scalar" and records_of(t) == []


def test_a_critic_is_fitted_under_autocast_with_float32_weights_and_nearly_the_same_losses(tokenizer):
    table = [dict(prompt="math 3 ?", completion="answer 3", reward=float(i % 2)) for i in range(16)]
    cfg, losses = CriticSettings(heads=2, quantiles=8, batch_size=4, learning_rate=1e-3), {}
    for bf16 in (False, True):
        critic = build_critic(small_policy(tokenizer), cfg, seed=0)
        losses[bf16] = [step["loss"] for step in fit_critic(critic, table, tokenizer, cfg, seed=0, bf16=bf16)]
        assert {p.dtype for p in critic.parameters()} == {torch.float32}
    assert losses[True] != losses[False] and losses[True] == pytest.approx(losses[False], rel=0.05, abs=0.01)


def test_fitting_a_critic_twice_gives_equal_losses_whatever_the_backbones_dropout(tokenizer):
    records = [{"prompt": f"math {i} ?", "completion": f"answer {i}", "reward": float(i % 2)} for i in range(8)]
    cfg = CriticSettings(heads=2, quantiles=8, batch_size=4, pretrain_epochs=2)
    losses = [fit_critic(build_critic(gpt2(tokenizer).train(), cfg, 0), records, tokenizer, cfg, seed=0) for _ in "ab"]
    assert losses[0] == losses[1]


def test_no_gradient_comes_from_the_attention_of_cudnn(tokenizer, monkeypatch):
    """That kernel's gradients are NaN now and then if prompts are padded left. All that learns is looked at."""
    allowed, attention = [], torch.nn.functional.scaled_dot_product_attention

    def recorded(query, *others, **named):
        if query.requires_grad:
            allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(query, *others, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    tokens = encode_completions(tokenizer, ["math 3 ?", "math 7 a +5 ?"] * 4, ["answer 3"] * 8)
    right = torch.tensor([1.0, 0.0] * 4)
    rows = [{"prompt": "math 3 ?", "completion": "answer 3", "reward": 1.0}] * 4
    cfg = CriticSettings(batch_size=4, pretrain_epochs=1)
    model = RewardModelSettings(accuracy=0.51, steps=2, batch_size=4)
    learners = {
        "policy": lambda: fit_language_model(policy, tokens, PolicySettings(steps=2, batch_size=4), 0),
        "critic": lambda: fit_critic(build_critic(policy, cfg, 0), rows, tokenizer, cfg, 0),
        "reward model": lambda: search_accuracy(RewardModel(policy), tokens, right, tokens, right.numpy(), model, 0),
        "trainer": lambda: trainer(tokenizer, max_steps=1, gradient_checkpointing=True).train(),
    }
    for name, learn in learners.items():
        allowed.clear()
        try:
            learn()
        except ValueError as error:  # two steps do not always reach the accuracy; they have been taken
            assert "is not reached" in str(error)
        assert allowed and not any(allowed), name
    assert torch.backends.cuda.cudnn_sdp_enabled()
