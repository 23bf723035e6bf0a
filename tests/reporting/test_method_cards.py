"""What is said of methods is what they are: read from METHODS and from the resolved settings."""

from conftest import ROOT, run_settings

from dvpo_lib.chain.params import load_params
from dvpo_lib.reporting.method_cards import advantage_unit, method_card, methods_table
from dvpo_lib.rl.methods import METHODS
from dvpo_lib.rl.training_settings import MethodSettings, TrainingSettings


def test_method_card_says_what_a_method_is_made_of():
    card = method_card("grpo", run_settings(method="grpo"))
    assert "critic: none" in card and "in the loss (k3)" in card and "groups of 8" in card
    assert "quantiles" in method_card("ppo_clip_reward", run_settings(method="ppo_clip_reward"))


def test_settings_of_a_row_show_in_its_composition():
    """A row that moves the KL penalty or switches it off says so; the others keep their source's place."""
    rows = {
        "ppo": MethodSettings("scalar", {"kl_placement": "loss", "kl_estimator": "k2"}),
        "grpo": MethodSettings("none", {"beta": 0.0}),
        "dr_grpo": MethodSettings("none"),
    }
    table = methods_table(TrainingSettings(), rows).set_index("method")
    assert "KL penalty 0.01 in the loss (k2)" in table.loc["PPO", "policy loss"]
    assert table.loc["GRPO", "policy loss"].endswith("no KL") and table.loc["GRPO", "own settings"] == "beta 0.0"
    assert "constant length; KL penalty 0.01 in the loss (k3)" in table.loc["Dr. GRPO", "policy loss"]
    assert table.loc["Dr. GRPO", "own settings"] == "none"


def test_every_method_of_the_large_profile_is_described():
    params = load_params(ROOT / "params.yaml", overlaid=ROOT / "profiles/full.yaml")
    table = methods_table(params.training, params.methods)
    assert len(table) == len(METHODS) and (table != "").all().all()
    assert {advantage_unit(m) for m in ("cql", "grpo", "reinforce_pp")} == {
        "advantage Q - V (reward units)",
        "advantage, relative to its group",
        "advantage, whitened over the batch",
    }
