"""Real input: GSM8K problems with the solutions of four language models and the outcome of each.

Real text and real outcomes, several for each problem: critics are pretrained on them without any pretrained weights.
`data` reads the files, `download` brings them, `runs` says what is trained, `study` scores it, `report` puts it into
tables and sentences. `trajectories` and `trajectory_study` do the same for an agent's
conversations. `python -m dvpo_lib download` brings the files.
"""

from dvpo_lib.experiments.real.data import RealSettings

__all__ = ["RealSettings"]
