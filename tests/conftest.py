"""A tiny project (params.yaml, dvc.yaml, one notebook) in which the chain's machinery is tested quickly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
import torch

from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.estimators import Experience
from dvpo_lib.rl.training_settings import TrainingSettings, trainer_config

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests compare float32 numbers on the CPU; on a GPU the trainer takes bf16
ROOT = Path(__file__).resolve().parents[1]


def scored_batch(rewards, mask, kl, values=None, seed=0) -> Experience:
    """A batch of one-token prompts with these rewards (B,), and mask and log-ratios to the reference (B, T)."""
    ids = torch.zeros(mask.shape[0], mask.shape[1] + 1, dtype=torch.long)
    return Experience(Tokens(ids, torch.ones_like(ids), mask), kl, torch.zeros_like(kl), rewards, values, seed)


def run_settings(max_steps: int = 40, **changes) -> DVPOConfig:
    """Settings of a run as the chain makes them, `max_steps` in iterations; without checkpoints unless asked for."""
    own = {name: changes.pop(name) for name in list(changes) if name in TrainingSettings.__dataclass_fields__}
    run = dict(output_dir=tempfile.gettempdir(), save_strategy="no", max_completion_length=32, seed=0)
    return trainer_config(TrainingSettings(**own), max_steps, **run | changes)


PARAMS = """\
seed: 1
seeds: 2
methods:
  ppo: {critic: scalar}
  dvpo: {critic: quantile}
runtime:
  cell_timeout: 60
"""
TINY_STAGE = """\
  tiny:
    cmd: python -m dvpo_lib run tiny
    deps: [notebooks/tiny.ipynb]
    params: [seed]
    outs: [results/tiny/notebook.ipynb, results/tiny/notebook.html, results/tiny/tables]
    metrics: [results/tiny/metrics.json]
"""
STAGES = f"""\
stages:
{TINY_STAGE}  row:
    foreach: ${{methods}}
    do:
      cmd: python -m dvpo_lib run row@${{key}}
      deps: [notebooks/tiny.ipynb, 'results/${{item.critic}}']
      params: ['methods.${{key}}', seeds]
      outs: ['results/row/${{key}}/notebook.ipynb']
"""
PARAMETERS = 'stage: str = "tiny"\nout: str = "work/lab"\nchanges: dict = {}\n'
BODY = """\
import pandas as pd
from dvpo_lib.chain.stages import open_stage
here = open_stage(stage, out, changes)
here.save_metrics({"seed": here.params.seed})
here.save_table("tables/t.csv", pd.DataFrame({"x": [0.1, 1e-9]}))
print("saved")
"""


def make_notebook(path: Path, *bodies: str, parameters: str = PARAMETERS) -> None:
    """Writes a source notebook: a text, the parameters cell, and code cells."""
    cells = [
        nbformat.v4.new_markdown_cell("# Tiny\n$x^2$", id="intro"),
        nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        *(nbformat.v4.new_code_cell(body, id=f"body-{n}") for n, body in enumerate(bodies)),
    ]
    path.parent.mkdir(exist_ok=True, parents=True)
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The tiny project as the working directory."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    make_notebook(tmp_path / "notebooks" / "tiny.ipynb", BODY)
    shutil.copytree(ROOT / "dvpo_lib", tmp_path / "dvpo_lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVPO_STORE", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory) -> Path:
    """A run store for all processes of pytest: what several tests need is computed once."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "store"


def stage_command(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs `python -m dvpo_lib ...` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dvpo_lib", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=2400,
    )
