"""The tuning protocol: for every method the same small grid, on development seeds and without noise.

    python -m dvpo_lib tune        # or `make tune`; what was trained is kept, so it goes on where it stopped

Each method gets three learning rates times three values of the one setting that its source calls sensitive. A point's
score is the true reward of what the policy answers over the last quarter of training, mean over development seeds, on
training prompts: no test problem and no seed of the comparison is touched. The best point wins, unless the point that
stands in params.yaml is within `MARGIN` of it. Levels at which rewards are cut are not tuned: without noise the best
one is none. Part of no chain: winners go into params.yaml and profiles/full.yaml; the grid and its page
(notebooks/A1_tuning.ipynb) into reports/tuning/.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

import pandas as pd

from dvpo_lib.chain import runner
from dvpo_lib.chain.params import load_params
from dvpo_lib.chain.stages import StageError, StageSpec, project_root
from dvpo_lib.common.settings_tree import ConfigError, merge_trees, nest_dotted, read_yaml
from dvpo_lib.experiments.tuning import SENSITIVE, choose, current, forecast, tune
from dvpo_lib.reporting.findings.tuning import winner_table
from dvpo_lib.reporting.names import setting_text

FILES = ("params.yaml", "profiles/full.yaml")  # where rows of methods and critics stand
OUT = Path("reports/tuning")
NOTEBOOK = "notebooks/A1_tuning.ipynb"


def write_winners(winners: pd.DataFrame, root: Path) -> list[str]:
    """Puts changed winners into the file that holds the method's row (or its critic's); returns what was written.

    Only settings that differ are touched, and the files only when both, written anew, are valid and say what won.
    Raises ConfigError otherwise.
    """
    yaml = _round_trip()
    params = load_params(root / FILES[0], overlaid=root / FILES[1])
    trees, written = {file: read_yaml(root / file) for file in FILES}, []
    points = {
        w.method: {"training.learning_rate": w.learning_rate, w.setting: w.value}
        for w in winners[winners["changed"]].itertuples()
    }
    for method, point in points.items():
        stands = current(params, method)
        new = {dotted: yaml.load(setting_text(value)) for dotted, value in point.items() if value != stands[dotted]}
        file = next(f for f, tree in trees.items() if method in tree.get("methods", {}))
        row = trees[file]["methods"][method]
        nested = nest_dotted(new)
        if "training" in nested:
            merge_trees(row.setdefault("training", {}), nested["training"])
        if "critic" in nested:
            owner = next(f for f, tree in trees.items() if row["critic"] in tree.get("critics", {}))
            merge_trees(trees[owner]["critics"][row["critic"]], nested["critic"])
        written.append(f"{method}: {', '.join(f'{d} = {setting_text(v)}' for d, v in new.items())}")
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


def render(out: Path = OUT, cell_timeout: int = 600) -> Path:
    """Executes the appendix on the tables in `out` and puts its page there: equal tables, equal bytes."""
    parameters = {name: (out / f"{name}.csv").as_posix() for name in ("grid", "winners")}
    scratch = runner.SCRATCH_FOLDER / "tuning"
    runner.check_parameters(NOTEBOOK, parameters)
    runner.check_kernel()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    notebook = runner.execute_notebook(StageSpec("tuning", NOTEBOOK, (), (), ()), scratch, parameters, cell_timeout)
    runner.save_rendered(notebook, scratch, title="A1 tuning")
    os.replace(scratch / "notebook.html", out / "notebook.html")
    shutil.rmtree(scratch)
    return out / "notebook.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m dvpo_lib tune`."""
    parser.add_argument("--methods", nargs="+", choices=list(SENSITIVE), default=list(SENSITIVE))
    parser.add_argument("--seeds", type=int, default=1, help="development seeds a point (default 1)")
    parser.add_argument("--keep", action="store_true", help="leave params.yaml and the profile as they are")


def main(chosen: argparse.Namespace) -> None:
    """Runs `tune` with parsed arguments."""
    if chosen.seeds < 1:
        raise StageError("--seeds: at least 1")
    run(list(dict.fromkeys(chosen.methods)), chosen.seeds, chosen.keep)


def run(methods: list[str], seeds: int, keep: bool) -> None:
    """Trains, chooses, writes the tables and the page, and last of all the winners."""
    root = project_root()
    os.chdir(root)
    os.environ.update(runner.KERNEL_ENVIRONMENT)  # of the workers: as in the chain
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
