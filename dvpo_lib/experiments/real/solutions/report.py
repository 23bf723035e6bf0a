"""Tables, metrics and sentences of the study of solutions."""

from __future__ import annotations

import pandas as pd

from dvpo_lib.experiments.real.files import DOWNLOAD_HINT
from dvpo_lib.experiments.real.score_tables import METRIC_LABELS, metric_tree, score_cells, score_text, seed_count
from dvpo_lib.experiments.real.solutions.study import BASELINES, SolutionStudy
from dvpo_lib.reporting.figures.style import look_of
from dvpo_lib.reporting.prose import join_words, percent_text

NO_SOLUTIONS = (
    f"This section is empty, since `real.dir` is not set, or `real.studies` is off. {DOWNLOAD_HINT}; then set "
    "`real: {dir: data/real}` in params.yaml."
)


def generator_table(study: SolutionStudy) -> pd.DataFrame:
    """Number of solutions and share of right ones by generator, on training and on held-out problems."""
    rows = []
    for name in dict.fromkeys(study.held["generator"]):
        parts = {}
        for part, table in (("training", study.training), ("held out", study.held)):
            own = table.loc[table["generator"] == name, "correct"]
            parts |= {f"{part}: solutions": f"{len(own):,}", f"{part}: right": percent_text(own.mean(), 1)}
        rows.append({"generator": name, **parts})
    return pd.DataFrame(rows)


def solution_data_findings(study: SolutionStudy) -> str:
    """The data, its split, and the loss of the backbone, in sentences."""
    problems = [t["problem"].nunique() for t in (study.training, study.held)]
    model = study.language_model.iloc[0]
    return (
        f"{problems[0]} problems are for training and {problems[1]} are held out; all solutions of a problem go the "
        f"same way. {study.cut} of {len(study.training) + len(study.held):,} prompts and solutions together were too "
        f"long and were cut. The backbone ({model['parameters'] / 1e6:.1f} M parameters, {model['vocabulary']:.0f} "
        f"tokens of byte-level BPE) was trained for {model['steps']:.0f} steps on {model['tokens'] / 1e6:.2f} M tokens "
        f"of problems with worked solutions: its loss is {model['train_loss']:.2f} nats a token there and "
        f"{model['test_loss']:.2f} on the test file."
    )


def solution_score_table(study: SolutionStudy, at: str = "last") -> pd.DataFrame:
    """Scores at one position for a notebook: one row per noise rate and critic, baselines last, 80 % coverage only."""
    own = study.scores[study.scores["at"].isin([at, "any"])]
    names = list(dict.fromkeys(own["critic"]))
    order = {name: (name in BASELINES) * len(names) + i for i, name in enumerate(names)}
    wide = score_cells(own, ["noise", "critic"]).reset_index()
    wide = wide.sort_values(["noise", "critic"], key=lambda c: c.map(order) if c.name == "critic" else c)
    wide["noise"], wide["critic"] = wide["noise"].map(percent_text), [look_of(c).name for c in wide["critic"]]
    columns = {m: text for m, text in METRIC_LABELS.items() if m in wide and m not in ("cover50", "cover90")}
    wide = wide[["noise", "critic", *columns]].astype(object).fillna("")
    return wide.rename(columns={"noise": "labels turned over", **columns})


def solution_metrics(study: SolutionStudy | None) -> dict:
    """For `dvc metrics show`: {"real": {critic: {noise: {at: {metric: value}}}}}, empty without the data."""
    if study is None:
        return {}
    scores = study.scores.assign(noise=[f"noise_{100 * rate:g}" for rate in study.scores["noise"]])
    return {"real": metric_tree(scores, ["critic", "noise", "at"])}


def solution_findings(study: SolutionStudy) -> str:
    """The results, positive or negative, as a Markdown list."""
    s = study.scores.set_index(["critic", "noise", "at", "metric"]).sort_index()
    rates = sorted(study.scores["noise"].unique())
    names = [n for n in study.critics if n in set(study.scores["critic"])]
    return "\n".join(
        [
            _discrimination_sentence(s, study, rates[0], names),
            _recognition_sentence(s, rates[0], names),
            _noise_sentence(s, study, rates, names),
            *_distribution_sentences(s, rates, names),
            _uncertainty_sentence(study),
        ]
    )


