"""DVPO: distributional value modeling with risk-aware policy optimization, for language models under noisy rewards.

`DVPOTrainer` and `DVPOConfig` train; `METHODS` is the table of methods; `fit_critic` and `predict_values` serve logs.
"""

from importlib import import_module

# Resolved on first use: `import dvpo_lib` stays quick and does not load torch.
_PUBLIC = {
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
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"dvpo_lib.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'dvpo_lib' has no attribute {name!r}")
