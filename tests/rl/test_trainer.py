"""The trainer: methods learn, every parameter moves, a restored run goes on bit for bit, bad rewards are named, logs
hold what applies, micro-batches change no update, offline methods learn from the base policy's rollouts alone."""

import copy
import functools
import math

import pandas as pd
import pytest
import torch
from conftest import run_settings
from transformers import PrinterCallback, TrainerCallback

from dvpo_lib.functional.critic_losses import CriticLossSettings
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.rewards import RewardError, Scores
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

PROMPTS = [{"prompt": f"math {i} ?", "answer": str(i)} for i in range(10)]
ROWS = [*((m, "awr") for m in METHODS), *((m, "perturbed") for m in METHODS if METHODS[m].offline)]  # as they train
every_row = pytest.mark.parametrize("method, extraction", ROWS)
OFFLINE = pytest.mark.parametrize("method, extraction", [r for r in ROWS if METHODS[r[0]].offline])


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskSettings())


def arm(prompts, completions, **columns):
    """The token bandit: half of all first words pay 1."""
    return [float(sum(map(ord, (c.split() or [""])[0])) % 2) for c in completions]


def config(method="dvpo", **changes):
    critic = CriticSettings(kind=METHODS[method].critic or "quantile", heads=2, quantiles=16, learning_rate=1e-2)
    base = dict(
        method=method,
        max_steps=3,
        generation_batch_size=32,
        num_generations=8,
        max_completion_length=4,
        learning_rate=1e-2,
        critic=critic,
    )
    return run_settings(**(base | changes))


def trainer(tokenizer, method="dvpo", rewards=arm, **changes):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    return quiet_trainer(policy, rewards, config(method, **changes), tokenizer, {"reward_true": arm})


def quiet_trainer(policy, rewards, args, tokenizer, log_funcs=None, **more):
    """A trainer on PROMPTS that prints no logs."""
    t = DVPOTrainer(policy, rewards, args, PROMPTS, processing_class=tokenizer, log_funcs=log_funcs, **more)
    t.remove_callback(PrinterCallback)
    return t


class Watcher(TrainerCallback):
    """Calls functions of the trainer's state at events."""

    def __init__(self, **events):
        for event, function in events.items():
            setattr(self, event, lambda args, state, control, function=function, **others: function(state) and None)


def records_of(t):
    """The logs of each iteration."""
    return [logs for logs in t.state.log_history if "reward" in logs and "train_loss" not in logs]


def update_on(t, x, advantages, targets):
    """All optimiser steps on an experience; their logs."""
    t.make_ready()
    batch = t.make_batch(x, advantages, targets)
    return [t.update(batch, rows) for rows in t.rows_of_steps(batch)]


@pytest.mark.parametrize("method", list(METHODS))
def test_learns_a_token_bandit_and_moves_every_parameter(tokenizer, method):
    offline = METHODS[method].offline  # one token: along more, a Q without pretraining learns what pays far slower
    settings = dict(max_completion_length=1, max_steps=50) if offline else dict(learning_rate=3e-3, max_steps=40)
    t = trainer(tokenizer, method, **settings)
    before = {k: v.clone() for m in (t.policy, t.critic) if m is not None for k, v in m.named_parameters()}
    t.train()
    rewards = [logs["reward_true"] for logs in records_of(t)]  # of what the policy in training answers
    assert sum(rewards[:3]) / 3 < 0.65  # half of all arms pay
    assert sum(rewards[-20:]) / 20 > 0.8  # methods that clip rewards stop short of 1: rare failures are cut away too
    after = {k: v for m in (t.policy, t.critic) if m is not None for k, v in m.named_parameters()}
    assert not [k for k in before if torch.equal(before[k], after[k])]


def networks(t):
    return [getattr(t, name) for name in ("policy", "critic", "target_critic") if getattr(t, name, None) is not None]


