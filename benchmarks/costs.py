"""The measured costs as a short Markdown text: costs.md, which docs/guide/costs.md shows between two marks.

python -m benchmarks.costs    # from existing results; both benchmarks also do it at their end
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from dvpo_lib.common.marked_text import insert_between_marks
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.names import display_name

HERE = Path(__file__).resolve().parent
COSTS_PAGE = HERE.parent / "docs" / "guide" / "costs.md"
COSTS_START, COSTS_END = "<!-- costs: written by `make bench` -->\n", "<!-- end of costs -->"
SHOWN_QUANTILES = 200  # M in the text, if it was measured
POLICY_NAMES = {"untrained": "the untrained policy", "trained": "the trained base policy"}


def method_title(method: str) -> str:
    """Name of a benchmark row in text."""
    return display_name(method).replace("dvpo", look_of("dvpo").name)


def costs_text(found: Mapping, against_trl: Mapping) -> str:
    """The text: loss, table of methods, comparison with TRL. Parts without measurements are left out.

    Args:
        found: Content of results.json.
        against_trl: Content of against_trl.json.
    """
    return "\n".join([*loss_lines(found), *method_lines(found), *trl_lines(against_trl)]) + "\n"


def loss_lines(found: Mapping) -> Iterator[str]:
    """The sentence on the quantile loss."""
    loss = pd.DataFrame(found["loss_table_over_sorted"])
    sizes = set(loss["quantiles"])
    m = SHOWN_QUANTILES if SHOWN_QUANTILES in sizes else max(sizes)
    row = loss[(loss["quantiles"] == m) & (loss["kappa"] == 0)].iloc[0]
    yield (
        f"- **Quantile loss** with gradient, {m} quantiles against {m} targets: {row['faster']:.0f} × faster by "
        f"sorting than by the {m} × {m} table, in {row['smaller']:.0f} × less memory. (At λ = 1, the default of the "
        "critic, a target is one number, and neither is needed.)"
    )


def method_lines(found: Mapping) -> Iterator[str]:
    """The table of methods and its sentences."""
    if "iteration_seconds" not in found:
        return
    iterations = pd.DataFrame(found["iteration_seconds"])
    models = list(dict.fromkeys(iterations["model"]))
    bases, columns = [], {}
    for model in models:
        ppo = iterations[(iterations["model"] == model) & (iterations["method"] == "ppo")].iloc[0]
        memory = f" and {ppo['peak_mb']:.0f} MB" if "peak_mb" in ppo else ""
        bases.append(f"{ppo['step']:.3g} s{memory} at the {model} model ({ppo['parameters'] / 1e6:.2g} M parameters)")
        columns[f"time, {model}"] = pd.Series(found["iteration_over_ppo"][model])
        if "memory_over_ppo" in found:
            columns[f"memory, {model}"] = pd.Series(found["memory_over_ppo"][model])
    table = pd.DataFrame(columns)
    table = table.loc[table.iloc[:, 0].sort_values(kind="stable").index]
    device, threads = found["machine"].get("device", "cpu"), found["machine"]["threads"]
    where = device if device != "cpu" else "one thread of a CPU" if threads == 1 else f"{threads} threads of a CPU"
    yield f"- **A whole iteration** relative to PPO's, which takes {', '.join(bases)}, on {where}:"
    yield ""
    yield "| " + " | ".join(["method", *table.columns]) + " |"
    yield "|---" * (len(table.columns) + 1) + "|"
    for method, row in table.iterrows():
        yield "| " + " | ".join([method_title(method), *("–" if pd.isna(x) else f"{x:.2f}" for x in row)]) + " |"
    yield ""
    if "iteration_without_diagnostics_over_ppo" in found:
        yield from watching_lines(found["iteration_without_diagnostics_over_ppo"], models)
    if "dvpo, comonotone targets" in table.index:
        yield "- Variants of DVPO with *targets*: λ of the critic is 0.95, so that a target is a whole distribution."


def watching_lines(ratios: Mapping, models: list[str]) -> Iterator[str]:
    """Costs of the offline methods without diagnostics, which sample only to watch their policy."""
    offline = [method for method in ("cql", "rfqi") if method in ratios[models[0]]]
    if offline:
        numbers = {
            m: " and ".join(f"{ratios[model][m]:.2f}" for model in models if m in ratios[model]) for m in offline
        }
        yield (
            "- The offline methods' policy answers only to be watched, which is included. Without diagnostics, "
            f"theirs and PPO's: {', '.join(f'{method_title(m)} {text}' for m, text in numbers.items())} × the time."
        )


def trl_lines(against_trl: Mapping) -> Iterator[str]:
    """The sentence on TRL."""
    parts = []
    for key, name in POLICY_NAMES.items():
        if key in against_trl:
            run = against_trl[key]
            ratio, length = run["trl_over_ours"]["seconds"], run["response_length"]["dvpo"]
            parts.append(
                f"{ratio['median']:.2f} × ({ratio['min']:.2f} to {ratio['max']:.2f} in {len(run['rounds'])} "
                f"rounds) with {name}, whose responses have {length:.0f} tokens"
            )
    if parts:
        yield f"- **TRL's `GRPOTrainer`** takes for an iteration, relative to `grpo` here: {'; '.join(parts)}."


def publish_costs(folder: Path = HERE, page: Path | None = None) -> None:
    """Writes costs.md next to results.json, if there is one, and shows that of this folder in docs/guide/costs.md.

    Args:
        folder: Folder of the results.
        page: File that shows the text. By default docs/guide/costs.md if `folder` is this folder, else none.
    """
    results, against_trl = folder / "results.json", folder / "against_trl.json"
    if not results.is_file():
        return
    text = costs_text(
        *(json.loads(f.read_text(encoding="utf-8")) if f.is_file() else {} for f in (results, against_trl))
    )
    (folder / "costs.md").write_text(text, encoding="utf-8")
    if page or folder.resolve() == HERE:
        insert_between_marks(page or COSTS_PAGE, COSTS_START, COSTS_END, text)


if __name__ == "__main__":
    publish_costs()
