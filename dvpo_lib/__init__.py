"""DVPO: distributional value modeling with risk-aware policy optimization, for language models under noisy rewards.

`DVPOTrainer` and `DVPOConfig` train; `METHODS` is the table of methods; `fit_critic` and `predict_values` serve logs.
"""

from importlib import import_module

# Resolved when first used: `import dvpo_lib` stays quick, and a light module does not bring torch with it.
_PUBLIC = {
    "DVPOConfig": "methods", "METHODS": "methods", "DVPOTrainer": "trainer", "CriticSettings": "critics",
    "CriticLossSettings": "losses", "build_critic": "critics", "fit_critic": "critics", "predict_values": "critics",
}  # fmt: skip
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"dvpo_lib.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'dvpo_lib' has no attribute {name!r}")
