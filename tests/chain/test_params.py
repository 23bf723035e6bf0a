"""params.yaml: what is accepted, and the one clear error for everything else."""

from __future__ import annotations

import dataclasses
import time

import pytest
from conftest import ROOT

from dvpo_lib.chain.params import SECTIONS, load_params
from dvpo_lib.common.settings_tree import ConfigError

TEXT = """\
seed: 1
seeds: 4
families: [math]
train_noises: [none, flip]
noises:
  none: {kind: none}
  flip:
    kind: flip
    rate: 3e-1  # a number in YAML 1.2, a string in 1.1
methods:
  ppo: {critic: scalar}
"""
TRACKED = ["seed", "seeds", "families", "train_noises", "noises", "methods"]


def load(tmp_path, text=TEXT, tracked=TRACKED, **options):
    (tmp_path / "params.yaml").write_text(text)
    return load_params(tmp_path / "params.yaml", tracked, **options)


def test_values_have_their_types(tmp_path):
    params = load(tmp_path)
    assert params.seeds == 4 and params.train_noises == ["none", "flip"]
    assert params.noises["flip"].rate == 0.3
    assert params.runtime.workers is None  # a section of defaults may be left out where no stage tracks it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds: 4", "sedes: 4"), "params.yaml:2: sedes: unknown parameter; did you mean `seeds`?"),
        (("rate: 3e-1", "rte: 3e-1"), "params.yaml:9: noises.flip.rte: unknown parameter; did you mean `rate`?"),
        (("rate: 3e-1", "rate: often"), "params.yaml:9: noises.flip.rate: should be a valid number, not 'often'"),
        (("rate: 3e-1", "rate: 1.5"), "params.yaml:9: noises.flip.rate: should be less than or equal to 1, not 1.5"),
        (("rate: 3e-1", "then: [{kind: missing, rte: 1}]"), "params.yaml:9: noises.flip.then.0.rte: unknown parameter"),
        (("rate: 3e-1", "drift: [30, 10]"), "params.yaml:7: noises.flip: Value error, drift: steps (first, last) with"),
        (("seeds: 4", "seeds: 0"), "params.yaml:2: seeds: should be greater than or equal to 1, not 0"),
        (("seeds: 4", "seeds: '4'"), "params.yaml:2: seeds: should be a valid integer, not '4'"),
        (("seeds: 4", "seeds: 2.5"), "params.yaml:2: seeds: should be a valid integer"),
        (("[math]", "[math, art]"), "params.yaml:3: families.1: should be 'math', 'science', 'dialogue', 'slots', "),
        (("{critic: scalar}", "{}"), "params.yaml:11: methods.ppo.critic: this setting is missing"),
        (("seed: 1\n", ""), "params.yaml:1: seed: this section is missing"),
        (("[math]", "[math"), "params.yaml:4: not valid YAML"),
        (("seeds: 4", "seed: 4"), "params.yaml:2: not valid YAML: found duplicate key"),
    ],
)
def test_one_error_names_file_line_and_key(tmp_path, change, message):
    assert change[0] in TEXT
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, TEXT.replace(*change))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


