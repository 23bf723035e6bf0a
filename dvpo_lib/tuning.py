"""The tuning protocol: for every method the same small grid, on development seeds and without noise.

    python -m dvpo_lib.tuning        # or `make tune`; what was trained is kept, so it goes on where it stopped

Each method gets three learning rates times three values of the one setting that its source calls sensitive. A point's
score is the true reward of what the policy answers over the last quarter of training, mean over development seeds, on
training prompts: no test problem and no seed of the comparison is touched. The best point wins, unless the point that
stands in params.yaml is within `MARGIN` of it. Levels at which rewards are cut are not tuned: without noise the best
one is none. Part of no chain: winners go into params.yaml and profiles/full.yaml, the grid into reports/tuning/.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter

from .config import load_params, overlay, read_yaml
from .critics import CriticSettings
from .pipeline import project_root
from .runs import EvaluationSettings, critic_spec, train_spec
from .store import collect, execute

LEARNING_RATES = (5e-5, 1e-4, 2e-4)
SENSITIVE: dict[str, tuple[str, tuple]] = {  # a setting of `training`, or of the method's critic
    "dvpo": ("critic.loss.tail_calibration", (0.01, 0.03, 0.1)),  # "risk interval weight" (paper)
    "dvpo_winsorised": ("training.lam", (0.9, 0.95, 1.0)),
    "ppo": ("training.epsilon", (0.1, 0.2, 0.3)),  # Schulman et al. 2017, table 1
    "robust_ppo": ("training.lam", (0.9, 0.95, 1.0)),  # how far a worst case reaches
    "grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Shao et al. 2024 take 0.04
    "dr_grpo": ("training.beta", (0.0, 0.01, 0.04)),  # Liu et al. 2025 take 0
    "reinforce_pp": ("training.beta", (0.0, 0.01, 0.04)),
    "cql": ("critic.q.conservatism", (0.03, 0.1, 0.3)),  # Kumar et al. 2020, section 6
    "rfqi": ("critic.q.radius", (0.05, 0.1, 0.2)),  # Panaganti et al. 2022, section 6
    "ppo_clip_reward": ("training.epsilon", (0.1, 0.2, 0.3)),
    "grpo_clip_reward": ("training.beta", (0.0, 0.01, 0.04)),
}
FIRST_SEED = 1000  # development seeds; far from those of any comparison
MARGIN = 0.01  # of reward: what counts as better
FILES = ("params.yaml", "profiles/full.yaml")  # where rows of methods and critics stand
OUT = Path("reports/tuning")


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


def tune(params, methods: Iterable[str], seeds: int) -> pd.DataFrame:
    """Trains the grid: one row per method, point and seed: method, learning_rate, setting, value, seed, score."""
    family = params.families[0]
    runs = [(m, point, FIRST_SEED + s) for m in methods for point in grid(m) for s in range(seeds)]
    settings = [with_point(params, m, point) for m, point, _ in runs]
    needed = [critic_spec(params, critic, "none", family, seed)
              for (_, _, seed), (_, critic) in zip(runs, settings, strict=True) if critic is not None]
    folders = iter(execute(needed, params.runtime.workers, "critics of the grid"))
    specs = []
    for (method, _, seed), (training, critic) in zip(runs, settings, strict=True):
        file = next(folders) / "critic.safetensors" if critic is not None else None
        spec = train_spec(params, method, method, "none", family, seed, critic, file, training)
        specs.append(dataclasses.replace(spec, evaluation=EvaluationSettings(prompts=1, k=1)))  # tests are not read
    rows = []
    for (method, point, seed), folder in zip(runs, execute(specs, params.runtime.workers, "the grid"), strict=True):
        setting = SENSITIVE[method][0]
        rows.append({"method": method, "learning_rate": point["training.learning_rate"], "setting": setting,
                     "value": point[setting], "seed": seed, "score": score(collect([folder], "curves"))})
    return pd.DataFrame(rows)


def choose(table: pd.DataFrame, stands: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """The winner of every method: method, setting, learning_rate, value, score, stood, changed.

    `stood` is the score of the point in params.yaml, NaN where it is not on the grid.

    Args:
        table: of `tune`. stands: {method: `current`}.
    """
    rows = []
    means = table.groupby(["method", "setting", "learning_rate", "value"], sort=False)["score"].mean().reset_index()
    for method, own in means.groupby("method", sort=False):
        setting = own["setting"].iloc[0]
        here = own[(own["learning_rate"] == stands[method]["training.learning_rate"])
                   & (own["value"] == stands[method][setting])]
        best = own.loc[own["score"].idxmax()]
        stood = here["score"].iloc[0] if len(here) else float("nan")
        changed = not best["score"] - stood < MARGIN
        winner = best if changed else here.iloc[0]
        rows.append({**winner[["method", "setting", "learning_rate", "value", "score"]], "stood": stood,
                     "changed": changed and best["score"] != stood})
    return pd.DataFrame(rows)


def write_winners(winners: pd.DataFrame, root: Path) -> list[str]:
    """Puts changed winners into the file that holds the method's row (or its critic's); returns what was written."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    trees, written = {file: read_yaml(root / file) for file in FILES}, []
    for winner in winners[winners["changed"]].itertuples():
        point = {"training.learning_rate": winner.learning_rate, winner.setting: winner.value}
        file = next(f for f, tree in trees.items() if winner.method in tree.get("methods", {}))
        row = trees[file]["methods"][winner.method]
        if nested(point, "training"):
            overlay(row.setdefault("training", {}), nested(point, "training"), tables=())
        if nested(point, "critic"):
            owner = next(f for f, tree in trees.items() if row["critic"] in tree.get("critics", {}))
            overlay(trees[owner]["critics"][row["critic"]], nested(point, "critic"), tables=())
        written.append(f"{file}: {winner.method}: {point}")
    for file, tree in trees.items():
        with open(root / file, "w", encoding="utf-8") as stream:
            yaml.dump(tree, stream)
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dvpo_lib.tuning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(SENSITIVE), default=list(SENSITIVE))
    parser.add_argument("--seeds", type=int, default=1, help="development seeds a point (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave params.yaml and the profile as they are")
    chosen = parser.parse_args()
    root = project_root()
    params = load_params(root / FILES[0], overlaid=root / FILES[1])
    if not Path("data/base").is_dir():
        parser.error("data/base is missing: run `make repro STAGE=data` first")
    table = tune(params, chosen.methods, chosen.seeds)
    winners = choose(table, {method: current(params, method) for method in chosen.methods})
    OUT.mkdir(parents=True, exist_ok=True)
    table.to_csv(OUT / "grid.csv", index=False, float_format="%.6g")
    winners.to_csv(OUT / "winners.csv", index=False, float_format="%.6g")
    print(winners.to_string(index=False))
    if not chosen.keep:
        print(*write_winners(winners, root) or ["nothing beats what stands in params.yaml"], sep="\n")


if __name__ == "__main__":
    main()
