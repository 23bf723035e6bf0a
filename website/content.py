"""Generated pages of the site as Markdown, and the notebooks' pages: pure functions of files in the project."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import dvpo_lib
from dvpo_lib.chain.commands.evidence import EVIDENCE_FOLDER, VERDICT_MARKS
from dvpo_lib.chain.pages import PageLinks, lay_out_page, page_body
from dvpo_lib.reporting.method_cards import AVERAGES, advantage_text, critic_text
from dvpo_lib.reporting.names import display_name
from dvpo_lib.reporting.setting_sources import settings_table
from dvpo_lib.rl.methods import METHODS, Method

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [name for name in re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)]
REPORT = "05_report"
MAIN_FIGURE = EVIDENCE_FOLDER / "comparison.png"
CRITIC_SECTIONS = {  # kind of critic -> sections of the table of settings
    "quantile": ("critics.*", "critics.*.loss"),
    "scalar": ("critics.*",),
    "conservative_q": ("critics.*", "critics.*.q"),
    "robust_q": ("critics.*", "critics.*.q"),
    None: (),
}


def run_folder(root: Path = ROOT) -> Path:
    """The folder of the run that the site shows: results/ if the chain has finished there, else reports/."""
    results = root / "results"
    return results if (results / REPORT / "notebook.html").is_file() else root / "reports"


# ---- notebooks ----


def notebook_titles(folder: Path) -> dict[str, str]:
    """{path of a page below the folder: title}, in the order of the notebooks, and methods in that of METHODS."""
    rank = list(METHODS).index
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("notebook.html")]
    found.sort(key=lambda path: [rank(part) if part in METHODS else part for part in Path(path).parts])
    titles = {}
    for path in found:
        heading = re.search(r"<h1[^>]*>(.*?)</h1>", (folder / path).read_text(encoding="utf-8"), re.DOTALL)
        method = Path(path).parts[-2]
        plain = re.sub(r"<[^>]+>", "", heading[1]).strip() if heading else path
        titles[path] = f"Training: {display_name(method)}" if method in METHODS else plain
    return titles


def site_notebooks(folder: Path) -> Iterator[tuple[str, str]]:
    """Path and HTML of each notebook's page, linked to its neighbours and to the site; each is one file by itself."""
    titles = notebook_titles(folder)
    paths = list(titles)

    def address(path: str, other: str) -> str:
        return "../" * (len(Path(path).parts) - 1) + other

    for place, path in enumerate(paths):
        before, after = paths[place - 1] if place else None, paths[place + 1] if place + 1 < len(paths) else None
        links = PageLinks(
            home=("../" * len(Path(path).parts) + "index.html", "DVPO: documentation"),
            previous=before and (address(path, before), titles[before]),
            following=after and (address(path, after), titles[after]),
            siblings=tuple(("" if other == path else address(path, other), titles[other]) for other in paths),
        )
        yield path, lay_out_page(page_body((folder / path).read_text(encoding="utf-8")), titles[path], links)


# ---- pages in Markdown ----


def start_page(root: Path = ROOT) -> str:
    """The first page: what this is, the verdict of the evidence, and where to go on."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    introduction = readme.split("\n\n")[1]
    begin, end = VERDICT_MARKS
    verdict = readme.partition(begin)[2].partition(end)[0].replace("](reports/", "](notebooks/")
    start = readme[readme.index("```sh\nmake repro") :].partition("```\n")[0]
    return f"""# DVPO under noisy rewards

{introduction}

[![Sampled score after training, by method and noise](assets/main_figure.png)](assets/main_figure.png)

Claims of the paper, judged by runs of many seeds. In brackets: the difference to the rival that decides, in percentage
points or as an AUC.

{verdict}
The [report](notebooks/{REPORT}/notebook.html) has the settings and their sources. Each notebook's page is one file that
can be mailed.

## Start

