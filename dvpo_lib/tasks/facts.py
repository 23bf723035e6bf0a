"""The science family: multi-hop questions over a fictional knowledge base.

    science glim a host b prey ?   ->   ... answer tark

Relations (host, prey, ...) link the species of a fictional world. Each relation is a permutation of the species, drawn
from the suite's seed. No prompt states a fact: the policy learns the facts from demonstrations and has to chain them.
"""

from __future__ import annotations

import itertools

import numpy as np

from dvpo_lib.tasks.chains import Chains, ChainSettings

RELATIONS = ("host", "prey", "rival", "ancestor", "symbiont", "mimic")
SPECIES = 24


def knowledge_base(seed: int) -> dict[tuple[str, str], str]:
    """Draws the facts: {(species, relation): species}."""
    rng = np.random.default_rng([seed, 1000])
    syllables = ["".join(p) for p in itertools.product(("gl", "v", "t", "br", "n", "sh"), ("i", "o", "a", "u"))]
    names = [f"{a}{b}" for a, b in zip(rng.permutation(syllables), rng.choice(list("mrkxn"), len(syllables)))]
    species = names[:SPECIES]
    return {(s, r): str(t) for r in RELATIONS for s, t in zip(species, rng.permutation(species))}


def facts_world(cfg: ChainSettings) -> Chains:
    """Builds the science family; the facts depend on `cfg.seed`."""
    facts = knowledge_base(cfg.seed)
    species = tuple(dict.fromkeys(s for s, _ in facts))
    return Chains("science", species, RELATIONS, lambda state, relation: facts[state, relation])
