"""Real data: downloads, a published base model, single runs of a comparison, two studies of critics (notebook 02).

The studies train critics on real text with real outcomes, without pretrained weights.
`solutions` uses GSM8K problems with solutions of four language models. `trajectories` uses an agent's conversations
from tau-bench. Each study has four modules: `data` reads the files, `specs` defines the runs, `study` runs and scores
them, `report` writes tables and sentences. `download` fetches the files (`python -m dvpo_lib download`).
"""

from dvpo_lib.experiments.real.settings import RealSettings

__all__ = ["RealSettings"]