@pytest.mark.parametrize(
    "method, extraction", [("dvpo", "awr"), ("ppo", "awr"), ("grpo", "awr"), ("cql", "awr"), ("rfqi", "perturbed")]
)
@pytest.mark.parametrize("end, save_steps", [(KeyboardInterrupt, 4), (KeyboardInterrupt, 3), (OSError, 80)])
def test_restored_run_goes_on_bit_for_bit(tokenizer, method, extraction, end, save_steps, tmp_path):
    """After an interruption from the last checkpoint on, be it in the middle of an iteration; after a reward function's
    error from this very step on, by the same call."""
    schedule = dict(extraction=extraction, lr_scheduler_type="cosine", warmup_steps=1, max_steps=4)
    straight = trainer(tokenizer, method, **schedule)
    straight.train()

    @functools.wraps(arm)
    def breaks_off(trainer_state, **columns):
        if trainer_state.global_step == 8:  # two iterations of 4 optimiser steps are done
            raise end("the judge is away")
        return arm(**columns)

    saved = dict(output_dir=str(tmp_path), save_strategy="steps", save_steps=save_steps)
    first = trainer(tokenizer, method, breaks_off, **schedule, **saved)
    with pytest.raises(RewardError if end is OSError else end, match="the judge is away"):
        first.train(resume_from_checkpoint=True)
    torch.manual_seed(999)  # global generators must not matter
    second = trainer(tokenizer, method, **schedule, **saved)
    begun = []
    second.add_callback(Watcher(on_train_begin=lambda state: begun.append(state.global_step)))
    second.train(resume_from_checkpoint=True)
    assert begun == [6 if save_steps == 3 else 8]
    assert len(records_of(second)) == 4
    assert records_of(second) == records_of(straight)
    means = [t.state.log_history[-1]["train_loss"] for t in (straight, second)]
    assert means[0] == pytest.approx(means[1], abs=1e-7)
    for one, other in zip(networks(straight), networks(second), strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_seed_decides_the_run(tokenizer):
    runs = [trainer(tokenizer, seed=s).step() for s in (0, 0, 1)]
    assert str(runs[0]) == str(runs[1]) != str(runs[2])


def spoil(x, bad):
    """NaN at `bad`, in place, in a tensor or in everything that a Q critic says."""
    for part in [x] if isinstance(x, torch.Tensor) else vars(x or torch.nn.Module()).values():
        if isinstance(part, torch.Tensor):
            part[bad] = float("nan")


@pytest.mark.parametrize("method", list(METHODS))
def test_rollouts_beyond_the_end_change_no_update(tokenizer, method):
    """Padding, prompts and masked positions may hold anything: NaN in log-probabilities, values, advantages there."""
    results = []
    for poison in (False, True):
        t = trainer(tokenizer, method, max_completion_length=32)
        rollouts, columns = t.sample()
        assert not rollouts.tokens.mask.all()
        x = t.build_experience(rollouts, Scores(torch.tensor(arm(None, rollouts.completions)), {}))
        bad = ~x.mask
        if poison:
            for part in (x.logprobs, x.values):
                spoil(part, bad)
        advantages, targets = t.method.advantage(x, t.args)
        advantages = advantages.clone()
        if poison:
            for part in (x.reference_logprobs, advantages, targets):
                spoil(part, bad)
        update_on(t, x, advantages, targets)
        results.append([p.clone() for m in networks(t) for p in m.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


EVERY_LOG = {
    "reward",
    "reward_std",
    "reward_true",
    "kl",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "explained_variance",
    "missing",
}
POLICY_LOGS = {"policy_loss", "policy_grad_norm", "entropy", "clip_fraction"}


@every_row
def test_logs_hold_what_applies(tokenizer, method, extraction):
    """Finite where it applies; nan where a batch has no groups or no critic; absent where nothing of the kind is
    trained. The truth is logged beside the reward, which alone is learned from."""
    row, policy = METHODS[method], build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    t = quiet_trainer(
        policy,
        lambda prompts, **c: [7.0 + (len(p) % 2) for p in prompts],
        config(method, extraction=extraction),
        tokenizer,
        {"reward_true": arm},
    )
    logs = t.step()
    trained = not (row.offline and extraction == "perturbed")
    want = EVERY_LOG | (POLICY_LOGS if trained else set()) | (set() if row.offline else {"approx_kl"})
    found = {name for name in logs if not name.startswith(("critic", "rewards/"))}
    assert found == want
    not_finite = {name for name, value in logs.items() if not math.isfinite(value)}
    assert ("frac_reward_zero_std" in not_finite) == (not row.groups)
    assert ("explained_variance" in not_finite) == (row.critic is None)
    assert not_finite <= {"frac_reward_zero_std", "explained_variance"}
    assert ({"critic_loss", "critic_grad_norm"} <= set(logs)) == (row.critic is not None)
    tails = {"critic/lower_tail", "critic/upper_tail"}
    assert any(name.startswith("critic/") for name in set(logs) - tails) == (row.critic is not None), (
        "terms of the loss"
    )
    assert (tails <= set(logs)) == (row.critic == "quantile")
    assert logs["missing"] == 0
    assert 7 <= logs["reward"] <= 8 and 0 <= logs["reward_true"] <= 1 and 1 <= logs["completions/mean_length"] <= 4
    if trained:
        assert 0 < logs["entropy"] <= math.log(len(tokenizer)) and 0 <= logs["clip_fraction"] <= 1


@pytest.mark.parametrize("method", list(METHODS))
def test_groups_mean_fewer_prompts_and_not_more_rollouts(tokenizer, method):
    rollouts, columns = trainer(tokenizer, method).sample()
    assert len(rollouts.prompts) == len(columns["answer"]) == 32
    runs = [len(set(rollouts.prompts[i : i + 8])) for i in range(0, 32, 8)]
    assert runs == [1] * 4 if METHODS[method].groups else min(runs) > 1


# ---- micro-batches ----

# The shift of the mean and the score of tail means are taken on whole batches: support under accumulation is apart.
BATCH_TERMS = [
    pytest.param(dict(mean_shift=0.0, tail_calibration=0.0), id="without_batch_terms"),
    pytest.param({}, id="with_batch_terms"),
]  # which need the whole batch's statistics


@pytest.mark.filterwarnings("ignore:Detected call of")  # the scheduler still holds the optimiser that was replaced
@pytest.mark.parametrize("loss", BATCH_TERMS)
@pytest.mark.parametrize("method", list(METHODS))
def test_micro_batches_change_no_update(tokenizer, method, loss):
    """8 rows at once or one by one: the same gradients of policy and critic (followed by plain descent, for Adam turns
    rounding into signs), norms and logs, with the KL penalty and the entropy bonus in the loss."""
    results = []
    for parts in (1, 8):
        kind = METHODS[method].critic or "quantile"
        critic = CriticSettings(kind=kind, heads=2, quantiles=16, loss=CriticLossSettings(**loss))
        t = trainer(
            tokenizer,
            method,
            critic=critic,
            gradient_accumulation_steps=parts,
            generation_batch_size=16,
            max_completion_length=24,
            kl_placement="loss",
            beta=0.1,
            entropy_coef=0.05,
        )
        t.make_ready()
        for name in ("policy", "critic") if t.critic is not None else ("policy",):
            descent = torch.optim.SGD(getattr(t, name).parameters(), lr=0.5)
            setattr(t, "optimizer" if name == "policy" else "critic_optimizer", t.accelerator.prepare(descent))
        before = [p.clone() for m in networks(t)[:2] for p in m.parameters()]
        assert not t.sample()[0].tokens.mask.all()  # lengths differ, and so do shares of tokens
        logs = t.step()
        moved = [p.detach() - b for b, p in zip(before, (p for m in networks(t)[:2] for p in m.parameters()))]
        results.append((moved, {k: v for k, v in logs.items() if math.isfinite(v)}))
    (whole, logs), (apart, other_logs) = results
    assert other_logs == pytest.approx(logs, rel=1e-3, abs=1e-5)
    for a, b in zip(whole, apart):
        assert (a - b).norm() <= 1e-3 * a.norm() + 1e-7
    assert max(a.abs().max().item() for a in whole) > 1e-3


# ---- offline methods ----


def strangers(t):
    """Puts other networks in the place of what the trainer trains, as if it had trained for long."""
    with torch.no_grad():
        for m in (t.policy, t.critic, t.target_critic):
            for i, p in enumerate(m.parameters()):
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))


@OFFLINE
def test_offline_rollouts_come_from_the_base_policy_whatever_became_of_the_policy(tokenizer, method, extraction):
    """Rewards see the base policy's answers, the same before and after training; the truth is that of what the actor
    writes, on the same prompts, which changes, and is never scored."""
    scored, watched, actors = [], [], []
    for trained in (False, True):
        seen, shown = [], []
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
        t = quiet_trainer(
            policy,
            lambda completions, seen=seen, **c: seen.append(completions) or arm(None, completions),
            config(method, extraction=extraction),
            tokenizer,
            {"truth": lambda completions, shown=shown, **c: shown.append(completions) or [0.0] * len(completions)},
        )
        if trained:
            strangers(t)
        actors.append(t.sample(t.actor, "watching")[0])
        base = t.sample(t.reference)[0]
        logs = t.step()
        assert seen == [base.completions] and shown == [actors[-1].completions]
        assert logs["completions/mean_length"] == pytest.approx(actors[-1].tokens.mask.sum(1).float().mean().item())
        scored.append(seen)
        watched.append(shown)
        assert abs(logs["kl"]) < 1e-5 or trained or extraction == "perturbed"
    assert scored[0] == scored[1] and watched[0] != watched[1]
    assert actors[0].prompts == actors[1].prompts


@OFFLINE
def test_the_target_critic_follows_at_its_rate(tokenizer, method, extraction):
    """target <- target + rate * (critic - target), after each iteration and in no other way."""
    t = trainer(tokenizer, method, extraction=extraction)
    before = [p.clone() for p in t.target_critic.parameters()]
    for _ in range(2):
        t.step()
        rate, now = t.args.critic.q.target_rate, list(t.target_critic.parameters())
        for old, new, source in zip(before, now, t.critic.parameters()):
            torch.testing.assert_close(new, old + rate * (source - old))
            assert not new.requires_grad
        assert any(not torch.equal(a, b) for a, b in zip(before, now))
        before = [p.clone() for p in now]


@OFFLINE
def test_back_ups_and_advantages_read_the_target_critic(tokenizer, method, extraction):
    t = trainer(tokenizer, method, extraction=extraction)
    strangers(t)
    with torch.no_grad():
        for p in t.critic.parameters():
            p.zero_()
    rollouts, _ = t.sample(t.reference)
    x = t.build_experience(rollouts, Scores(torch.zeros(32), {}))
    with torch.no_grad():
        want = t.target_critic(rollouts.tokens)
    assert torch.equal(x.values.q, want.q) and torch.equal(x.values.v, want.v) and want.v.abs().max() > 0.01


@OFFLINE
def test_only_regression_moves_the_policy(tokenizer, method, extraction):
    """Perturbed logits leave the base policy as it is; the reference stays in either case."""
    t = trainer(tokenizer, method, extraction=extraction)
    pairs = list(zip(t.policy.parameters(), t.reference.parameters()))
    assert all(torch.equal(a, b) for a, b in pairs)
    before = [b.clone() for _, b in pairs]
    t.step()
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, pairs))
    assert all(torch.equal(a, b) for a, b in pairs) == (extraction == "perturbed")
    assert (t.actor is t.policy) == (extraction == "awr")


