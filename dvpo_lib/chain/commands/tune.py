"""The tuning command: the same small grid for each method, on development seeds and without noise.

    python -m dvpo_lib tune        # or `make tune`; finished runs are kept, so it resumes after an interruption

Each method gets three learning rates times three values of the one setting that its source calls sensitive. The score
of a point is the true reward over the last quarter of training, averaged over development seeds, on training prompts.
No test problem and no seed of the comparison is used. The best point wins, unless the point in params.yaml is within
`WINNING_MARGIN` of it. Levels for clipping rewards are not tuned, because without noise the best one is none. No stage
of the chain depends on this. Winners are written to params.yaml and profiles/full.yaml, the grid and its page
(notebooks/A1_tuning.ipynb) to reports/tuning/.
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
from dvpo_lib.common.settings_tree import ConfigError, merge_trees, nest_dotted
from dvpo_lib.common.settings_yaml import read_yaml
from dvpo_lib.experiments.grids.tuning import (
    SENSITIVE_SETTINGS,
    choose_winners,
    current_point,
    describe_grid,
    train_grid,
)
from dvpo_lib.reporting.findings.tuning import winner_table
from dvpo_lib.reporting.names import setting_text

SETTINGS_FILES = ("params.yaml", "profiles/full.yaml")  # with the rows of methods and critics
TUNING_FOLDER = Path("reports/tuning")
TUNING_NOTEBOOK = "notebooks/A1_tuning.ipynb"


def write_winners(winners: pd.DataFrame, root: Path) -> list[str]:
    """Writes changed winners into the file with the row of the method (or of its critic).

    Only settings that differ are touched. No file changes unless both new files are valid and contain the winners.

    Args:
        winners: Table of `choose_winners`.
        root: Folder of params.yaml.

    Returns:
        One line of text per changed method.

    Raises:
        ConfigError: If a winner cannot be written.
    """
    yaml = _round_trip()
    params = load_params(root / SETTINGS_FILES[0], overlaid=root / SETTINGS_FILES[1])
    trees, written = {file: read_yaml(root / file) for file in SETTINGS_FILES}, []
    points = {
        w.method: {"training.learning_rate": w.learning_rate, w.setting: w.value}
        for w in winners[winners["changed"]].itertuples()
    }
    for method, point in points.items():
        previous = current_point(params, method)
        new = {dotted: yaml.load(setting_text(value)) for dotted, value in point.items() if value != previous[dotted]}
        file = next(f for f, tree in trees.items() if method in tree.get("methods", {}))
        row = trees[file]["methods"][method]
        nested = nest_dotted(new)
        if "training" in nested:
            merge_trees(row.setdefault("training", {}), nested["training"])
        if "critic" in nested:
            owner = next(f for f, tree in trees.items() if row["critic"] in tree.get("critics", {}))
            merge_trees(trees[owner]["critics"][row["critic"]], nested["critic"])
        written.append(f"{method}: {', '.join(f'{d} = {setting_text(v)}' for d, v in new.items())}")
    fresh = {file: root / f"{file}.new" for file in SETTINGS_FILES}
    try:
        for file, tree in trees.items():
            with open(fresh[file], "w", encoding="utf-8") as stream:
                yaml.dump(tree, stream)
        params = load_params(fresh[SETTINGS_FILES[0]], overlaid=fresh[SETTINGS_FILES[1]])
        for method, point in points.items():
            if current_point(params, method) != point:
                raise ConfigError(f"{method}: {point} won and cannot be written: another row overrides it")
        for file, path in fresh.items():
            if path.read_bytes() != (root / file).read_bytes():
                os.replace(path, root / file)
    finally:
        for path in fresh.values():
            path.unlink(missing_ok=True)
    return written


def _round_trip():
    """A YAML reader and writer that keeps unchanged text; ruamel's default would drop the word `null`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        pass

    Representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.width, yaml.preserve_quotes, yaml.Representer = 120, True, Representer
    return yaml


def render_appendix(out: Path = TUNING_FOLDER, cell_timeout: int = 600) -> Path:
    """Renders the appendix from the tables of a folder. Equal tables give equal bytes.

    Args:
        out: Folder with grid.csv and winners.csv.
        cell_timeout: Seconds per cell.

    Returns:
        The page in the same folder.
    """
    parameters = {name: (out / f"{name}.csv").as_posix() for name in ("grid", "winners")}
    scratch = runner.SCRATCH_FOLDER / "tuning"
    runner.check_parameters(TUNING_NOTEBOOK, parameters)
    runner.check_kernel()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    notebook = runner.execute_notebook(
        StageSpec("tuning", TUNING_NOTEBOOK, (), (), ()), scratch, parameters, cell_timeout
    )
    runner.save_rendered(notebook, scratch, title="A1 tuning")
    os.replace(scratch / "notebook.html", out / "notebook.html")
    shutil.rmtree(scratch)
    return out / "notebook.html"


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `python -m dvpo_lib tune`."""
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(SENSITIVE_SETTINGS),
        default=list(SENSITIVE_SETTINGS),
        metavar="METHOD",
        help=f"methods to tune (default: all): {', '.join(SENSITIVE_SETTINGS)}",
    )
    parser.add_argument("--seeds", type=int, default=1, help="development seeds of each point (default: 1)")
    parser.add_argument("--keep", action="store_true", help="leave params.yaml and profiles/full.yaml unchanged")


def tune_command(chosen: argparse.Namespace) -> None:
    """Runs the tuning with parsed arguments."""
    if chosen.seeds < 1:
        raise StageError("--seeds: at least 1")
    run_tuning(list(dict.fromkeys(chosen.methods)), chosen.seeds, chosen.keep)


def run_tuning(methods: list[str], seeds: int, keep: bool) -> None:
    """Trains the grid, chooses winners, writes tables and page, then the winners.

    Args:
        methods: Names of the methods.
        seeds: Development seeds per point.
        keep: Whether to leave params.yaml and the profile unchanged.
    """
    root = project_root()
    os.chdir(root)
    os.environ.update(runner.KERNEL_ENVIRONMENT)  # of the workers: as in the chain
    params = load_params(SETTINGS_FILES[0], overlaid=SETTINGS_FILES[1])
    for folder in ("data/base", "data/suites"):
        if not Path(folder).is_dir():
            raise StageError(f"{folder} is missing: run `make repro STAGE=data` first")
    goal = "leaves params.yaml as it is" if keep else f"puts winners into {' and '.join(SETTINGS_FILES)}"
    print(
        f"{describe_grid(params, methods, seeds)} Then it {goal}, and writes {TUNING_FOLDER}/.",
        file=sys.stderr,
        flush=True,
    )
    table = train_grid(params, methods, seeds)
    winners = choose_winners(table, {method: current_point(params, method) for method in methods})
    TUNING_FOLDER.mkdir(parents=True, exist_ok=True)
    table.to_csv(TUNING_FOLDER / "grid.csv", index=False, float_format="%.6g", lineterminator="\n")
    winners.to_csv(TUNING_FOLDER / "winners.csv", index=False, float_format="%.6g", lineterminator="\n")
    print(winner_table(winners).to_string(index=False))
    print(f"page: {render_appendix(cell_timeout=params.runtime.cell_timeout)}")
    if not keep:
        print(*write_winners(winners, Path()) or ["no point beats the one in params.yaml"], sep="\n")
