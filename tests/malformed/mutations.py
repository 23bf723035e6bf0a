"""Mutations of bytes, texts and trees that turn good inputs into malformed ones."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NONSENSE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.5,
    -0.0,
    1e308,
    -1e-320,
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "0",
    "1e-4",
    "none",
    "NaN",
    "../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "\ud800",
    "\u202e\u2028",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ☃ é",
    "<script>alert(1)</script>",
    "x" * 5000,
    "A" + "\u0301" * 300,
    [],
    [[]],
    {},
    {"": None},
    [None],
    [1, "a", None],
    {"a": {"b": {"c": []}}},
]
BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\t",
    b"\r",
    b"\r\n",
    b"\n\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"'",
    b"\\",
    b"&a ",
    b"*a ",
    b"!!python/object/apply:os.system ",
    b"%YAML 3.0\n",
    b"---\n",
    b"? ",
    b"NaN",
    b"-Infinity",
    b"9" * 5000,
    b"1e999999",
    b"[" * 3000,
    b"{" * 300,
    b'{"a":' * 2000,
    b"\\ud800",
    b"\\u0000",
    b"2024-01-31",
    b"\x1b[31m",
    "é☃".encode(),
    "é".encode("latin-1"),
]
ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp1252", "utf-7", "cp037"]


def nonsense(rng: random.Random) -> Any:
    """A value that is seldom what was expected; now and then deep, wide or random."""
    chance = rng.random()
    if chance < 0.8:
        return copy.deepcopy(rng.choice(NONSENSE))
    if chance < 0.85:
        value: Any = 1
        for _ in range(rng.choice((20, 90, 150, 600))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        return value
    if chance < 0.9:
        return [rng.randrange(100) for _ in range(rng.choice((50, 3000)))]
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x20000)))) for _ in range(rng.randrange(30)))


def places_of(tree: Any, place: tuple = ()) -> list[tuple]:
    """The places of all values in a tree of mappings and lists, the root's excluded."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(*place, key), *places_of(value, (*place, key))]
    return found


def mutate_tree(tree: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy in which one to `most` values are replaced, dropped, renamed or doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, most)):
        places = places_of(tree)
        if not places or rng.random() < 0.02:
            return nonsense(rng)
        *path, key = rng.choice(places)
        parent = tree
        for part in path:
            parent = parent[part]
        action = rng.choice(("replace", "replace", "drop", "rename", "insert", "wrap"))
        if action == "replace":
            parent[key] = nonsense(rng)
        elif action == "wrap":
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"x": parent[key]}
        elif action == "drop":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(rng.randint(0, len(parent)), nonsense(rng))
        else:
            value = parent.pop(key) if action == "rename" else nonsense(rng)
            parent[rng.choice((f"{key}s", str(key)[:-1], str(key).upper(), str(nonsense(rng))[:200]))] = value
    return tree


def mutate_bytes(raw: bytes, rng: random.Random, most: int = 3) -> bytes:
    """A copy that is cut, spliced, doubled in parts, sprinkled with bytes, or in another encoding."""
    for _ in range(rng.randint(1, most)):
        one, two = sorted(rng.randint(0, len(raw)) for _ in range(2))
        two = min(two, one + rng.choice((1, 3, 40, 400)))
        action = rng.randrange(9)
        if action == 0:
            raw = raw[:one]
        elif action == 1:
            raw = raw[:one] + raw[two:]
        elif action in (2, 3, 4):
            raw = raw[:one] + rng.choice(BYTES) + raw[two if action == 2 else one :]
        elif action == 5:
            raw = raw[:two] + raw[one:]
        elif action == 6:
            raw = raw[:one] + rng.randbytes(rng.choice((1, 2, 50))) + raw[two:]
        elif action == 7:
            raw = raw.replace(b"\n", b"\r\n")
        else:
            raw = raw.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
    return raw


def json_text(tree: Any, rng: random.Random) -> str:
    """A tree as JSON; now and then with a key given twice, or with literals that only Python's reader takes."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5, default=str)
    if rng.random() < 0.1 and text.startswith("{") and isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        text = f"{{{json.dumps(key)}: 1, {text[1:]}"
    return text
