"""Malformed settings: params.yaml as text and as a tree, changes of the command line, and settings classes."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pydantic

from dvpo_lib.chain.params import Params, load_params
from dvpo_lib.common.settings_tree import ConfigError, to_builtins
from dvpo_lib.common.settings_yaml import read_yaml, read_yaml_assignment
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.noise.sources import NoiseSettings
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.training_settings import TrainingSettings, with_changes
from dvpo_lib.tasks.families import TaskSettings
from malformed import Case
from malformed.mutations import mutate_bytes, mutate_tree, nonsense, places_of

ROOT = Path(__file__).resolve().parents[2]
BOMBS = [
    b"a0: &a [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 30)),
    b"seed: &s {a: *s}\n",
    b"<<: [{a: 1}, {b: 2}]\n",
    b"seed: !!binary gibberish\n",
    b"{" * 5000,
    b"- " * 5000,
    b"a: " * 3000,
    b"? " * 3000,
    b"seed:\n" + b"".join(b" " * i + b"a:\n" for i in range(1, 500)),
    b"seed: |\n" + b" x\n" * 20000,
    b"seed: '" + b"x" * 150_000,
    b"#" * 150_000,
    b"seed: 1\nseed: 2\n",
    b"\tseed: 1\n",
    b"",
    b"\x00" * 100,
]


NAMED = (  # by line and key; what concerns no key, by line
    r"^(changes: |params\.yaml:\d+: "
    r"(.+: |not valid|expected a mapping|the file has |a key should|nested deeper|tags such|more than))"
)


class SettingsFileCases:
    """params.yaml mutated, and settings of the command line on top of it."""

    def __init__(self, folder: Path):
        self.path = folder / "params.yaml"
        self.text = (ROOT / "params.yaml").read_bytes()
        self.tree = to_builtins(read_yaml(ROOT / "params.yaml"))
        self.keys = [".".join(map(str, place)) for place in places_of(self.tree)]

    def __call__(self, rng: random.Random) -> Case:
        chance = rng.random()
        changes = None
        if chance < 0.15:
            raw, shown = self.text, "params.yaml"
            changes = {rng.choice(self.keys): nonsense(rng) for _ in range(rng.randint(1, 2))}
        elif chance < 0.3:
            option = f"{rng.choice(self.keys)}={mutate_bytes(b'[1, {a: 2}]', rng).decode('utf-8', 'replace')}"
            return Case(
                repr(option), lambda: read_yaml_assignment(option, "--set"), (ConfigError,), r"^--set .", _is_assignment
            )
        elif chance < 0.35:
            raw = rng.choice(BOMBS)
            raw = raw if rng.random() < 0.5 else self.text + raw
        elif chance < 0.65:
            raw = mutate_bytes(self.text, rng)
        else:
            raw = json.dumps(mutate_tree(self.tree, rng), indent=1, default=str).encode("utf-8", "surrogatepass")
        shown = f"{changes if changes is not None else raw}"
        self.path.write_bytes(raw)
        return Case(shown, lambda: load_params(self.path, changes=changes), (ConfigError,), NAMED, _are_params)


def _is_assignment(result) -> None:
    assert isinstance(result, tuple) and result[0].strip()


def _are_params(result) -> None:
    assert isinstance(result, Params) and result.seeds >= 1


def settings_case(rng: random.Random) -> Case:
    """A settings class called with nonsense, as a user of Python would."""
    kind = rng.choice((NoiseSettings, TaskSettings, CriticSettings, TrainingSettings, DVPOConfig, with_changes))
    if kind is DVPOConfig:
        own = [name for name in DVPOConfig.__annotations__ if name[0] != "_"]
        values = {rng.choice(own): nonsense(rng) for _ in range(rng.randint(1, 2))}
        call = lambda: DVPOConfig(**{"report_to": "none", "use_cpu": True, "bf16": False} | values)  # noqa: E731
    elif kind is with_changes:
        values = {rng.choice([*TrainingSettings.__dataclass_fields__, "x"]): nonsense(rng)}
        call = lambda: with_changes(TrainingSettings(), values)  # noqa: E731
    else:
        names = [*kind.__dataclass_fields__, "unknown"]
        values = {rng.choice(names): nonsense(rng) for _ in range(rng.randint(1, 2))}
        call = lambda: pydantic.TypeAdapter(kind).validate_python(values)  # noqa: E731
    return Case(
        f"{kind.__name__} {values}", lambda: _in_one_line(call), (ValueError,), "|".join(map(re.escape, values))
    )


def _in_one_line(call):
    """The result; pydantic's message, which has several lines, as the first of its problems."""
    try:
        return call()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