# ---- what reaches reward functions, and what is refused ----


def test_columns_reach_the_reward_function(tokenizer):
    def check(prompts, completions, answer, trainer_state, **columns):
        assert [p.split()[1] for p in prompts] == answer
        assert trainer_state.global_step == 0
        return [0.0] * len(prompts)

    trainer(tokenizer, rewards=check).step()


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (lambda prompts, **c: [1.0] * 3, "returned 3 rewards for 32 completions"),
        (lambda prompts, **c: [1.0] * 31 + [float("nan")], "returned nan for record 31 at step 0"),
        (lambda prompts, **c: ["1"] * 32, "returned '1' for record 0"),
        (lambda prompts, **c: [1.0] * 31 + [float("inf")], "returned inf for record 31 at step 0"),
        (lambda prompts, **c: 1 / 0, r"raised at step 0: ZeroDivisionError.* on record 0 .*prompt .math . \?.\) alone"),
    ],
)
def test_bad_rewards_are_named(tokenizer, rewards, message):
    t = trainer(tokenizer, rewards=rewards)
    before = copy.deepcopy(t.policy.state_dict())
    with pytest.raises((ValueError, RuntimeError), match=message):
        t.step()
    assert all(torch.equal(before[k], v) for k, v in t.policy.state_dict().items())


