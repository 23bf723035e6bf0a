"""Differences between causal LMs that matter when they are read token by token.

What ends a response, how many positions there are, what a forward takes, and which caches can be indexed by row.
Architectures with key/value caches, state-space models, hybrids of both and multimodal classes all go through here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dvpo_lib.models.architectures import accepted_inputs, text_config

CACHES = ("past_key_values", "cache_params")  # names that forwards have for their cache
IGNORE_PADDING = ("rwkv",)  # model types that take an attention mask and do not use it


def inner_model(model):
    """The `transformers` model inside wrappers: DDP and compiled modules, adapters of peft, perturbed policies."""
    while True:
        children = vars(model).get("_modules", {})
        inner = next((children[name] for name in ("module", "_orig_mod", "policy") if name in children), None)
        if inner is None and hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None:
            return model
        model = inner


def end_tokens(model, tokenizer) -> tuple[int, ...]:
    """All tokens that end a response: the tokenizer's end of sequence, and the model's (chat models have several).

    Args:
        model: Causal LM, for its `generation_config` and `config`; None: the tokenizer alone.
        tokenizer: Its tokenizer.

    Raises:
        ValueError: If there is none: no response could end.
    """
    model = None if model is None else inner_model(model)
    config = getattr(model, "config", None)
    text = None if config is None else text_config(model)
    found = [tokenizer.eos_token_id]
    for source in (getattr(model, "generation_config", None), config, text):
        ids = getattr(source, "eos_token_id", None)
        found += ids if isinstance(ids, list | tuple) else [ids]
    ends = tuple(dict.fromkeys(int(i) for i in found if i is not None))
    if not ends:
        raise ValueError("no token ends a response: set tokenizer.eos_token or model.generation_config.eos_token_id")
    return ends


def position_limit(model) -> int | None:
    """Tokens of prompt and completion that a model has positions for; None if it has no limit."""
    model = inner_model(model)
    limit = getattr(text_config(model), "max_position_embeddings", None) if hasattr(model, "config") else None
    return limit if isinstance(limit, int) and limit > 0 else None


def ignores_padding(model) -> bool:
    """Whether a model reads padding like text, so that only prompts of one length can be read together."""
    inner = inner_model(model)
    kind = getattr(getattr(inner, "config", None), "model_type", None)
    return kind in IGNORE_PADDING or not accepted_inputs(inner, {"attention_mask": None})


def cache_argument(model) -> str | None:
    """The name that a model's forward has for its cache; None if it has none."""
    return next(iter(accepted_inputs(inner_model(model), dict.fromkeys(CACHES))), None)


class CachedReader:
    """Reads a batch of rows from left to right and gives the logits that predict the next token of each.

    A model without a cache reads all tokens again at each step.

    Args:
        model: Causal LM.

    Attributes:
        cache: That of the last forward; None if the model has none.
    """

    def __init__(self, model: nn.Module):
        self.model, self.inner, self.cache_name = model, inner_model(model), cache_argument(model)
        self.cache = self._text = self._positions = None

    def start(self, ids: Tensor, attention: Tensor) -> Tensor:
        """(B, V) logits after prompts (B, P), padded left."""
        self.cache, self._text = None, ids
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        self._positions = positions[:, -1:]
        return self._forward(ids, attention, positions)

    def step(self, token: Tensor, attention: Tensor) -> Tensor:
        """(B, V) logits after one more token (B,) of each row; attention (B, P + t) includes it."""
        self._positions = self._positions + 1
        if self.cache is None:
            self._text = torch.cat([self._text, token[:, None]], 1)
            return self._forward(self._text, attention, (attention.cumsum(1) - 1).clamp(min=0))
        return self._forward(token[:, None], attention, self._positions)

    def can_select(self) -> bool:
        """Whether `select` works."""
        return self.cache is None or _selector(self.cache) is not None

    def select(self, rows: Tensor) -> None:
        """Keeps these rows, in this order; a row may stand several times."""
        self._positions = self._positions[rows]
        if self.cache is None:
            self._text = self._text[rows]
        else:
            _selector(self.cache)(rows)

    def _forward(self, ids: Tensor, attention: Tensor, positions: Tensor) -> Tensor:
        inputs = dict(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
        if self.cache is not None:
            inputs[self.cache_name] = self.cache
            if self.cache_name != "past_key_values":
                del inputs["attention_mask"]  # a state has read the padding already
        out = self.model(**accepted_inputs(self.inner, inputs))
        self.cache = getattr(out, self.cache_name, None) if self.cache_name else None
        if self.cache is not None:
            self._text = None
        return out.logits[:, -1]


def _selector(cache):
    """A function of row indices that indexes a cache in place; None if it cannot be.

    Caches of several layers are asked layer by layer. Of the two methods that layers have for it, the one defined
    further down the class hierarchy is right: hybrids inherit `batch_select_indices` from their attention part, which
    knows nothing of the state, and override `reorder_cache`.
    """
    if isinstance(cache, tuple):  # caches of several networks
        return _all_of([_selector(part) for part in cache])
    layers = getattr(cache, "layers", None)
    special = [kind for kind in type(cache).__mro__ if not kind.__module__.endswith("cache_utils")]
    if layers is None or any("batch_select_indices" in vars(kind) for kind in special):
        return _most_derived(cache)
    return _all_of([_most_derived(layer) for layer in layers])


def _all_of(selectors: Sequence):
    if any(selector is None for selector in selectors):
        return None

    def select(rows: Tensor) -> None:
        for selector in selectors:
            selector(rows)

    return select


def _most_derived(part):
    for kind in type(part).__mro__:
        for name in ("batch_select_indices", "reorder_cache"):
            if name in vars(kind):
                return getattr(part, name)
    return None
