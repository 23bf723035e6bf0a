"""Every default has a meaning and a source, and params.yaml's training settings are those defaults."""

import dataclasses

from conftest import ROOT

from dvpo_lib.common.settings_tree import to_builtins
from dvpo_lib.common.settings_yaml import read_yaml
from dvpo_lib.reporting.setting_sources import SETTING_SECTIONS, SETTING_SOURCES, settings_table


def test_every_setting_has_a_meaning_and_a_source():
    table = settings_table()
    assert not table.isna().any().any() and (table != "").all().all()
    for section, cls in SETTING_SECTIONS.items():
        assert set(SETTING_SOURCES[section]) == {f.name for f in dataclasses.fields(cls)}


def test_params_spell_out_the_defaults():
    """The table would mislead where the chain used other values than the classes' own."""
    training = to_builtins(read_yaml(ROOT / "params.yaml"))["training"]
    own = {f.name: f.default for f in dataclasses.fields(SETTING_SECTIONS["training"])}
    assert {k: own[k] for k in training} == training