def test_clear_errors_of_the_constructor(tokenizer):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    with pytest.raises(ValueError, match="unknown method 'nope'"):
        quiet_trainer(policy, arm, run_settings(method="nope"), tokenizer)
    with pytest.raises(ValueError, match="record 0 has no column 'prompt'"):
        DVPOTrainer(policy, arm, config(), [{"question": "x"}], processing_class=tokenizer)
    with pytest.raises(ValueError, match="not a multiple of num_generations 5"):
        trainer(tokenizer, "grpo", num_generations=5)
    with pytest.raises(ValueError, match="needs a scalar critic"):
        trainer(tokenizer, "ppo", critic=CriticSettings())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"prompt": "math 1 ?"}, {"question": "x"}], "record 1 has no column 'prompt'"),
        ([{"prompt": "math 1 ?"}, "text"], "record 1 is no mapping"),
        ([{"prompt": "math 1 ?"}, {"prompt": ""}], "record 1: the prompt is empty"),
        ([{"prompt": "math 1 ?"}, {"prompt": None}], "record 1: prompt 'None' is neither"),
        ([{"prompt": "math 1 ?"}, {"prompt": "math \ud800"}], "record 1: the prompt holds a lone surrogate"),
        ([{"prompt": "math 1 ?"}, {"prompt": "math " * 50_000}], "record 1: the prompt's 50000 tokens .* do not fit"),
        ([], "no records"),
        (pd.DataFrame({"question": ["x"]}), "record 0 has no column 'prompt'"),
    ],
    ids=range(8),
)
def test_records_that_cannot_be_prompts_are_refused_before_training(tokenizer, records, message):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    with pytest.raises(ValueError, match=message):
        DVPOTrainer(policy, arm, config(), records, processing_class=tokenizer)


