"""Critics on real text with real outcomes, without pretrained weights: two studies for notebook 02.

`solutions` uses GSM8K problems with solutions of four language models. `trajectories` uses an agent's conversations
from tau-bench. Each study has four modules: `data` reads the files, `specs` defines the runs, `study` runs and scores
them, `report` writes tables and sentences. `download` fetches the files (`python -m dvpo_lib download`).
"""

from dvpo_lib.experiments.real.settings import RealSettings

__all__ = ["RealSettings"]
