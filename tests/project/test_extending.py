"""docs/extending.md by example: a method, a noise and a task of one's own, each in at most 30 lines.

The page shows the passages between the marks.
"""

from __future__ import annotations

import re
import textwrap

import pytest
from conftest import ROOT, run_settings

from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.noise import sources
from dvpo_lib.rl import methods
from dvpo_lib.rl.trainer import DVPOTrainer
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer

PASSAGE = r"# \[passage {0}\]\n(.*?) *# \[end\]"


def test_a_method_of_ones_own_trains(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "median_baseline", None)  # removed after the test
    # [passage method]
    import torch

    from dvpo_lib.functional.advantages import returns_to_go
    from dvpo_lib.rl.estimators import token_rewards
    from dvpo_lib.rl.methods import METHODS, Method

    def median_advantages(x, args):
        """Rewards to go, less their median over the batch's tokens."""
        to_go = returns_to_go(token_rewards(x, args), x.mask, args.gamma)
        return torch.where(x.mask, to_go - to_go[x.mask].median(), 0.0), None

    METHODS["median_baseline"] = Method(None, median_advantages, "this page")
    # [end]
    tokenizer = build_tokenizer(TaskSettings())
    policy = build_policy(tokenizer, PolicySettings(hidden_size=32, num_hidden_layers=1), seed=0)

    def shorter(completions, **columns):
        return [-float(len(completion)) for completion in completions]

    args = run_settings(1, method="median_baseline", generation_batch_size=8, max_completion_length=6)
    before = policy.lm_head.weight.clone()
    trainer = DVPOTrainer(policy, shorter, args, [{"prompt": "math 7 a +5 ?"}], processing_class=tokenizer)
    trainer.train()
    assert trainer.critic is None and not torch.equal(before, trainer.policy.lm_head.weight.cpu())


def test_a_noise_of_ones_own_acts_and_can_be_chained(monkeypatch):
    monkeypatch.setitem(sources.NOISES, "late_penalty", None)  # removed after the test
    # [passage noise]
    import numpy as np

    from dvpo_lib.noise.sources import NOISES, NoiseSettings, corrupt

    def late_penalty(rewards, prompts, completions, cfg, rng):
        """Long completions lose a random part of `scale`."""
        words = np.array([len(completion.split()) for completion in completions])
        return rewards - cfg.scale * rng.random(len(rewards)) * (words > 3)

    NOISES["late_penalty"] = late_penalty
    settings = NoiseSettings("late_penalty", scale=2.0, then=(NoiseSettings("missing", rate=0.1),))
    # [end]

    def always_right(completions, **columns):
        return [1.0] * len(completions)

    noisy = corrupt(always_right, settings, seed=0)
    short, long = noisy(["p", "p"], ["one word", "one word after another"])
    assert short == 1.0 and -1 < long < 1
    assert noisy(["p", "p"], ["one word", "one word after another"]) == [short, long]


def test_a_task_of_ones_own_gives_splits_and_demonstrations():
    # [passage task]
    from dvpo_lib.tasks.chains import Chains, ChainSettings
    from dvpo_lib.tasks.suites import build_split

    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

    def later(day, operation):
        """The day some days later."""
        return days[(days.index(day) + int(operation)) % 7]

    calendar = Chains("calendar", days, ("+1", "+2", "+3"), later)
    settings = ChainSettings(demonstrations=50, train=5, test=5)
    problems = list(build_split(calendar, "train", settings))  # calendar tue a +2 b +3 ?   ->   ... answer sun
    # [end]
    assert all(problem["answer"] in days and problem["prompt"].startswith("calendar") for problem in problems)
    for record in build_split(calendar, "demonstrations", settings):
        wrong = calendar.first_wrong_word(record, record["completion"])
        assert (record["completion"].split()[-1] == record["answer"]) or wrong is not None
        assert set(record["completion"].split()) <= set(calendar.words)


@pytest.mark.parametrize("name", ["method", "noise", "task"])
def test_the_page_shows_short_passages_of_this_file(name):
    text = (ROOT / "tests/project/test_extending.py").read_text(encoding="utf-8")
    passage = re.search(PASSAGE.format(name), text, re.DOTALL)[1]
    assert 5 < len(passage.splitlines()) <= 30
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert f"```python\n{textwrap.dedent(passage)}```" in page, (
        f"docs/extending.md: not the passage {name} of this file"
    )
