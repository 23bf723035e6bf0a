"""Noise sources: rates as set, only what is at risk is hit, seeded by (seed, step)."""

from types import SimpleNamespace

import numpy as np
import pytest

from dvpo_lib.noise import NOISES, NoiseSettings, confusion, corrupt

N = 20_000
TRUE = (np.arange(N) % 4 == 0).astype(float)  # a quarter right


def truth(prompts, completions, **columns):
    return TRUE.tolist()


def noisy(kind, rate, scale=5.0, seed=0, step=0):
    func = corrupt(truth, NoiseSettings(kind=kind, rate=rate, scale=scale), seed)
    prompts = [f"p{i % 100}" for i in range(N)]
    return np.array(func(prompts, [""] * N, trainer_state=SimpleNamespace(global_step=step)))


@pytest.mark.parametrize("kind", list(NOISES))
def test_rate_zero_is_the_truth(kind):
    assert (noisy(kind, 0.0) == TRUE).all()


@pytest.mark.parametrize(("kind", "right", "wrong"), [
    ("flip", 0.2, 0.2), ("false_positive", 0.0, 0.2), ("false_negative", 0.2, 0.0)])
def test_label_noise_hits_what_is_at_risk_at_the_rate(kind, right, wrong):
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


def test_noise_depends_on_seed_and_step_alone():
    assert (noisy("spikes", 0.3) == noisy("spikes", 0.3)).all()
    assert (noisy("spikes", 0.3) != noisy("spikes", 0.3, step=1)).any()
    assert (noisy("spikes", 0.3) != noisy("spikes", 0.3, seed=1)).any()


def test_wrapper_keeps_name_and_passes_columns():
    def reward(prompts, completions, answer, **columns):
        return [float(a == "x") for a in answer]

    func = corrupt(reward, NoiseSettings(), 0)
    assert func.__name__ == "reward"
    assert func(["p"], ["c"], answer=["x"]) == [1.0]


def test_confusion_by_hand():
    c = confusion(np.array([1, 1, 0, 0, 0]), np.array([1, 0, 1, 0, 0.2]))
    assert c == pytest.approx(dict(tp=0.2, fp=0.2, fn=0.2, tn=0.4, corrupted=0.6, accuracy=0.6))


def test_rate_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="rate"):
        NoiseSettings(kind="flip", rate=1.5)
