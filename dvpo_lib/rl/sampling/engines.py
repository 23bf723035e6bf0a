"""Sampling engines: the interface, and what goes in and out. Token ids in; token ids and log-probabilities out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SamplingCuts:
    """Cuts of the sampling distribution by `transformers`' names, applied after the temperature; none by default.

    Attributes:
        top_p: The smallest set of tokens with this mass is left.
        top_k: This many of the most likely tokens are left; 0: all.
        min_p: Tokens are left that have this share of the largest probability.
        repetition_penalty: Of tokens that stand in the text already.
    """

    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __bool__(self) -> bool:
        return bool(self.processors())

    def processors(self) -> list[Callable]:
        """The `LogitsProcessor`s of `transformers`."""
        from transformers import generation

        found: list[Callable] = []
        if self.repetition_penalty != 1.0:
            found.append(generation.RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.top_k:
            found.append(generation.TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            found.append(generation.TopPLogitsWarper(float(self.top_p)))
        if self.min_p:
            found.append(generation.MinPLogitsWarper(self.min_p))
        return found


@dataclass
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_completion_length: Tokens at most, ends included; of a dialogue, the environment's too.
        temperature: Of the softmax; 0: the most likely token.
        seed: Of all rows' streams, such as `seed_for(run's seed, purpose, step)`.
        rows: Number of each row's stream; None: 0, 1, 2 ...
        cuts: Of the distribution.
        template: Further arguments of the chat template.
    """

    max_completion_length: int
    temperature: float = 1.0
    seed: int = 0
    rows: Sequence[int] | None = None
    cuts: SamplingCuts = SamplingCuts()
    template: Mapping[str, Any] = field(default_factory=dict)

    def streams(self, count: int) -> list[int]:
        """The streams of `count` rows."""
        return list(range(count) if self.rows is None else self.rows)


@dataclass
class Completions:
    """What an engine answers to B prompts.

    Attributes:
        ids: Tokens of each completion, its end included if it has one: the last token says why it stopped.
        logprobs: Of each token under the sampling distribution, float32.
    """

    ids: list[list[int]]
    logprobs: list[list[float]]


class EngineError(RuntimeError):
    """An engine failed: a server died, was too slow or answered with nonsense; the message says what to do."""


class SamplingEngine(ABC):
    """What completes prompts.

    Each process of a run has an engine of its own and asks it for its own rows. What a row gets depends on its stream
    (`Sampling.rows`), not on the process that asks, as far as the engine lets it.
    """

    @abstractmethod
    def complete(
        self,
        policy,
        pad: int,
        ends: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        how: Sampling,
        starts: Sequence[int],
    ) -> Completions:
        """One completion for each prompt.

        Args:
            policy: Causal LM, sampled in eval mode whatever mode it is in; engines with own weights ignore it.
            pad: Token of the padding.
            ends: Tokens that end a completion.
            prompts: Token ids; equal ones next to each other may be read once.
            how: Settings of sampling.
            starts: Tokens of each row's completion so far. They count in `max_completion_length`, and the row's stream
                goes on after as many numbers.
        """

    def update_weights(self, policy, version: int) -> None:  # noqa: B027
        """Hands the policy's weights over, unless the engine has this version; engines in this process share them.

        Args:
            policy: Causal LM.
            version: Number of its updates.
        """

    def forget_weights(self) -> None:  # noqa: B027
        """The policy may be another one now: the next `update_weights` hands it over."""
