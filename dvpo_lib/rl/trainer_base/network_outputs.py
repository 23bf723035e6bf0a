"""Outputs of a run's networks on sampled tokens, and the networks that follow others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from dvpo_lib.functional.final_states import split_final
from dvpo_lib.functional.q_losses import QValues
from dvpo_lib.models.critic import monotone_outputs
from dvpo_lib.models.modes import inference_mode_of
from dvpo_lib.models.policy import token_logprobs
from dvpo_lib.models.tokens import Tokens
from dvpo_lib.rl.methods import Method
from dvpo_lib.rl.trainer_base.checkpoints import CheckpointedTrainer
from dvpo_lib.rl.trainer_base.parallel.sharding import whole_weights


class ScoringTrainer(CheckpointedTrainer):
    """What a run's networks say about tokens, a micro-batch at a time, with whole weights where they are sharded.

    Attributes:
        method: The row of METHODS.
        actor: What answers prompts.
        has_reference: Whether there is a reference policy.
    """

    method: Method
    actor: nn.Module
    has_reference: bool

    @property
    def policy(self) -> nn.Module:
        """The policy that is trained."""
        return self.model

    @contextmanager
    def scoring_modes(self) -> Iterator[None]:
        """Eval mode of all networks, no gradients."""
        with torch.no_grad(), inference_mode_of(self.model, self.critic, self.reference, self.target_critic):
            yield

    @contextmanager
    def reference_policy(self) -> Iterator[nn.Module]:
        """The reference: a frozen copy, or the policy with its adapters switched off."""
        if self.reference is not None:
            yield self.reference
        else:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                yield self.model

    def reference_logprobs(self, tokens: Tokens) -> Tensor | None:
        """(B, T) log-probabilities under the reference policy; None without one."""
        if not self.has_reference:
            return None
        with self.reference_policy() as policy:
            return self.logprobs_of(policy, tokens)

    def behaviour_policy(self):
        """Context of the policy that rollouts come from: the actor, or the reference for offline methods."""
        return self.reference_policy() if self.method.offline else nullcontext(self.actor)

    def logprobs_of(self, policy, tokens: Tokens) -> Tensor:
        """(B, T) log-probabilities of the completions' tokens, by the forward pass that updates use."""
        with whole_weights(policy):
            return self.by_micro_batch(lambda part: token_logprobs(policy, part, self.args.temperature)[0], tokens)

    def values_of(self, critic, tokens: Tokens) -> tuple[Tensor | QValues, Tensor | None]:
        """(B, T, N, M) outputs of a critic, each head monotone, or its `QValues`; and (B, N, M) of final states."""
        final = self.args.critic.final_state
        with whole_weights(critic, self.read_by(critic)):
            read = tokens.with_final_state() if final else tokens
            values = self.by_micro_batch(lambda part: monotone_outputs(critic, part), read)
        return split_final(values, tokens.mask) if final else (values, None)

    def read_by(self, critic) -> nn.Module | None:
        """The policy, if a critic without a backbone of its own reads its hidden states."""
        return self.policy if critic is not None and critic.backbone is None else None

    def by_micro_batch(self, function: Callable[[Tokens], Tensor | QValues], tokens: Tokens):
        """(B, T, ...) outputs of a function of tokens, computed a micro-batch at a time; 0 beyond a row's end."""
        every, size = torch.arange(len(tokens), device=tokens.mask.device), self.args.per_device_train_batch_size
        if len(every) <= size:
            with self.accelerator.autocast():
                return function(tokens)
        whole: dict[str, Tensor] = {}
        for rows in tokens.by_length(every).split(size):
            with self.accelerator.autocast():
                found = function(tokens.rows(rows))
            named = found if isinstance(found, QValues) else None
            for name, x in (vars(found) if named is not None else {"": found}).items():
                if x is None:
                    continue
                if name not in whole:
                    whole[name] = x.new_zeros(tokens.mask.shape + x.shape[2:])
                whole[name][rows, : x.shape[1]] = x
        return type(named)(**{name: whole.get(name) for name in vars(named)}) if named is not None else whole[""]

    # ---- networks that follow others ----

    @torch.no_grad()
    def update_target_critic(self) -> None:
        """Moves the target critic a share `target_rate` of the way to the critic."""
        for target, source in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
            target.lerp_(source, self.args.critic.q.target_rate)

    @torch.no_grad()
    def update_reference(self) -> None:
        """Moves the reference a share `ref_model_mixup_alpha` of the way to the policy."""
        self.reference_fingerprint()  # of the first reference, while it is there
        policy = self.accelerator.unwrap_model(self.model)
        for target, source in zip(self.reference.parameters(), policy.parameters(), strict=True):
            target.lerp_(source, self.args.ref_model_mixup_alpha)

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference policy by TRL's name."""
        return self.reference
