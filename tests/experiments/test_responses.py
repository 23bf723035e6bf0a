"""Who finds the wrong step: AUC of advantages against hand-made ones, and maps of the same response."""

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from dvpo_lib.experiments import responses
from dvpo_lib.reporting import figures, tables
from dvpo_lib.tasks.families import TaskSettings, build_tokenizer, build_worlds


@pytest.fixture(scope="module")
def world():
    return build_worlds(TaskSettings(), names=["math"])["math"]


@pytest.fixture(scope="module")
def tokenizer() -> AutoTokenizer:
    return build_tokenizer(TaskSettings())


def batch(*advantages, reward=0.0, discount=1.0):
    """Answers to 7 + 5 * 3 whose first wrong word is the fifth token (index 4), with these advantages each."""
    text = "careful a +5 = 3 b *3 = 9 answer 9"
    record = {"prompt": "math 7 a +5 b *3 ?", "answer": "6", "family": "math", "steps": 2}
    row = {"prompt": record["prompt"], "completion": text, "tokens": text.split(), "reward": reward, "record": record}
    row["discount"] = discount
    return pd.DataFrame([{**row, "advantages": list(values)} for values in advantages])


def test_the_auc_counts_earlier_tokens_with_a_higher_advantage(world, tokenizer):
    rest = [0.0] * 7
    tables_of = {
        "lowest": batch([1, 1, 1, 1, -1, *rest]),
        "highest": batch([0, 0, 0, 0, 1, *rest]),
        "equal": batch([0.5] * 12),
        "half": batch([1, 1, -1, -1, 0, *rest]),
        "mean": batch([1, 1, 1, 1, -1, *rest], [0, 0, 0, 0, 1, *rest]),
    }
    assert responses.first_wrong_tokens(tables_of["lowest"], world, tokenizer) == [4]
    found = {name: responses.error_auc(table, world, tokenizer)["auc"] for name, table in tables_of.items()}
    assert found == {"lowest": 1.0, "highest": 0.0, "equal": 0.5, "half": 0.5, "mean": 0.5}
    assert responses.error_auc(tables_of["mean"], world, tokenizer)["count"] == 2


def td_auc(advantages, discount, world, tokenizer):
    return responses.error_auc(batch(advantages, discount=discount), world, tokenizer)["td_auc"]


def test_td_errors_take_the_position_out_of_an_advantage(world, tokenizer):
    """A constant value of 0.6 and a reward of 0: the advantages fall towards the end, the TD errors are all equal."""
    for discount in (0.5, 0.95):
        flat = (-0.6 * discount ** np.arange(10, -1, -1)).tolist()
        found = responses.error_auc(batch(flat, discount=discount), world, tokenizer)
        assert (found["auc"], found["td_auc"]) == (1.0, 0.5)
    assert td_auc([-0.6] * 11, 1.0, world, tokenizer) == 0.5


@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(("fall", "expected"), [(-0.3, 1.0), (0.3, 0.0), (0.0, 0.5)])
def test_td_errors_see_the_value_fall_at_the_wrong_token_for_every_lambda(discount, fall, expected, world, tokenizer):
    values = np.where(np.arange(12) > 4, 0.5 + fall, 0.5)  # of the states before the tokens; the last one is the end
    td = np.diff(values)
    td[-1] = 0.0 - values[-2]  # the reward of a wrong response
    advantages = [0.0]
    for error in td[::-1]:
        advantages.insert(0, error + discount * advantages[0])
    whitened = (np.array(advantages[:-1]) - 0.2) / 1.7
    assert td_auc(whitened.tolist(), discount, world, tokenizer) == expected


def test_a_wrong_token_at_the_end_has_no_td_error_without_the_reward(world, tokenizer):
    found = responses.error_auc(batch([0.0, 0.0, 0.0, 0.0, -1.0]), world, tokenizer)
    assert (found["auc"], found["count"], found["td_count"]) == (1.0, 1, 0) and np.isnan(found["td_auc"])


def test_right_responses_have_no_wrong_step(world, tokenizer):
    right = batch([0.0] * 12)
    right.at[0, "completion"] = "careful a +5 = 2 b *3 = 6 answer 6"
    assert responses.first_wrong_tokens(right, world, tokenizer) == [None]
    auc = responses.error_auc(right, world, tokenizer)
    assert np.isnan(auc["auc"]) and auc["count"] == 0


def test_maps_show_one_response_with_its_wrong_token_framed(world, tokenizer):
    seen = {"PPO": batch([0.1] * 11), "DVPO": batch([-0.2] * 11)}
    maps = responses.error_maps(seen, world, tokenizer)
    assert [m["mark"] for m in maps] == [4, 4] and maps[0]["title"].startswith("PPO: math 7")
    drawn = figures.token_text(maps).axes[0].texts
    framed = [
        text.get_text() for text in drawn if text.get_bbox_patch() and text.get_bbox_patch().get_linewidth() > 1.5
    ]
    assert framed == ["3", "3"]


def test_the_table_of_aucs_has_a_row_for_each_method():
    rows = [
        ("ppo", "none", 0, 0.8, 0.5),
        ("ppo", "none", 1, 0.9, 0.6),
        ("dvpo", "none", 0, 0.7, 0.4),
        ("dvpo", "spikes", 0, 0.6, 0.4),
    ]
    columns = ["method", "noise", "seed", "auc", "td_auc"]
    shown = tables.error_auc_table(pd.DataFrame(rows, columns=columns)).set_index(["of", "method"])["no noise"]
    assert shown["advantages"].to_dict() == {"PPO": "0.85 (0.80 to 0.90)", "DVPO": "0.70 (0.70 to 0.70)"}
    assert shown["TD errors"].to_dict() == {"PPO": "0.55 (0.50 to 0.60)", "DVPO": "0.40 (0.40 to 0.40)"}
    assert tables.error_auc_table(pd.DataFrame(columns=columns)).empty