LONG = "x" * 300
UNUSABLE = {
    "an emptied section": ("methods:\n  ppo: {critic: scalar}\n", "methods:\n", 10, "methods: this section is empty"),
    "an emptied value": ("seeds: 4", "seeds:", 2, "seeds: this section is empty"),
    "a date": ("seeds: 4", "seeds: 2024-01-31", 2, "seeds: a date is no setting"),
    "a date in a list": ("[none, flip]", "[none, 2024-01-31]", 4, "train_noises: a date is no setting"),
    "a tag": ("seeds: 4", "seeds: !!python/name:os.system 4", 2, "seeds: tags such as"),
    "not a number": ("rate: 3e-1", "rate: .nan", 9, "noises.flip.rate: should be a finite number"),
    "infinity": ("rate: 3e-1", "rate: 1e999", 9, "noises.flip.rate: should be a finite number"),
    "many digits": ("seed: 1", f"seed: {'9' * 5000}", 1, "seed: this number has too many digits"),
    "a lone surrogate": ("[none, flip]", '[none, "\\ud800"]', 4, "train_noises.1: holds a lone surrogate"),
    "a NUL": ("seeds: 4", "seeds: \0", 2, "not valid YAML"),
    "aliases": ("seeds: 4", "seeds: &a [1]\nseed2: *a", 3, "seed2: aliases are not supported"),
    "a nested list": ("seeds: 4", "seeds: " + "[" * 3000, 2, "seeds: nested deeper than 30 levels"),
    "a nested mapping": ("seeds: 4", "seeds: " + "{a: " * 3000, 2, "nested deeper than 30 levels"),
    "a collection as key": ("seeds: 4", "? [a]\n: 4", 2, "a key should be a text"),
    "a long value": ("seeds: 4", f"seeds: {'y' * 100_000}", 2, "seeds: should be a valid integer"),
    "many values": ("seeds: 4", f"seeds: [{'1,' * 20_000}]", 2, "seeds: more than 5,000 values"),
    "a huge file": ("seeds: 4", f"seeds: {'y' * 1_000_000}", 1, "the file has"),
    "a path as name": ("  flip:\n", "  ../../x:\n", 7, "noises.../../x: a row is named by"),
    "an empty name": ("  flip:\n", "  '':\n", 7, "noises.'': a row is named by"),
    "a long name": ("  flip:\n", f"  {LONG}:\n", 7, "a row is named by"),
    "a dotted name": ("  flip:\n", "  a.b:\n", 7, "noises.a.b: a row is named by"),
    "a name read as missing": ("  flip:\n", "  NA:\n", 7, "noises.NA: tables would read the name"),
    "noise named none": ("none: {kind: none}", "none: {kind: flip}", 6, "noises.none: the name `none` belongs to"),
    "method named none": ("  ppo:", "  none:", 11, "methods.none: the name `none` belongs to"),
}


