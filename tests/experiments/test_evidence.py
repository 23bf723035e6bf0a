"""The evidence: a study's file grows piece by piece, and any of its runs can be made again byte for byte."""

import dataclasses
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from dvpo_lib.chain.commands import evidence as command
from dvpo_lib.chain.params import RuntimeSettings, load_params
from dvpo_lib.common.durable_files import folder_digests
from dvpo_lib.experiments.grids import evidence, planned_runs
from dvpo_lib.experiments.grids.cells import Cell, cell_critic, changed_critic, pretraining_of, run_of, training_of
from dvpo_lib.experiments.grids.evidence import EvidenceError
from dvpo_lib.experiments.grids.studies import BASE, NOISES, STUDIES, Study
from dvpo_lib.experiments.responses import first_training_batch
from dvpo_lib.experiments.run_store.keys import machine_name
from dvpo_lib.experiments.specs.base_policy import BasePolicySpec
from dvpo_lib.experiments.specs.training import build_trainer, untested_policy
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.models.policy import PolicySettings, build_policy
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.rl.training_settings import MethodSettings, TrainingSettings
from dvpo_lib.tasks import families as tasks
from dvpo_lib.tasks.chains import ChainSettings
from dvpo_lib.tasks.dialogue import DialogueSettings
from dvpo_lib.tasks.evaluation import EvaluationSettings
from dvpo_lib.tasks.suites import save_suites

SIZES = dict(demonstrations=100, train=40, test=20)
WORLD = tasks.TaskSettings(
    math=ChainSettings(**SIZES), science=ChainSettings(**SIZES), dialogue=DialogueSettings(**SIZES)
)
QUANTILE = CriticSettings(heads=2, quantiles=16, pretrain_rollouts=16, pretrain_epochs=1, batch_size=8)
PARAMS = SimpleNamespace(
    seed=0,
    families=["math"],
    noises={"none": NoiseSettings(), "spikes": NoiseSettings("spikes", rate=0.5, scale=5.0)},
    budget=32,
    training=TrainingSettings(generation_batch_size=16),
    critics={"none": None, "quantile": QUANTILE},
    methods={"dvpo": MethodSettings("quantile"), "grpo": MethodSettings("none", {"beta": 0.0})},
    evaluation=EvaluationSettings(prompts=2, k=2),
    tasks=WORLD,
    runtime=RuntimeSettings(workers=1),
)


def toy_cells(params):
    final, spikes = changed_critic(QUANTILE, {"final_state": True}), NoiseSettings("spikes", rate=0.1, scale=5.0)
    yield Cell("dvpo", "spikes", "math")
    yield Cell("dvpo", "rare spikes", "math", "denoised", {"readout": {"kind": "denoised"}}, final, spikes)
    yield Cell("grpo", "none", "math")
    yield Cell("dvpo", "flip 0.2", "math", source=NoiseSettings("flip", rate=0.2), test="critic")
    yield Cell("dvpo", "none", "math", "untrained critic", critic=changed_critic(QUANTILE, {"pretrain_rollouts": 0}))
    yield Cell("dvpo", "none", "math", "advantages", test="advantages")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    policy = PolicySettings(hidden_size=32, num_hidden_layers=1, steps=20, batch_size=16)
    (folder / "data").mkdir()
    BasePolicySpec(WORLD, policy, 0).execute(folder / "data", folder)
    save_suites(tasks.build_suites(WORLD), folder / "data" / "suites")
    return folder


@pytest.fixture
def toy(world, monkeypatch):
    monkeypatch.chdir(world)
    monkeypatch.setenv("DVPO_STORE", str(world / "store"))
    monkeypatch.setitem(STUDIES, "toy", Study("Does it run?", toy_cells))
    monkeypatch.setattr(planned_runs, "SHOWN", 2)
    return world / "toy.csv"


