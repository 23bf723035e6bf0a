"""Noise sources: measured rates, order of chained sources, random streams, error rates."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dvpo_lib.noise.confusion import confusion_rates
from dvpo_lib.noise.proxies import corrupt_table
from dvpo_lib.noise.sources import NOISES, PROXIES, NoiseSettings, corrupt, corrupt_rewards

N = 20_000
TRUE = (np.arange(N) % 4 == 0).astype(float)  # a quarter right
PROMPTS = [f"p{i % 100}" for i in range(N)]
COMPLETIONS = ["word " * (1 + i % 7) for i in range(N)]
WORDS = 1.0 + np.arange(N) % 7
STAND_INS = {  # proxies: one is right in 3 of 5 cases, the other returns 0.7 or 0.2
    "majority_vote": lambda **c: np.where(np.arange(N) % 5 < 3, TRUE, 1 - TRUE).tolist(),
    "reward_model": lambda **c: np.where(np.arange(N) % 3 == 0, 0.7, 0.2).tolist(),
}


def truth(prompts, completions, **columns):
    return TRUE.tolist()


def received(cfg, seed=0, step=0, func=truth):
    rewards = corrupt(func, cfg, seed, STAND_INS)(PROMPTS, COMPLETIONS, trainer_state=SimpleNamespace(global_step=step))
    return np.array(rewards, dtype=float)  # None to NaN


def noisy(kind, rate=1.0, scale=5.0, seed=0, step=0, **more):
    return received(NoiseSettings(kind=kind, rate=rate, scale=scale, **more), seed, step)


# ---- kinds ----


@pytest.mark.parametrize("kind", list(NOISES))
def test_rate_zero_is_the_truth(kind):
    assert (noisy(kind, 0.0) == TRUE).all()


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [("flip", 0.2, 0.2), ("false_positive", 0.0, 0.2), ("false_negative", 0.2, 0.0), ("missing", 0.2, 0.2)],
)
def test_label_noise_hits_only_its_labels_and_at_the_set_rate(kind, right, wrong):
    hit = noisy(kind, 0.2) != TRUE
    assert abs(hit[TRUE == 1].mean() - right) < 0.015
    assert abs(hit[TRUE == 0].mean() - wrong) < 0.015


def test_spikes_rate_scale_and_mean():
    rewards = noisy("spikes", 0.25, scale=4.0)
    hit = rewards != TRUE
    assert abs(hit.mean() - 0.25) < 0.012
    assert abs(rewards[hit].std() - 4.0) < 0.15
    assert abs(rewards[hit].mean()) < 0.2


def test_prompt_spikes_have_two_scales_by_prompt():
    rewards = noisy("prompt_spikes", 0.5, scale=8.0)
    prompt = np.arange(N) % 100
    spread = np.array([rewards[(prompt == p) & (rewards != TRUE)].std() for p in range(100)])
    assert ((spread < 2) | (spread > 5)).all()
    assert 20 < (spread > 5).sum() < 80


def test_missing_rewards_are_none():
    func = corrupt(truth, NoiseSettings("missing", rate=0.5), 0)
    rewards = func(PROMPTS, COMPLETIONS)
    assert set(map(type, rewards)) == {float, type(None)}
    assert abs(np.mean([r is None for r in rewards]) - 0.5) < 0.02


def test_length_bias_by_hand_and_its_correlation():
    """1, 2 and 3 words: mean 2, standard deviation sqrt(2/3)."""
    func = corrupt(lambda **c: [1.0, 0.0, 0.0], NoiseSettings("length_bias", scale=0.5), 0)
    step = 0.5 / (2 / 3) ** 0.5
    assert func(["p"] * 3, ["a", "a b", "a b c"]) == pytest.approx([1 - step, 0, step])
    assert func(["p"] * 3, ["a b"] * 3) == [1, 0, 0]  # all as long: no bias
    error = noisy("length_bias", scale=0.5) - TRUE
    assert np.corrcoef(error, WORDS)[0, 1] == pytest.approx(1) and error.std() == pytest.approx(0.5)
    half = noisy("length_bias", 0.5, scale=0.5) - TRUE
    assert np.corrcoef(half, WORDS)[0, 1] == pytest.approx(0.5**0.5, abs=0.02)  # covariance halved, variance halved


@pytest.mark.parametrize("kind", PROXIES)
def test_proxies_replace_the_truth_at_the_set_rate(kind):
    other = np.array(STAND_INS[kind]())
    assert (noisy(kind) == other).all()
    mixed = noisy(kind, 0.25)
    assert ((mixed == TRUE) | (mixed == other)).all()
    assert abs((mixed != TRUE)[other != TRUE].mean() - 0.25) < 0.02


def test_a_hard_reward_model_gives_verdicts():
    assert (noisy("reward_model", hard=True) == (np.arange(N) % 3 == 0)).all()


def test_a_missing_proxy_is_named():
    source = NoiseSettings("flip", rate=0.1, then=(NoiseSettings("reward_model"),))
    with pytest.raises(ValueError, match=r"reward_model needs proxies\['reward_model'\]"):
        corrupt(truth, source, 0)


# ---- drift ----


def test_the_rate_drifts_by_step():
    source = NoiseSettings("flip", rate=0.4, drift=(10, 30))
    assert [source.rate_at(s) for s in (0, 10, 15, 20, 30, 99)] == pytest.approx([0, 0, 0.1, 0.2, 0.4, 0.4])
    for step, rate in ((0, 0), (10, 0), (20, 0.2), (40, 0.4)):
        assert abs((received(source, step=step) != TRUE).mean() - rate) < (0.015 if rate else 1e-12)
    sudden = NoiseSettings("flip", rate=0.4, drift=(5, 5))
    assert [sudden.rate_at(s) for s in (4, 5)] == [0, 0.4]
    assert NoiseSettings("flip", rate=0.4).rate_at(0) == 0.4


# ---- composition ----


def test_sources_act_in_order():
    """Missing rewards stay missing, spikes of scale 0 set rewards to 0, and order matters."""
    gaps, zeros, flips = NoiseSettings("missing", rate=0.3), NoiseSettings("spikes", scale=0.0), NoiseSettings("flip")
    assert (received(NoiseSettings("flip", then=(zeros,))) == 0).all()
    assert (received(NoiseSettings("spikes", scale=0.0, then=(flips,))) == 1).all()
    both = received(NoiseSettings("missing", rate=0.3, then=(flips,)))
    assert abs(np.isnan(both).mean() - 0.3) < 0.015 and (both == 1 - TRUE)[~np.isnan(both)].all()
    late = received(NoiseSettings("flip", then=(gaps, zeros)))
    assert set(late[~np.isnan(late)]) == {0}
    nested = NoiseSettings("flip", then=(NoiseSettings("none", then=(gaps,)), zeros))
    assert [part.kind for part in nested.chain] == ["flip", "none", "missing", "spikes"]


def test_sources_of_one_chain_strike_independently():
    """Two flips of rate 1/2: a quarter of the rewards is flipped twice, and half of them end up flipped."""
    half = NoiseSettings("flip", rate=0.5)
    assert abs((received(NoiseSettings("flip", rate=0.5, then=(half,))) != TRUE).mean() - 0.5) < 0.015


def test_wrappers_wrap_wrappers():
    inner = corrupt(truth, NoiseSettings("missing", rate=0.3), 0)
    outer = received(NoiseSettings("flip"), func=inner)
    first = np.array(inner(PROMPTS, COMPLETIONS), dtype=float)
    assert np.array_equal(outer, 1 - first, equal_nan=True)


@pytest.mark.parametrize(
    "source",
    [
        NoiseSettings("spikes", rate=0.3),
        NoiseSettings("missing", rate=0.3),
        NoiseSettings("length_bias", rate=0.5, then=(NoiseSettings("flip", rate=0.3, drift=(0, 1)),)),
    ],
    ids=str,
)
def test_noise_depends_on_seed_and_step_alone(source):
    """A resumed run sees the same noise as an undisturbed one."""
    first = received(source, seed=4, step=7)
    received(source, seed=5, step=8)
    assert np.array_equal(received(source, seed=4, step=7), first, equal_nan=True)
    assert not np.array_equal(received(source, seed=4, step=8), first, equal_nan=True)
    assert not np.array_equal(received(source, seed=5, step=7), first, equal_nan=True)


def test_wrapper_keeps_name_and_passes_columns():
    def reward(prompts, completions, answer, **columns):
        return [float(a == "x") for a in answer]

    func = corrupt(reward, NoiseSettings(), 0)
    assert func.__name__ == "reward"
    assert func(["p"], ["c"], answer=["x"]) == [1.0]


def test_a_table_and_a_reward_function_get_the_same_noise():
    """Critic pretraining and reports use `corrupt_table`, training uses `corrupt`."""
    source = NoiseSettings(
        "length_bias",
        scale=0.3,
        then=(NoiseSettings("reward_model", rate=0.3, hard=True), NoiseSettings("missing", rate=0.2, drift=(0, 10))),
    )
    table = pd.DataFrame({"prompt": PROMPTS, "completion": COMPLETIONS, "reward": TRUE})
    assert np.array_equal(corrupt_table(table, source, 3, STAND_INS, step=4), received(source, 3, 4), equal_nan=True)
    with pytest.raises(ValueError, match=r"reward_model needs proxies\['reward_model'\]"):
        corrupt_table(table, source, 3)


def test_rewards_given_to_the_noise_are_left_as_they_are():
    rewards = np.array([1.0, np.nan, 0.0])
    found = corrupt_rewards(rewards, ["p"] * 3, ["c"] * 3, NoiseSettings("flip"), seed=0)
    assert np.array_equal(found, [0.0, np.nan, 1.0], equal_nan=True)
    assert np.array_equal(rewards, [1.0, np.nan, 0.0], equal_nan=True)


# ---- error rates ----


def test_confusion_by_hand():
    c = confusion_rates(np.array([1, 1, 0, 0, 0]), np.array([1, 0, 1, 0, 0.2]))
    assert c == pytest.approx(
        dict(
            tp=0.2,
            fp=0.2,
            fn=0.2,
            tn=0.4,
            missing=0,
            corrupted=0.6,
            accuracy=0.6,
            false_positives=1 / 3,
            false_negatives=0.5,
        )
    )


def test_confusion_leaves_missing_rewards_out_and_counts_them():
    c = confusion_rates(np.array([1, 1, 0, 0]), np.array([1, np.nan, 1, np.nan]), np.array([1, 9, 3, 9]))
    assert c == pytest.approx(
        dict(
            tp=0.25,
            fp=0.25,
            fn=0,
            tn=0,
            missing=0.5,
            corrupted=0.75,
            accuracy=0.5,
            false_positives=1,
            false_negatives=0,
            length_reward=0,
            length_error=1,
        )
    )
    nothing = confusion_rates(np.array([1.0, 0.0]), np.array([np.nan, np.nan]), np.array([1, 2]))
    assert nothing["missing"] == 1 and np.isnan(nothing["accuracy"]) and nothing["length_error"] == 0


@pytest.mark.parametrize(
    ("kind", "false_negatives", "false_positives"),
    [("flip", 0.2, 0.2), ("false_positive", 0, 0.2), ("false_negative", 0.2, 0)],
)
def test_measured_rates_are_those_set(kind, false_negatives, false_positives):
    c = confusion_rates(TRUE, noisy(kind, 0.2), WORDS)
    assert c["false_negatives"] == pytest.approx(false_negatives, abs=0.015)
    assert c["false_positives"] == pytest.approx(false_positives, abs=0.015)
    assert abs(c["length_error"]) < 0.03


def test_the_correlation_of_a_length_bias_is_reported():
    c = confusion_rates(TRUE, noisy("length_bias", scale=0.5), WORDS)
    assert c["length_error"] == pytest.approx(1)
    assert c["length_reward"] == pytest.approx(0.5 / (0.25 + TRUE.var()) ** 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(rate=1.5), "rate"),
        (dict(scale=float("inf")), "scale"),
        (dict(drift=(5, 2)), "drift: steps"),
        (dict(drift=(-1, 2)), "drift: steps"),
        (dict(then=(dict(kind="flop"),)), "then"),
        (dict(hard=True), "hard: only a reward model"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NoiseSettings(kind="flip", **settings)