@pytest.mark.parametrize(("old", "new", "line", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_no_setting_can_be_is_one_short_error_within_a_second(tmp_path, old, new, line, message):
    assert old in TEXT
    start = time.process_time()
    with pytest.raises(ConfigError) as error:
        load(tmp_path, TEXT.replace(old, new))
    assert time.process_time() - start < 1
    assert str(error.value).startswith(f"params.yaml:{line}: ") and message in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_aliases_that_explode_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    with pytest.raises(ConfigError, match=r"params.yaml:2: a1: aliases are not supported"):
        load(tmp_path, "\n".join(lines))


def test_a_file_that_is_not_utf8_is_named_with_line_and_key(tmp_path):
    (tmp_path / "params.yaml").write_bytes(TEXT.replace("seeds: 4", "seeds: \u00e9").encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^params.yaml:2: seeds: not valid UTF-8"):
        load_params(tmp_path / "params.yaml", TRACKED)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="absent.yaml: no such file"):
        load_params(tmp_path / "absent.yaml")


def test_untracked_settings_cannot_be_read(tmp_path):
    params = load(tmp_path, tracked=["seed", "noises.flip"], reader="stage x")
    assert list(params.noises) == ["flip"]
    with pytest.raises(AttributeError, match="stage x does not track `seeds`: add it to the stage's `params:`"):
        _ = params.seeds
    with pytest.raises(KeyError, match="stage x does not track `noises.none`"):
        params.noises["none"]
    with pytest.raises(AttributeError, match="no section `sed`; did you mean `seed`"):
        _ = params.sed
    with pytest.raises(AttributeError, match="read-only"):
        params.seed = 2


@pytest.mark.parametrize("entry", ["sed", "seed.x", "training.learning_rate"])
def test_stages_track_sections_or_rows(tmp_path, entry):
    with pytest.raises(ConfigError, match=f"dvc.yaml: `{entry}` is neither a section"):
        load(tmp_path, tracked=[entry])


def test_changes_are_laid_over_the_file(tmp_path):
    assert load(tmp_path, changes={"noises.flip.rate": 0.1}).noises["flip"].rate == 0.1
    with pytest.raises(ConfigError, match="changes: noises.flip.rate: should be less than or equal to 1, not 2"):
        load(tmp_path, changes={"noises.flip.rate": 2})
    with pytest.raises(ConfigError, match="changes: noises.flp.rate: there is no `flp`; did you mean `flip`"):
        load(tmp_path, changes={"noises.flp.rate": 0.2})


def test_a_profiles_error_names_the_profile(tmp_path):
    (tmp_path / "small.yaml").write_text("noises:\n  flip: {rate: 7}\n")
    with pytest.raises(ConfigError, match=r"small.yaml:2: noises.flip.rate: .* not 7"):
        load(tmp_path, overlaid=tmp_path / "small.yaml")


@pytest.fixture(scope="module")
def committed() -> str:
    return (ROOT / "params.yaml").read_text()


def test_committed_params_and_profiles_are_valid():
    load_params(ROOT / "params.yaml")
    brought = {"real.dir": None, "policy.name_or_path": "owner/model"}  # what a fresh clone does not have
    for profile in (ROOT / "profiles").glob("*.yaml"):
        load_params(ROOT / "params.yaml", overlaid=profile, changes=brought)


def test_learning_rates_tuned_on_the_embedded_policy_do_not_reach_a_published_one():
    changes = {"real.dir": None, "policy.name_or_path": "owner/model"}
    for profile in ("real", "problems"):
        params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles" / f"{profile}.yaml", changes=changes)
        rates = {
            m: row.training.get("learning_rate", params.training.learning_rate) for m, row in params.methods.items()
        }
        assert set(rates.values()) == {params.training.learning_rate}, rates


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("methods.ppo.critic", "`nonesuch` is no row of `critics`"),
        ("ablation.noise", "`nonesuch` is no row of `noises`"),
    ],
)
def test_names_of_rows_must_exist(key, message):
    with pytest.raises(ConfigError, match=f"changes: {key}: {message}"):
        load_params(ROOT / "params.yaml", changes={key: "nonesuch"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods.dvpoo": {"critic": "quantile"}}, "methods.dvpoo: unknown method; did you mean `dvpo`"),
        ({"methods.ppo.critic": "quantile"}, "methods.ppo.critic: ppo needs a scalar critic; critics.quantile is a"),
        ({"methods.dvpo.critic": "none"}, "methods.dvpo.critic: dvpo needs a quantile critic; critics.none is null"),
        (
            {"methods.grpo.critic": "scalar"},
            "methods.grpo.critic: grpo needs no critic; critics.scalar is a scalar one",
        ),
        ({"critics.quantile.kind": "scalar"}, "methods.dvpo.critic: dvpo needs a quantile critic"),
        ({"critics.scalar.pretrain_rollouts": 0}, "critics.scalar.pretrain_rollouts: should be at least 1"),
        ({"critics.quantile.pretrain_epochs": 0}, "critics.quantile.pretrain_epochs: should be at least 1"),
        ({"critics.scalar.pretrain_rollouts": 10_000}, "budget: the budget less the 10000 of critics.scalar is -3856"),
        ({"budget": 6143}, "budget: .* not a multiple of the batch size 128"),
        ({"training.generation_batch_size": 100}, "training.generation_batch_size: 100 is not a multiple of"),
        ({"training.max_steps": 7}, "training.max_steps: is not set here but by `budget`"),
        ({"training.max_completion_length": 7}, "training.max_completion_length: is not set here but by the length of"),
        ({"tasks.dialogue": {"long": [2, 3]}}, "tasks.dialogue: .* `long` must start above `short`"),
        ({"training.method": "ppo"}, "training.method: is not set here but by rows of `methods`"),
        ({"tasks.math": {"long": [9, 9]}}, "tasks.math.long: should be 1 <= first <= last <= 8 steps, not 9, 9"),
        ({"tasks.math": {"short": [3, 2]}}, "tasks.math.short: should be 1 <= first <= last"),
        ({"tasks.science": {"step_errors": [0.1, 0.2, 5.0]}}, "tasks.science.step_errors.2: should be less"),
        ({"noises.flip": None}, "noises.flip: this row is empty"),
        ({"families": ["math", "math"]}, "families: `math` is listed twice"),
        (
            {"families": ["math", "dialogue"], "train_noises": ["none", "majority_vote"]},
            "train_noises: `majority_vote` needs a majority vote, but dialogue has no single answers",
        ),
    ],
)
def test_sections_must_agree(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_params(ROOT / "params.yaml", changes=changes)


def test_the_committed_file_names_the_class_of_every_section(committed):
    for name, section in SECTIONS.items():
        if dataclasses.is_dataclass(section.type):
            path = f"{section.type.__module__}.{section.type.__qualname__}"
            assert path in committed, f"params.yaml, section `{name}`: should name {path}"