def test_a_file_grows_until_it_is_whole_and_every_run_can_be_made_again(toy):
    assert list(evidence.extend_evidence(PARAMS, "toy", toy, minutes=-1)) == []  # no time left
    progress = evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=6)
    assert next(progress) == (6, 12)
    table = evidence.read_evidence(toy)
    assert list(table) == evidence.COLUMNS and set(table["seed"]) == {0}  # seed by seed
    assert [run.seed for run in evidence.missing_runs(PARAMS, "toy", table)] == [1] * 6
    for key in table["key"].unique():  # of each kind of cell
        pd.testing.assert_frame_equal(
            evidence.rerun(PARAMS, toy, key[:10]).sort_values(["suite", "metric"], ignore_index=True),
            table[table["key"] == key].sort_values(["suite", "metric"], ignore_index=True),
        )
    said = table[table["suite"] == "training"].pivot(
        index=["method", "variant", "noise"], columns="metric", values="value"
    )
    assert {*evidence.TRAINING_METRICS, "first_reward"} == set(said) and (said["entropy"] > 0).all()
    assert np.isnan(said.loc["grpo", "explained_variance"]).all()
    critic = table[table["role"] == "critic"].set_index(["suite", "metric"])["value"]
    assert set(critic.index.unique("suite")) == {"first", "middle", "last"} and critic["last", "crps"] > 0
    auc = table[table["metric"] == "error_auc"]
    assert list(auc["variant"]) == ["advantages"] and 0 <= auc["value"].iloc[0] <= 1
    assert "untrained critic" in set(table["variant"])
    widths = table[table["metric"].isin(evidence.TAIL_WIDTHS.values())]
    assert set(widths["method"]) == {"dvpo"} and (widths["value"] > 0).all() and set(widths["role"]) == {"training"}
    assert set(widths.groupby(["key", "metric"])["suite"].first()) == {"quarter 1"}
    [name] = table["machine"].unique()
    assert name == machine_name() and name not in toy.read_text("utf-8"), "each row has a short name for it"
    before = toy.read_bytes()
    evidence.write_evidence(toy, table.sample(frac=1, random_state=0))
    assert toy.read_bytes() == before


@pytest.mark.parametrize("method", ["dvpo", "ppo", "robust_ppo"])
def test_td_errors_from_advantages_are_those_of_the_critic(toy, method):
    """Differences of the values along a response, up to the batch's whitening."""
    critics = {"none": None, "quantile": QUANTILE, "scalar": dataclasses.replace(QUANTILE, kind="scalar", loss={})}
    kinds = {"dvpo": "quantile", "ppo": "scalar", "robust_ppo": "quantile"}
    methods = {name: MethodSettings(kind) for name, kind in kinds.items()}
    params = SimpleNamespace(**{**vars(PARAMS), "critics": critics, "methods": methods})
    spec = training_of(params, Cell(method, "none", "math"), 0, None)
    batch, trainer = first_training_batch(spec), build_trainer(spec)
    rollouts, columns = trainer.sample()
    experience = trainer.build_experience(rollouts, trainer.score(rollouts, columns))
    heads = experience.values.mean(-1)
    values = heads.amin(-1) if method == "robust_ppo" else heads.mean(-1)
    derived, expected = [], []
    for i, row in enumerate(batch.itertuples()):
        derived += (np.array(row.advantages[:-1]) - row.discount * np.array(row.advantages[1:])).tolist()
        expected += values[i, experience.tokens.mask[i]].diff().tolist()
    assert np.corrcoef(derived, expected)[0, 1] == pytest.approx(1, abs=1e-4)