def _discrimination_sentence(s: pd.DataFrame, study: SolutionStudy, rate: float, names: list[str]) -> str:
    """AUC at the last token with the fewest label errors, and the gain from reading the solution."""
    d = study.differences[(study.differences["noise"] == rate) & (study.differences["metric"] == "auc")]
    d = d.set_index("contrast")
    parts, gains = [], []
    for n in names:
        gain = d.loc[f"{n}: last - first"]
        gains.append(gain["low"] > 0)
        parts.append(
            f"{score_text(s.loc[n, rate, 'last', 'auc'])} ({look_of(n).name}; "
            f"{gain['value']:+.2f} since the first token)"
        )
    read = (
        "Reading the solution helps"
        if all(gains)
        else "Reading the solution helps one of them"
        if any(gains)
        else "What reading the solution adds is not beyond its interval"
    )
    return (
        f"- **{percent_text(rate)} of the labels turned over.** The AUC at the last token is {join_words(parts)}. "
        f"{read}."
    )


def _recognition_sentence(s: pd.DataFrame, rate: float, names: list[str]) -> str:
    """AUC inside one generator against the AUC of knowing the generator."""
    known = s.loc[("generator", rate, "any", "auc")]
    inside = [f"{score_text(s.loc[n, rate, 'last', 'auc_within'])} ({look_of(n).name})" for n in names]
    places = [*((n, "last") for n in names), ("generator", "any"), ("constant", "any")]
    brier = [
        f"{s.loc[(n, rate, at, 'brier'), 'value']:.3f} ({look_of(n).name.removesuffix(' (no critic)')})"
        for n, at in places
    ]
    shown = [s.loc[(n, rate, "last", "auc_within"), "low"] > 0.5 for n in names]
    verdict = "they see more than who wrote it" if all(shown) else "not all are shown to see more than who wrote it"
    return (
        f"- **Who wrote it?** Knowing the generator alone gives an AUC of {score_text(known)}. Among the solutions "
        f"of one generator the AUC at the last token is {join_words(inside)}: {verdict}. Brier scores: "
        f"{join_words(brier)}."
    )


def _noise_sentence(s: pd.DataFrame, study: SolutionStudy, rates: list[float], names: list[str]) -> str:
    """AUC at the lowest and the highest noise rate, and quantile against scalar critic."""
    if len(rates) < 2:
        return "- **Noise.** One noise rate only: nothing to compare."
    kept = [
        f"{s.loc[(n, rates[0], 'last', 'auc'), 'value']:.2f} to {score_text(s.loc[n, rates[-1], 'last', 'auc'])} "
        f"({look_of(n).name})"
        for n in names
    ]
    text = (
        f"- **Noise.** From {percent_text(rates[0])} to {percent_text(rates[-1])} of the training labels turned over, "
        f"the AUC at the last token goes from {join_words(kept)}."
    )
    d = study.differences[study.differences["contrast"] == "quantile - scalar"]
    d = d[(d["metric"] == "auc") & (d["at"] == "last")].sort_values("noise")
    clear = [f"{percent_text(r.noise)} ({r.value:+.3f})" for r in d.itertuples() if r.low > 0 or r.high < 0]
    if clear:
        return f"{text} The quantile critic's AUC less the scalar one's is beyond its interval at {join_words(clear)}."
    return f"{text} At no noise rate do the two differ beyond the interval of their difference." if len(d) else text


def _distribution_sentences(s: pd.DataFrame, rates: list[float], names: list[str]) -> list[str]:
    """CRPS, Brier score and coverage of the quantile critic, if there is one."""
    if "quantile" not in names:
        return []
    cells = []
    for rate in rates:
        crps, brier, inside = (s.loc[("quantile", rate, "last", m), "value"] for m in ("crps", "brier", "cover80"))
        cells.append(
            f"{percent_text(rate)} turned over: CRPS {crps:.3f}, Brier score {brier:.3f}, {percent_text(inside)} of "
            f"the outcomes inside the 80 % interval"
        )
    return [
        "- **The distribution.** Outcomes are 0 or 1, and so the CRPS of a coin with the predicted mean is its Brier "
        f"score; a quantile critic with a higher CRPS predicts a worse distribution than that. {'; '.join(cells)}."
    ]


def _uncertainty_sentence(study: SolutionStudy) -> str:
    """Content of the intervals."""
    seeds = len({seed for _, _, seed in study.folders})
    return (
        f"- Intervals resample the {int(study.scores['n'].max())} held-out problems; what another training run would "
        f"change is not in them ({seed_count(seeds)})."
    )
