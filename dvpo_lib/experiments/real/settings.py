"""Settings of the two studies of real outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from dvpo_lib.experiments.real.files import DOWNLOAD_HINT, GSM8K_FILES


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TrajectorySettings:
    """Critics on an agent's logged conversations (notebook 02). All other settings are those of `RealSettings`."""

    folds: Annotated[int, Field(ge=2)] = 5  # each task is held out in one fold
    seeds: Annotated[int, Field(ge=1)] = 2  # critics of each kind per fold
    hidden_size: Annotated[int, Field(ge=8, multiple_of=8)] = 64  # width of the backbone, small as the data is
    num_hidden_layers: Annotated[int, Field(ge=1)] = 2  # depth of the backbone
    max_tokens: Annotated[int, Field(ge=8)] = 1536  # of a conversation after its first message; the last ones are kept
    critic_passes: Annotated[int, Field(ge=1)] = 2  # over the conversations of the training tasks
    batch_size: Annotated[int, Field(ge=1)] = 4  # conversations per step


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class RealSettings:
    """Real data, and critics on real solutions of language models (notebook 02). Without `dir`, nothing is read."""

    dir: str | None = None  # folder of the files, relative to params.yaml; `make real-data` fills data/real
    studies: bool = True  # the studies of notebook 02; off: the folder serves published families (`tasks`) alone
    vocabulary: Annotated[int, Field(ge=260)] = 3000  # tokens of the byte-level BPE
    hidden_size: Annotated[int, Field(ge=8, multiple_of=8)] = 128  # width of the backbone
    num_hidden_layers: Annotated[int, Field(ge=1)] = 4  # depth of the backbone
    language_model_passes: Annotated[float, Field(gt=0)] = 3  # over the worked solutions of the training file
    language_model_learning_rate: Annotated[float, Field(gt=0)] = 2e-3  # peak of a cosine schedule
    critic_passes: Annotated[int, Field(ge=1)] = 1  # over the solutions of the training problems
    critic_learning_rate: Annotated[float, Field(gt=0)] = 5e-4  # replaces the learning rate of the tracked critics
    batch_size: Annotated[int, Field(ge=1)] = 16  # texts per step
    max_tokens: Annotated[int, Field(ge=8)] = 320  # of a prompt and of a solution; longer ones are truncated
    noise_rates: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] = (0.0, 0.2, 0.4)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3  # share of problems (by hash) for scoring critics
    seeds: Annotated[int, Field(ge=1)] = 1  # critics of each kind per noise rate
    trajectories: TrajectorySettings = TrajectorySettings()  # used if the folder also holds an agent's conversations

    def missing(self, root: Path) -> dict[str, str]:
        """Problems with files that do not exist.

        Args:
            root: Folder that a relative `dir` starts from.

        Returns:
            {setting: problem}, empty if all files exist.
        """
        if self.dir is None:
            return {}
        folder = root / self.dir
        if not folder.is_dir():
            return {"dir": f"there is no folder {self.dir}; {DOWNLOAD_HINT}"}
        absent = [name for name in GSM8K_FILES if self.studies and not (folder / name).is_file()]
        return {"dir": f"{self.dir} holds no file {absent[0]}; {DOWNLOAD_HINT}"} if absent else {}