@pytest.mark.parametrize(
    "functions", [None, [], (), [3], [{"a": arm}]], ids=["None", "list", "tuple", "number", "mapping"]
)
def test_no_reward_function_is_a_clear_error(tokenizer, functions):
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)
    with pytest.raises(ValueError, match="No reward source provided|is no function"):
        DVPOTrainer(policy, functions, config(), PROMPTS, processing_class=tokenizer)


def test_answers_beyond_the_models_positions_are_refused_before_training(tokenizer):
    with pytest.raises(ValueError, match="max_completion_length"):
        trainer(tokenizer, max_completion_length=100_000)


def test_a_data_frame_trains_like_the_list_of_its_records(tokenizer):
    records = [{**record, "weight": i} for i, record in enumerate(PROMPTS)]
    seen, weights = [], []
    for data in (records, pd.DataFrame(records, index=range(5, 15))):
        policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)

        def watch(prompts, completions, weight, answer, **columns):
            seen.append((prompts, weight, answer))
            return arm(prompts, completions)

        t = DVPOTrainer(policy, watch, config("ppo"), data, processing_class=tokenizer)
        t.step()
        weights.append(copy.deepcopy(policy.state_dict()))
    assert seen[0] == seen[1] and type(seen[1][1][0]) is int
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


@pytest.mark.parametrize("method", ["dvpo", "ppo", "grpo", "cql"])
def test_no_truth_value_of_a_network_is_taken(tokenizer, monkeypatch, method):
    """A compiled module hands `len` on to a module that has none, so its truth value is an error."""

    def refuse(self):
        raise TypeError(f"the truth value of a {type(self).__name__} was taken")

    monkeypatch.setattr(torch.nn.Module, "__bool__", refuse, raising=False)
    monkeypatch.setattr(torch.nn.ModuleList, "__bool__", lambda self: True, raising=False)
    monkeypatch.setattr(torch.nn.ModuleDict, "__bool__", lambda self: True, raising=False)
    t = trainer(tokenizer, method)
    assert math.isfinite(t.step()["reward"])


@pytest.mark.parametrize("method, estimator", [("grpo", "k3"), ("grpo", "k2"), ("cql", "k3")])
@pytest.mark.parametrize("hole", [float("nan"), 1e3])
def test_reference_beyond_the_end_changes_no_update(tokenizer, method, estimator, hole):
    """KL in the loss: the reference's log-probabilities at masked positions may hold anything."""
    results = []
    for poison in (False, True):
        t = trainer(tokenizer, method, kl_placement="loss", kl_estimator=estimator)
        rollouts, _ = t.sample()
        x = t.build_experience(rollouts, Scores(torch.tensor(arm(None, rollouts.completions)), {}))
        advantages, targets = t.method.advantage(x, t.args)
        if poison:
            x.reference_logprobs[~x.mask] = hole
        update_on(t, x, advantages, targets)
        results.append([p.clone() for p in t.policy.parameters()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_a_group_of_equal_rewards_is_flat_whatever_the_reward(tokenizer):
    """One group: 0.1 eight times has a standard deviation above 0 in float32."""
    for value in (0.1, 0.3, 0.7, 1.3, 3.3333):
        for size in (2, 4, 5, 8, 16):
            t = trainer(
                tokenizer,
                "grpo",
                rewards=lambda prompts, v=value, **c: [v] * len(prompts),
                num_mini_batches=1,
                num_generations=size,
                generation_batch_size=size,
                max_completion_length=1,
            )
            assert t.step()["frac_reward_zero_std"] == 1, (value, size)