def test_a_run_that_cannot_be_made_again_says_why(toy):
    if not toy.is_file():
        next(evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=1))
    table = evidence.read_evidence(toy).astype({"value": float})
    key = table["key"].iloc[-1]
    with pytest.raises(EvidenceError, match="0 runs have a key that begins with 'zz'"):
        evidence.rerun(PARAMS, toy, "zz")
    other = SimpleNamespace(**{**vars(PARAMS), "training": TrainingSettings(generation_batch_size=8)})
    with pytest.raises(EvidenceError, match="settings, code, base policy or libraries are others"):
        evidence.rerun(other, toy, key)
    table.loc[table["key"] == key, "value"] = 0.123
    evidence.write_evidence(toy, table)
    with pytest.raises(EvidenceError, match="gave other numbers"):
        evidence.rerun(PARAMS, toy, key)


def test_a_rerun_tells_other_weights_of_a_critic_from_other_settings(toy, tmp_path):
    """On another processor, the same pretraining gives other weights, and the run another key; the plan is the same."""
    next(evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=6), None)
    table = evidence.read_evidence(toy)
    own = table[(table["noise"] == "spikes") & (table["seed"] == 0)].assign(key="f" * 24)
    for machine, where in ((machine_name(), "$"), ("a processor", "then on a processor, now on .*round differently")):
        evidence.write_evidence(tmp_path / "toy.csv", own.assign(machine=machine))
        with pytest.raises(EvidenceError, match=f"other weights than those of run f+.*{where}"):
            evidence.rerun(PARAMS, tmp_path / "toy.csv", "f")


def test_a_run_that_several_cells_of_a_study_share_can_be_made_again(toy, tmp_path, monkeypatch):
    cells = [Cell("grpo", "none", "math", name) for name in ("first", "second")]
    monkeypatch.setitem(STUDIES, "toy", Study("Are they one run?", lambda params: iter(cells)))
    next(evidence.extend_evidence(PARAMS, "toy", tmp_path / "toy.csv", minutes=10, batch=2))
    table = evidence.read_evidence(tmp_path / "toy.csv")
    assert table["variant"].nunique() == 2
    [key] = table["key"].unique()
    assert set(evidence.rerun(PARAMS, tmp_path / "toy.csv", key)["variant"]) == {"first"}


KINDS_OF_RUN = {
    "base policy": lambda runs: runs["method"] == BASE,
    "without a critic": lambda runs: runs["method"].isin(["grpo", "dr_grpo", "reinforce_pp"]),
    "with a critic": lambda runs: runs["method"].isin(["ppo", "dvpo"]),
}


