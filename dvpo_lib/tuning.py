"""The tuning protocol: for every method the same small grid, on development seeds and without noise.

    python -m dvpo_lib.tuning        # or `make tune`; what was trained is kept, so it goes on where it stopped

Each method gets three learning rates times three values of the one setting that its source calls sensitive. A point's
score is the true reward of what the policy answers over the last quarter of training, mean over development seeds, on
training prompts: no test problem and no seed of the comparison is touched. The best point wins, unless the point that
stands in params.yaml is within `MARGIN` of it. Levels at which rewards are cut are not tuned: without noise the best
one is none. Part of no chain: winners go into params.yaml and profiles/full.yaml; the grid and its page
(notebooks/A1_tuning.ipynb) into reports/tuning/.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from . import stage
from .config import ConfigError, load_params, overlay, read_yaml
from .critics import CriticSettings
from .figures.style import spelled
from .pipeline import StageError, StageSpec, project_root
from .runs import EvaluationSettings, critic_spec, train_spec
from .store import collect, execute
from .tuning_report import winner_table

LEARNING_RATES = (5e-5, 1e-4, 2e-4)
SENSITIVE: dict[str, tuple[str, tuple]] = {  # a setting of `training`, or of the method's critic
    "dvpo": ("critic.loss.tail_calibration", (0.01, 0.03, 0.1)),  # "risk interval weight" (paper)
    "dvpo_winsorised": ("training.lam", (0.9, 0.95, 1.0)),
    "ppo": ("training.epsilon", (0.1, 0.2, 0.3)),  # Schulman et al. 2017, table 1
    "robust_ppo": ("training.lam", (0.9, 0.95, 1.0)),  # how far a worst case reaches
    "grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Shao et al. 2024 take 0.04
    "dr_grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Liu et al. 2025 take 0
    "reinforce_pp": ("training.beta", (0.0, 0.01, 0.04)),
    "cql": ("critic.q.conservatism", (0.03, 0.1, 0.3)),  # weight of the penalty, Kumar et al. 2020
    "rfqi": ("critic.q.radius", (0.05, 0.1, 0.2)),  # of the uncertainty set, Panaganti et al. 2022
    "ppo_clip_reward": ("training.epsilon", (0.1, 0.2, 0.3)),
    "grpo_clip_reward": ("training.beta", (0.0, 0.01, 0.04)),
}
FIRST_SEED = 1000  # development seeds; far from those of any comparison
MARGIN = 0.01  # of reward: what counts as better
FILES = ("params.yaml", "profiles/full.yaml")  # where rows of methods and critics stand
OUT = Path("reports/tuning")
NOTEBOOK = "notebooks/A1_tuning.ipynb"
MINUTES = 25  # of all methods with one seed on two cores


def grid(method: str) -> list[dict[str, float]]:
    """The nine points of a method, {dotted setting: value}."""
    setting, values = SENSITIVE[method]
    return [{"training.learning_rate": rate, setting: value}
            for rate, value in itertools.product(LEARNING_RATES, values)]


def nested(point: Mapping[str, Any], part: str) -> dict[str, Any]:
    """{"critic.q.radius": 0.1} to {"q": {"radius": 0.1}}, of the settings of one part ("training" or "critic")."""
    tree: dict[str, Any] = {}
    for dotted, value in point.items():
        first, *parents, last = dotted.split(".")
        if first == part:
            node = tree
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = value
    return tree


def current(params, method: str) -> dict[str, float]:
    """The point at which params.yaml stands."""
    row = params.methods[method]
    training = {**dataclasses.asdict(params.training), **row.training}
    tree = {"training": training, "critic": dataclasses.asdict(params.critics[row.critic] or CriticSettings())}
    found = {}
    for dotted in grid(method)[0]:
        value: Any = tree
        for name in dotted.split("."):
            value = value[name]
        found[dotted] = value
    return found


def with_point(params, method: str, point: Mapping[str, Any]):
    """(training overrides, critic settings or None) of one point."""
    row = params.methods[method]
    critic = params.critics[row.critic]
    if critic is not None:
        tree = overlay(dataclasses.asdict(critic), nested(point, "critic"), tables=())
        critic = TypeAdapter(CriticSettings).validate_python(tree)
    return {**row.training, **nested(point, "training")}, critic


def score(curves: pd.DataFrame) -> float:
    """Mean true reward over the last quarter of one run's iterations."""
    return float(curves["reward_true"].tail(max(1, len(curves) // 4)).mean())


def plan(params, methods: Iterable[str], seeds: int) -> tuple[list, list]:
    """All runs of the grid as (method, point, seed, training overrides, critic), and their critics' pretraining."""
    runs = [(m, point, FIRST_SEED + s, *with_point(params, m, point))
            for m in methods for point in grid(m) for s in range(seeds)]
    critics = [critic_spec(params, critic, "none", params.families[0], seed)
               for _, _, seed, _, critic in runs if critic is not None]
    return runs, critics


def forecast(params, methods: Iterable[str], seeds: int) -> str:
    """What `tune` is going to do, and how long it may take."""
    methods = list(methods)
    runs, critics = plan(params, methods, seeds)
    points = len(grid(methods[0]))
    distinct = len({repr(spec) for spec in critics})
    minutes = MINUTES * len(runs) / sum(len(grid(m)) for m in SENSITIVE)
    return (
        f"Trains {len(runs)} runs ({len(methods)} method{'s' * (len(methods) > 1)}, {points} points each, {seeds} "
        f"development seed{'s' * (seeds > 1)} a point), pretrains {distinct} critic{'s' * (distinct != 1)} before, "
        f"without noise on {params.families[0]}: about {minutes:.0f} minutes on two cores, less what the run store "
        "has already. An interrupted run goes on where it stopped."
    )


def tune(params, methods: Iterable[str], seeds: int) -> pd.DataFrame:
    """Trains the grid: one row per method, point and seed.

    Returns:
        method, family, learning_rate, setting, value, seed, rollouts (scored ones, critic pretraining included), score.
    """
    family = params.families[0]
    runs, critics = plan(params, methods, seeds)
    folders = iter(execute(critics, params.runtime.workers, "critics of the grid"))
    specs = []
    for method, _, seed, training, critic in runs:
        file = next(folders) / "critic.safetensors" if critic is not None else None
        spec = train_spec(params, method, method, "none", family, seed, critic, file, training)
        specs.append(dataclasses.replace(spec, evaluation=EvaluationSettings(prompts=1, k=1)))  # tests are not read
    rows = []
    for (method, point, seed, *_), folder in zip(runs, execute(specs, params.runtime.workers, "the grid"), strict=True):
        curves, setting = collect([folder], "curves"), SENSITIVE[method][0]
        rows.append({"method": method, "family": family, "learning_rate": point["training.learning_rate"],
                     "setting": setting, "value": point[setting], "seed": seed,
                     "rollouts": int(curves["rollouts"].max()), "score": score(curves)})  # fmt: skip
    return pd.DataFrame(rows)


def choose(table: pd.DataFrame, stands: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The winner of every method; of equal points the first one of the grid.

    Args:
        table: of `tune`. stands: {method: `current`}.

    Returns:
        method, setting, learning_rate, value, score; stood_learning_rate, stood_value and stood, its score: the point
        in params.yaml, NaN where it is not on the grid; changed.
    """
    rows = []
    means = table.groupby(["method", "setting", "learning_rate", "value"], sort=False)["score"].mean().reset_index()
    for method, own in means.groupby("method", sort=False):
        setting = own["setting"].iloc[0]
        rate, value = stands[method]["training.learning_rate"], stands[method][setting]
        here = own[(own["learning_rate"] == rate) & (own["value"] == value)]
        best = own.loc[own["score"].idxmax()]
        stood = here["score"].iloc[0] if len(here) else float("nan")
        changed = not best["score"] - stood < MARGIN
        winner = best if changed else here.iloc[0]
        rows.append({**winner[["method", "setting", "learning_rate", "value", "score"]], "stood_learning_rate": rate,
                     "stood_value": value, "stood": stood, "changed": changed})  # fmt: skip
    return pd.DataFrame(rows)


def write_winners(winners: pd.DataFrame, root: Path) -> list[str]:
    """Puts changed winners into the file that holds the method's row (or its critic's); returns what was written.

    Only settings that differ are touched, and the files only when both, written anew, are valid and say what won.
    Raises ConfigError otherwise.
    """
    yaml = _round_trip()
    params = load_params(root / FILES[0], overlaid=root / FILES[1])
    trees, written = {file: read_yaml(root / file) for file in FILES}, []
    points = {w.method: {"training.learning_rate": w.learning_rate, w.setting: w.value}
              for w in winners[winners["changed"]].itertuples()}  # fmt: skip
    for method, point in points.items():
        stands = current(params, method)
        new = {dotted: yaml.load(spelled(value)) for dotted, value in point.items() if value != stands[dotted]}
        file = next(f for f, tree in trees.items() if method in tree.get("methods", {}))
        row = trees[file]["methods"][method]
        if training := nested(new, "training"):
            overlay(row.setdefault("training", {}), training, tables=())
        if critic := nested(new, "critic"):
            owner = next(f for f, tree in trees.items() if row["critic"] in tree.get("critics", {}))
            overlay(trees[owner]["critics"][row["critic"]], critic, tables=())
        written.append(f"{method}: {', '.join(f'{d} = {spelled(v)}' for d, v in new.items())}")
    fresh = {file: root / f"{file}.new" for file in FILES}
    try:
        for file, tree in trees.items():
            with open(fresh[file], "w", encoding="utf-8") as stream:
                yaml.dump(tree, stream)
        params = load_params(fresh[FILES[0]], overlaid=fresh[FILES[1]])
        for method, point in points.items():
            if current(params, method) != point:
                raise ConfigError(f"{method}: {point} won and cannot be written: another row stands over it")
        for file, path in fresh.items():
            if path.read_bytes() != (root / file).read_bytes():
                os.replace(path, root / file)
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)
    return written


def _round_trip():
    """YAML that leaves alone what was not changed: ruamel's own would drop the word `null`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        pass

    Representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.width, yaml.preserve_quotes, yaml.Representer = 120, True, Representer
    return yaml


# ---- the command ----


def render(out: Path = OUT, cell_timeout: int = 600) -> Path:
    """Executes the appendix on the tables in `out` and puts its page there: equal tables, equal bytes."""
    parameters = {name: (out / f"{name}.csv").as_posix() for name in ("grid", "winners")}
    scratch = stage.SCRATCH / "tuning"
    stage.check_parameters(NOTEBOOK, parameters)
    stage.check_kernel()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    notebook = stage.execute(StageSpec("tuning", NOTEBOOK, (), (), ()), scratch, parameters, cell_timeout)
    stage.save_rendered(notebook, scratch, title="A1 tuning")
    os.replace(scratch / "notebook.html", out / "notebook.html")
    shutil.rmtree(scratch)
    return out / "notebook.html"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dvpo_lib.tuning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(SENSITIVE), default=list(SENSITIVE))
    parser.add_argument("--seeds", type=int, default=1, help="development seeds a point (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave params.yaml and the profile as they are")
    chosen = parser.parse_args(arguments)
    if chosen.seeds < 1:
        parser.error("--seeds: at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else workers would outlive it
    try:
        run(list(dict.fromkeys(chosen.methods)), chosen.seeds, chosen.keep)
    except (ConfigError, StageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


def run(methods: list[str], seeds: int, keep: bool) -> None:
    """Trains, chooses, writes the tables and the page, and last of all the winners."""
    root = project_root()
    os.chdir(root)
    os.environ.update(stage.KERNEL_ENVIRONMENT)  # of the workers: as in the chain
    params = load_params(FILES[0], overlaid=FILES[1])
    for folder in ("data/base", "data/suites"):
        if not Path(folder).is_dir():
            raise StageError(f"{folder} is missing: run `make repro STAGE=data` first")
    goal = "leaves params.yaml as it is" if keep else f"puts winners into {' and '.join(FILES)}"
    print(f"{forecast(params, methods, seeds)} Then it {goal}, and writes {OUT}/.", file=sys.stderr, flush=True)
    table = tune(params, methods, seeds)
    winners = choose(table, {method: current(params, method) for method in methods})
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "grid.csv", index=False, float_format="%.6g", lineterminator="\n")
    winners.to_csv(OUT / "winners.csv", index=False, float_format="%.6g", lineterminator="\n")
    print(winner_table(winners).to_string(index=False))
    print(f"page: {render(cell_timeout=params.runtime.cell_timeout)}")
    if not keep:
        print(*write_winners(winners, Path()) or ["nothing beats what stands in params.yaml"], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
