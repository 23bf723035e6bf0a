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


def batch(*advantages, reward=0.0):
    """Answers to 7 + 5 * 3 whose first wrong word is the sixth token (index 4), with these advantages each."""
    text = "careful a +5 = 3 b *3 = 9 answer 9"
    record = {"prompt": "math 7 a +5 b *3 ?", "answer": "6", "family": "math", "steps": 2}
    row = {"prompt": record["prompt"], "completion": text, "tokens": text.split(), "reward": reward, "record": record}
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
    rows = [("ppo", "none", 0, 0.8), ("ppo", "none", 1, 0.9), ("dvpo", "none", 0, 0.7), ("dvpo", "spikes", 0, 0.6)]
    shown = tables.error_auc_table(pd.DataFrame(rows, columns=["method", "noise", "seed", "auc"]))
    assert shown["method"].tolist() == ["PPO", "DVPO"]
    assert shown["no noise"].tolist() == ["0.85 (0.80 to 0.90)", "0.70 (0.70 to 0.70)"]
    assert tables.error_auc_table(pd.DataFrame(columns=["method", "noise", "seed", "auc"])).empty