{start}```

[Train your own model](guide/trainer.md), compare the [methods](methods/index.md), [extend](extending.md) them.
"""


def method_texts(root: Path = ROOT) -> dict[str, str]:
    """{method: its section of docs/methods.md}; the key "" has what stands before them."""
    first, *parts = re.split(r"^## (\w+)\n", (root / "docs" / "methods.md").read_text("utf-8"), flags=re.MULTILINE)
    return {"": first, **dict(zip(parts[::2], parts[1::2], strict=True))}


def methods_index(root: Path = ROOT) -> str:
    """Overview of the methods, a row each."""
    rows = [
        f"| [{display_name(name)}]({name}.md) | `{name}` | {critic_text(name)} | {advantage_text(name)} |"
        for name in METHODS
    ]
    table = "| method | name | critic | advantage |\n|---|---|---|---|\n" + "\n".join(rows)
    return f"{method_texts(root)['']}\n{table}\n"


def method_page(name: str, folder: Path, root: Path = ROOT) -> str:
    """Equation and use of a method, with its composition, settings, cost and scores read from code and files."""
    parts = [f"# {display_name(name)}", method_texts(root)[name].strip(), composition(name), settings_text(name)]
    return "\n\n".join([*parts, cost_text(name, root), score_text(name, folder)]) + "\n"


def composition(name: str) -> str:
    """The row of METHODS in words."""
    m = METHODS[name]
    rows = {
        "name": f"`{name}`",
        "critic": critic_text(name),
        "advantage": advantage_text(name),
        "average of the loss": AVERAGES[m.aggregate],
        "KL penalty": f"in the {m.kl}, {'k3' if m.kl == 'loss' else m.estimator}, if `beta` is above 0",
        "completions a prompt": "`num_generations`" if m.groups else "1",
        "rollouts": "of the base policy, by advantage-weighted regression" if m.offline else "of the policy itself",
        "source": m.source,
    }
    return "## Composition\n\n| | |\n|---|---|\n" + "\n".join(f"| {key} | {text} |" for key, text in rows.items())


def matters_to(setting: str, name: str, m: Method) -> bool:
    """Whether a setting of the section `training` can change a run of the method."""
    only = {
        "num_generations": m.groups,
        "reward_clip": m.clip_rewards,
        "readout": name.startswith("dvpo"),
        "target": name.startswith("dvpo"),
        "worst_case": name == "robust_ppo",
        "missing_rewards": m.critic is not None,
        "lam": m.critic in ("scalar", "quantile"),
        "lam_adaptive": m.critic in ("scalar", "quantile"),
        "lam_critic": m.critic in ("scalar", "quantile") and name != "robust_ppo",
        "whiten_advantages": not m.groups and not m.offline,
        **dict.fromkeys(("extraction", "awr_temperature", "perturbation"), m.offline),
        **dict.fromkeys(("epsilon", "epsilon_high", "num_iterations"), not m.offline or setting == "num_iterations"),
    }
    return only.get(setting, True)


def settings_text(name: str) -> str:
    """The settings that matter to a method, with default, meaning and source."""
    m, table = METHODS[name], settings_table()
    sections = ("training", *(("training.readout",) if name.startswith("dvpo") else ()), *CRITIC_SECTIONS[m.critic])
    note = "Defaults of the chain (`params.yaml`); [`DVPOConfig`](../trl.md) has TRL's where TRL has one."
    head = "| setting | default | meaning | source |\n|---|---|---|---|\n"
    parts = ["## Settings", note]
    for section in sections:
        rows = table[table["where"] == section]
        lines = [
            f"| `{row.setting}` | `{row.default}` | {_cell(row.meaning)} | {_cell(row.source)} |"
            for row in rows.rename(columns={"what it is": "meaning"}).itertuples()
            if section != "training" or matters_to(row.setting, name, m)
        ]
        parts.append(f"### `{section}`\n\n{head}" + "\n".join(lines))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("*", "\\*")


def cost_text(name: str, root: Path = ROOT) -> str:
    """Time and memory of an iteration against PPO's, as far as they were measured."""
    found = json.loads((root / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    rows = []
    for run in found["iteration_seconds"]:
        model, method = run["model"], run["method"]
        if method == name:
            time, memory = found["iteration_over_ppo"][model][name], found["memory_over_ppo"][model][name]
            size = f"{run['parameters'] / 1e6:.2g} M"
            rows.append(f"| {model} ({size} parameters) | {run['step']:.3g} s | {time:.2f} | {memory:.2f} |")
    head = "| model | an iteration | time, PPO = 1 | memory, PPO = 1 |\n|---|---|---|---|\n"
    where = "Measured by `make bench` on one thread of a CPU."
    return f"## Cost\n\n{head}" + "\n".join(rows) + f"\n\n{where}" if rows else "## Cost\n\nNot measured."


def score_text(name: str, folder: Path) -> str:
    """Scores of the method in the run that the site shows."""
    frame = pd.read_csv(folder / REPORT / "tables" / "summary.csv")
    own = frame[(frame["method"] == name) & (frame["metric"] == "sampled")]
    if own.empty:
        return "## Scores\n\nThis method is not part of the run that the site shows."
    roles = [role for role in ("ID", "OOD", "transfer", "ALL") if role in set(own["role"])]
    lines = []
    for noise, rows in own.groupby("noise", sort=False):
        cells = rows.set_index("role")
        texts = [_score(cells.loc[role]) for role in roles]
        lines.append(f"| {display_name(noise)} | " + " | ".join(texts) + " |")
    head = "| noise | " + " | ".join(display_name(role) for role in roles) + " |\n|---" + "|---" * len(roles) + "|\n"
    note = (
        "Sampled score in per cent: interquartile mean over runs, with its 95 % interval. "
        f"[The report](../notebooks/{REPORT}/notebook.html) compares all methods."
    )
    return f"## Scores\n\n{head}" + "\n".join(lines) + f"\n\n{note}"


def _score(row) -> str:
    if pd.isna(row["iqm"]):
        return "missing"
    return f"{100 * row['iqm']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


# ---- the library ----


def library_index() -> str:
    """The public names, each with the first sentence of its docstring and a link to its place."""
    rows = []
    for name, module in dvpo_lib._MODULES.items():
        summary = (getattr(dvpo_lib, name).__doc__ or "").strip().split("\n")[0]
        place = f"[`{name}`][dvpo_lib.{module}.{name}]"
        if name == "METHODS":
            summary, place = "The table of methods.", "[`METHODS`](../methods/index.md)"
        rows.append(f"| {place} | `dvpo_lib.{module}` | {_cell(summary)} |")
    packages = "\n".join(f"- [`{p}`]({p}.md): {_docstring(ROOT / 'dvpo_lib' / p / '__init__.py')}" for p in PACKAGES)
    names = "| name | module | content |\n|---|---|---|\n" + "\n".join(rows)
    return f"# Library\n\n{names}\n\nPackages in import order: each imports only those before it.\n\n{packages}\n"


def package_page(package: str) -> str:
    """All modules of a package, for mkdocstrings."""
    folder = ROOT / "dvpo_lib" / package
    files = sorted(folder.rglob("*.py"), key=lambda path: (path.parent.parts, path.name))
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files if f.name != "__init__.py"]
    blocks = "\n\n".join(f"::: {module}" for module in modules)
    return f"# `{package}`\n\n{_docstring(folder / '__init__.py')}\n\n{blocks}\n"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]
