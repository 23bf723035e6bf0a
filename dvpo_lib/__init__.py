"""DVPO: distributional value modeling with risk-aware policy optimization, for language models under noisy rewards.

`DVPOTrainer` and `DVPOConfig` train a policy by one of `METHODS`. `build_critic`, `fit_critic` and `predict_values` fit
a critic to logs. `NoiseSettings` and `corrupt` add noise to a reward function. `load_problems` and `answer_reward` read
published problems and judge their answers. `quantile_huber` is the critic's core loss.
"""

from importlib import import_module

# Resolved on first use, so that `import dvpo_lib` is quick and does not load torch.
_MODULES = {
    "DVPOTrainer": "rl.trainer",
    "DVPOConfig": "rl.config",
    "METHODS": "rl.methods",
    "CriticSettings": "models.critic",
    "CriticLossSettings": "functional.critic_losses",
    "build_critic": "models.critic",
    "fit_critic": "models.critic_training",
    "predict_values": "models.critic_training",
    "NoiseSettings": "noise.sources",
    "corrupt": "noise.sources",
    "load_problems": "tasks.published.datasets",
    "answer_reward": "tasks.published.verify",
    "quantile_huber": "functional.quantile_huber",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name == "__version__":  # in a module of its own, because the run store hashes this one
        return import_module("dvpo_lib.__about__").__version__
    if name in _MODULES:
        return getattr(import_module(f"dvpo_lib.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dvpo_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