@pytest.mark.reference
@pytest.mark.parametrize("kind", KINDS_OF_RUN)
def test_a_committed_run_is_made_again_byte_for_byte(kind, tmp_path, monkeypatch):
    """From the committed inputs alone, on a processor that made some of them: on others, sums round differently."""
    for study in STUDIES:
        path = ROOT / command.EVIDENCE_FOLDER / f"{study}.csv"
        runs = evidence.read_evidence(path)
        runs = runs[KINDS_OF_RUN[kind](runs) & (runs["machine"] == machine_name())]
        if len(runs):
            break
    else:
        pytest.skip(f"no committed run of this kind was computed on {machine_name()}")
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{STUDIES[study].profile}.yaml")
    command.place_inputs(params, ROOT / command.INPUTS / STUDIES[study].profile, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVPO_STORE", str(tmp_path / "store"))
    try:
        evidence.rerun(params, path, runs["key"].iloc[0])
    except EvidenceError as error:
        if "code, base policy or libraries are others" in str(error):
            pytest.skip(f"the learning code has changed since: {error}")
        raise


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_cells_that_can_be_trained(study):
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{STUDIES[study].profile}.yaml")
    cells = list(STUDIES[study].cells(params))
    labels = [tuple(cell.labels.values()) for cell in cells]
    assert len(labels) == len(set(labels)) > 1
    for cell in cells:
        if cell.method == BASE:
            assert run_of(params, cell, 3, None).seed == 3 and pretraining_of(params, cell, 3) is None
            continue
        if cell.test == "critic":
            spec = run_of(params, cell, 0, "critic.safetensors")
            assert (spec.noise, spec.critic) == (cell.source, cell_critic(params, cell)) and spec.critic is not None
            continue
        spec = training_of(params, cell, 0, None)
        assert spec.labels["noise"] == cell.noise and spec.critic == cell_critic(params, cell)
        assert (spec.critic is None) == (params.methods[cell.method].critic == "none")


AS_TUNED = ("comparison", "sizes")  # whose pages say that each method has the settings that tuning chose for it


@pytest.mark.parametrize("study", sorted(set(STUDIES) - set(AS_TUNED)))
def test_what_a_study_sets_side_by_side_learns_at_one_rate(study):
    """Else a difference between methods or critics may be that of their learning rates."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    rates = {}
    for cell in STUDIES[study].cells(params):
        if cell.test == "policy" and cell.method != BASE:
            side = cell.variant if study == "learning_rates" else ""
            rates.setdefault(side, set()).add(training_of(params, cell, 0, None).training.learning_rate)
    assert all(len(own) == 1 for own in rates.values()), rates
    assert len(rates) == {"learning_rates": 2, "calibration": 0, "wrong_steps": 0}.get(study, 1)


def test_a_study_whose_methods_differ_has_one_clip_range_and_a_clip_clips_the_critic_too():
    """`python -m dvpo_lib check` asks the same of methods in params.yaml."""
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    specs = [training_of(params, cell, 0, None) for cell in STUDIES["breakdown"].cells(params)]
    assert {spec.training.epsilon for spec in specs} == {params.training.epsilon}
    clipped = [spec for spec in specs if spec.method == "ppo_clip_reward"]
    assert len(clipped) == 20 and all(spec.critic.reward_clip == spec.training.reward_clip for spec in clipped)


def test_outdated_rows_are_not_extended(toy, monkeypatch):
    next(evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=6), None)
    assert evidence.outdated_run(PARAMS, "toy", evidence.read_evidence(toy)) is None
    before = toy.read_bytes()
    settings = {
        "tests": {"evaluation": EvaluationSettings(prompts=1, k=2)},
        "critics, which have to be pretrained again": {
            "critics": {"none": None, "quantile": changed_critic(QUANTILE, {"heads": 1})}
        },
        "training": {"training": TrainingSettings(generation_batch_size=8)},
        "noise": {"noises": {**PARAMS.noises, "spikes": NoiseSettings("spikes", rate=0.4, scale=5.0)}},
    }
    for changed in settings.values():
        with pytest.raises(EvidenceError, match="would be another one now.*Delete its rows"):
            next(evidence.extend_evidence(SimpleNamespace(**{**vars(PARAMS), **changed}), "toy", toy, minutes=10))
    monkeypatch.setitem(STUDIES, "toy", Study("Does it run?", lambda params: list(toy_cells(params))[1:]))
    assert evidence.outdated_run(PARAMS, "toy", evidence.read_evidence(toy)), "a cell that the study has no more"
    monkeypatch.setitem(STUDIES, "toy", Study("Does it run?", toy_cells))
    monkeypatch.setenv("DVPO_STORE", str(toy.parent / "empty store"))  # as in a fresh clone
    assert evidence.outdated_run(PARAMS, "toy", evidence.read_evidence(toy)) is None
    for changed in settings.values():
        other = SimpleNamespace(**{**vars(PARAMS), **changed})
        assert evidence.outdated_run(other, "toy", evidence.read_evidence(toy))
    assert toy.read_bytes() == before


def test_a_run_of_another_study_is_copied_and_not_made_again(toy, tmp_path, monkeypatch):
    next(evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=6), None)
    shutil.copy(toy, tmp_path), shutil.copy(toy.with_name("machines.csv"), tmp_path)

    def cells(params):  # the kinds of cell in toy_cells by other names, then one that no study has
        yield from (dataclasses.replace(cell, variant=f"again {i}") for i, cell in enumerate(toy_cells(params)))
        yield Cell("grpo", "spikes", "math")

    monkeypatch.setitem(STUDIES, "again", Study("Is it copied?", cells))
    monkeypatch.setattr(planned_runs, "SHOWN", 1)
    path, computed = tmp_path / "again.csv", []
    monkeypatch.setattr(evidence, "compute_runs", lambda params, runs: computed.extend(runs) or pd.DataFrame())
    assert list(evidence.extend_evidence(PARAMS, "again", path, minutes=0)) == [] and not computed
    list(evidence.extend_evidence(PARAMS, "again", path, minutes=10))
    assert [run.cell.labels["method"] for run in computed] == ["grpo"]
    table = evidence.read_evidence(path)
    first = evidence.read_evidence(toy).query("seed == 0")
    assert table["variant"].nunique() == 6
    values = ["suite", "role", "metric", "value", "key", "plan", "machine"]
    pd.testing.assert_frame_equal(*(t[values].sort_values(values, ignore_index=True) for t in (table, first)))
    path.unlink()
    changed = SimpleNamespace(**{**vars(PARAMS), "training": TrainingSettings(generation_batch_size=8)})
    list(evidence.extend_evidence(changed, "again", path, minutes=10))
    copied = [run.cell.test for run in planned_runs.planned_runs(changed, "again") if run not in computed]
    assert copied == ["critic"], "that test alone does not depend on settings of training"
    path.unlink()
    elsewhere = evidence.read_evidence(tmp_path / "toy.csv").assign(machine="another processor")
    evidence.write_evidence(tmp_path / "toy.csv", elsewhere)
    computed.clear()
    list(evidence.extend_evidence(PARAMS, "again", path, minutes=10))
    assert len(computed) == 7, "in pairs, rounding would be a difference"


def test_settings_of_a_study_get_their_seeds_together_copies_among_them(toy, tmp_path, monkeypatch):
    """A setting with more seeds than the others would be compared with too few of theirs."""
    next(evidence.extend_evidence(PARAMS, "toy", toy, minutes=10, batch=12), None)
    shutil.copy(toy, tmp_path), shutil.copy(toy.with_name("machines.csv"), tmp_path)
    cells = [Cell("grpo", "none", "math", "known"), Cell("grpo", "spikes", "math", "new")]
    monkeypatch.setitem(STUDIES, "again", Study("Is it in order?", lambda params: iter(cells)))
    monkeypatch.setattr(evidence, "compute_runs", lambda params, runs: made_up_rows(runs))
    next(evidence.extend_evidence(PARAMS, "again", tmp_path / "again.csv", minutes=10, batch=2))
    table = evidence.read_evidence(tmp_path / "again.csv")
    assert table.groupby("variant")["seed"].unique().map(list).to_dict() == {"known": [0], "new": [0]}


def made_up_rows(runs):
    known = dict(suite="math_id", role="ID", metric="sampled", value=0.5, key="k", plan="p", machine="m", diverged=None)
    return pd.DataFrame([run.labels | known for run in runs])


def test_the_step_at_which_a_run_diverged_becomes_part_of_its_rows(toy, tmp_path):
    run = next(planned_runs.planned_runs(PARAMS, "toy"))
    folder = tmp_path / "key"
    folder.mkdir()
    untested_policy({"math": {}}, "math", step=7)[0].to_csv(folder / "final.csv", index=False)
    (tmp_path / "key.json").write_text('{"machine": "m"}')
    evidence.write_evidence(tmp_path / "toy.csv", evidence._rows(PARAMS, run, folder))
    again = evidence.read_evidence(tmp_path / "toy.csv")
    assert set(again["diverged"]) == {7} and again["value"].isna().all() and len(again) == 6


def test_the_larger_policy_has_about_2_million_parameters_and_the_usual_one_0_14():
    sizes = {}
    for name in ("full", "large"):
        params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{name}.yaml")
        policy = build_policy(tasks.build_tokenizer(params.tasks), params.policy, 0)
        sizes[name] = policy.num_parameters() / 1e6
    assert sizes["full"] == pytest.approx(0.14, abs=0.005) and sizes["large"] == pytest.approx(2, abs=0.25)


def test_cells_that_claims_rest_on_have_ten_seeds_and_come_first():
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / "full.yaml")
    runs = list(planned_runs.planned_runs(params, "comparison"))
    first = [run for run in runs if run.cell.family == params.families[0]]
    assert runs[: len(first)] == first and [run.cell.noise for run in first] == sorted(
        (run.cell.noise for run in first), key=NOISES.index
    )
    seeds = Counter(tuple(run.cell.labels.values()) for run in runs)
    assert {count for (*_, family), count in seeds.items() if family == params.families[0]} == {10}
    assert {count for (*_, family), count in seeds.items() if family != params.families[0]} == {5}
    shown = Counter(tuple(run.cell.labels.values()) for run in planned_runs.planned_runs(params, "heads"))
    assert set(shown.values()) == {5}


def test_the_readme_gets_verdict_and_figure_of_the_files(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + "old\n".join(command.VERDICT_MARKS) + "\nafter\n", encoding="utf-8")
    command.write_verdict(tmp_path)
    assert "old" not in readme.read_text("utf-8") and not list(tmp_path.rglob("*.png")), "nothing is known yet"
    runs = [
        dict(study="comparison", method=method, variant="", noise=noise, family="math", seed=seed, suite=suite)
        | dict(
            role=suite.removeprefix("math_").upper(),
            metric="sampled",
            value=0.5 + 0.1 * (method == "dvpo"),
            diverged=np.nan,
            key="k",
            plan="p",
            machine="m",
        )
        for method in ("dvpo", "ppo", BASE)
        for noise in NOISES
        for seed in range(2 if noise == "flip" else 10)
        for suite in ("math_id", "math_ood")
    ]
    evidence.write_evidence(tmp_path / command.EVIDENCE_FOLDER / "comparison.csv", pd.DataFrame(runs))
    command.write_verdict(tmp_path)
    text = readme.read_text("utf-8")
    assert "| DVPO is better than PPO | paper | **confirmed** (+10.0) | 2 of 10 seeds |" in text
    assert text.endswith("\nafter\n")
    picture = Image.open(tmp_path / command.EVIDENCE_FOLDER / "comparison.png")
    assert picture.width > picture.height > 200


def test_inputs_are_placed_once_and_again_after_a_change(world, tmp_path):
    """Every machine starts from the committed bytes of the base policy; suites come from the settings."""
    inputs, workdir, params = tmp_path / "inputs", tmp_path / "work", SimpleNamespace(tasks=WORLD)
    shutil.copytree(world / "data" / "base", inputs / "base")
    (inputs / "noise").mkdir()
    command.place_inputs(params, inputs, workdir)
    assert folder_digests(workdir / "data" / "base") == folder_digests(inputs / "base")
    assert folder_digests(workdir / "data" / "suites") == folder_digests(world / "data" / "suites")
    (workdir / "data" / "mark").touch()
    command.place_inputs(params, inputs, workdir)
    assert (workdir / "data" / "mark").exists(), "nothing has changed"
    (inputs / "noise" / "labels.jsonl").write_text("{}\n")
    command.place_inputs(params, inputs, workdir)
    assert (workdir / "data" / "noise" / "labels.jsonl").exists() and not (workdir / "data" / "mark").exists()


def test_methods_of_both_sizes_have_the_same_settings():
    """The profile of the larger policy repeats rows of `full`."""
    full, large = (
        load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{name}.yaml") for name in ("full", "large")
    )
    assert {"dvpo", "ppo", "grpo", "robust_ppo", "cql", "rfqi"} <= set(large.methods) <= set(full.methods)
    for name, row in large.methods.items():
        assert row == full.methods[name] and large.critics[row.critic] == full.critics[row.critic], name
