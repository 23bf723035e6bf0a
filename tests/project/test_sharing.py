"""Sharing by DVC: a colleague pulls results from a remote and computes nothing; plots and metrics are readable."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import chdir

import pytest
from conftest import ROOT
from dvc.repo import Repo
from ruamel.yaml import YAML

STAGES = """\
stages:
  data:
    cmd: mkdir -p data/base && echo weights > data/base/model && echo words > data/base/tokens
    params: [seed]
    outs: [data/base]
  train:
    foreach: ${methods}
    do:
      cmd: mkdir -p results/${key}/tables && cp data/base/model results/${key}/tables && cp curves.csv results/${key}
      deps: [data/base, curves.csv]
      outs: ['results/${key}/tables']
      plots:
        - results/${key}/curves.csv: {template: methods, x: rollouts, y: reward_true, title: '${key}'}
  report:
    cmd: mkdir -p results/report && cp curves.csv results/report/scores.png && cp metrics.json results/report
    deps: [results/dvpo/tables]
    metrics: [results/report/metrics.json]
    plots: [results/report/scores.png]
"""


def git(folder, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project of our shape whose chain has run, whose results were pushed to a remote."""
    project, remote = (tmp_path_factory.mktemp("sharing") / name for name in ("project", "remote"))
    (project / ".dvc").mkdir(parents=True)
    git(project, "init")
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, project / ".dvc")
    shutil.copytree(ROOT / ".dvc/plots", project / ".dvc/plots")
    (project / "dvc.yaml").write_text(STAGES)
    (project / "params.yaml").write_text("seed: 0\nmethods: {dvpo: {critic: quantile}, ppo: {critic: scalar}}\n")
    (project / "curves.csv").write_text("method,noise,seed,family,rollouts,reward_true\ndvpo,none,0,math,128,0.5\n")
    (project / "metrics.json").write_text('{"dvpo": {"none": 0.5}}')
    (project / ".gitignore").write_text("/results/\n/data/\n")
    with chdir(project), Repo(project) as repo:  # DVC reproduces the dvc.yaml of the working directory
        repo.reproduce()
        with repo.config.edit("repo") as config:
            config["remote"] = {"shared": {"url": str(remote)}}
            config["core"]["remote"] = "shared"
        git(project, "add", ".")
        git(project, "commit", "-m", "results")
    with Repo(project) as repo:
        assert repo.push() > 0
    return project


def contents(folder) -> dict[str, bytes]:
    places = (folder / "results", folder / "data")
    return {str(f.relative_to(folder)): f.read_bytes() for p in places for f in sorted(p.rglob("*")) if f.is_file()}


def test_a_colleague_pulls_results_and_computes_nothing(finished, tmp_path, monkeypatch):
    git(tmp_path, "clone", str(finished), "colleague")
    shutil.rmtree(finished / ".dvc/cache")
    assert contents(tmp_path / "colleague") == {}
    monkeypatch.chdir(tmp_path / "colleague")
    with Repo(tmp_path / "colleague") as repo:
        repo.pull()
        assert contents(tmp_path / "colleague") == contents(finished) and len(contents(finished)) == 8
        assert repo.status() == {} and repo.reproduce() == []
        assert repo.metrics.show()[""]["data"]["results/report/metrics.json"]["data"] == {"dvpo": {"none": 0.5}}


def test_plots_have_a_picture_and_curves_in_the_colours_of_methods(finished):
    from dvc.render.match import match_defs_renderers

    with Repo(finished) as repo:
        shown = match_defs_renderers(repo.plots.show(), out=finished / "plots", templates_dir=".dvc/plots")
        renderers = {type(found.renderer).__name__: found.renderer for found in shown}
        assert set(renderers) == {"VegaRenderer", "ImageRenderer"}
        drawn = renderers["VegaRenderer"].get_filled_template()
    assert drawn["facet"]["column"]["field"] == "noise"
    assert "#0072B2" in drawn["spec"]["encoding"]["color"]["scale"]["range"]


def test_experiments_show_few_metrics():
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    stages = {name: stage.get("do", stage) for name, stage in stages.items()}
    assert {name for name, stage in stages.items() if "metrics" in stage} == {"report"}
    plots = [plot for stage in stages.values() for plot in stage.get("plots", ())]
    templates = {options["template"] for plot in plots if isinstance(plot, dict) for options in plot.values()}
    assert all((ROOT / f".dvc/plots/{name}.json").is_file() for name in templates)
    assert "results/05_report/scores.png" in plots
