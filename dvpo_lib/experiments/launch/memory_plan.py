"""Plan of a run's memory, from the model's configuration and the run's settings alone.

What stands all the time: weights, gradients, optimiser states, values of the batch. On top of it come the phases of an
iteration, one after the other; the largest decides. The networks are built without weights and run on fake tensors, so
that any architecture of `transformers` is counted by its own code. Sampling is that of the built-in sampler, unless a
vLLM server samples. Left out: what CUDA itself takes and what its allocator loses; 10 % of a card are kept for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dvpo_lib.experiments.launch.allocations import gradient_bytes, largest_layer_bytes, network_bytes
from dvpo_lib.experiments.launch.network_outlines import NetworkOutlines, make_fake, outline_networks
from dvpo_lib.experiments.launch.phase_memory import (
    critic_loss_bytes,
    critic_update_bytes,
    estimator_bytes,
    policy_update_bytes,
    sampling_bytes,
)
from dvpo_lib.models.q_critic import PerturbedPolicy
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS, resolve_settings

GIB = 2**30
USABLE = 0.9  # of a card


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU holds, in bytes.

    Attributes:
        parameters: Number of parameters of the policy and of the critic, and how many of both are trained.
        standing: By name; all the time.
        phases: {phase: {part: bytes}}; one phase at a time.
    """

    parameters: dict[str, int]
    standing: dict[str, int]
    phases: dict[str, dict[str, int]]

    @property
    def largest_phase(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.standing.values()) + sum(self.phases[self.largest_phase].values())

    def fits(self, memory_gb: float) -> bool:
        """Whether the peak leaves the reserve of a card of this size (1 GB = 2^30 bytes)."""
        return self.total <= USABLE * memory_gb * GIB


def plan_memory(
    config, args: DVPOConfig, prompt_length: int, gpus: int = 1, sharded: bool = False, peft_config=None
) -> MemoryPlan:
    """Plans the memory of each GPU of a run.

    Args:
        config: Of the model, by `load_model_config`.
        args: Settings of one process; `generation_batch_size` is its own share.
        prompt_length: Tokens of a prompt.
        gpus: Number of processes.
        sharded: FSDP: weights, gradients and optimiser states are spread over all processes.
        peft_config: Adapters of `peft`.
    """
    args = resolve_settings(args)
    outlines = outline_networks(config, args, peft_config)
    policy, critic = outlines.policy, outlines.critic
    learners = [network for network in (policy, critic) if network is not None]
    trained = [p for network in learners for p in network.parameters() if p.requires_grad]
    counts = {"policy": policy.num_parameters(), "critic": 0 if critic is None else _count(critic.parameters())}
    parts = gpus if sharded else 1
    standing = {
        "weights of the policy": network_bytes(policy) // parts,
        "weights of the reference": network_bytes(outlines.reference) // parts,
        "weights of the critic": (network_bytes(critic) + network_bytes(outlines.target_critic)) // parts,
        "gradients": sum(map(gradient_bytes, learners)) // parts,
        "optimiser states": optimizer_bytes(args, trained) // parts,
    }
    batch_tokens = args.generation_batch_size * args.max_completion_length
    (values, advantage_work), loss = estimator_bytes(args), critic_loss_bytes(args)
    standing["values of the batch"] = values * batch_tokens
    phases = _network_phases(outlines, args, prompt_length, sharded, loss)
    if advantage_work:
        phases["advantages"] = {"quantiles of the batch": advantage_work * batch_tokens}
    return MemoryPlan(
        {**counts, "trained": _count(trained)}, {name: size for name, size in standing.items() if size}, phases
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _network_phases(
    outlines: NetworkOutlines, args: DVPOConfig, prompt: int, sharded: bool, loss: tuple[int, int]
) -> dict[str, dict[str, int]]:
    """The phases in which networks run. The outlines become fake networks."""
    policy, critic, method = outlines.policy, outlines.critic, METHODS[args.method]
    perturbed = method.offline and args.extraction == "perturbed"
    rows = min(args.sampling_batch_size or args.generation_batch_size, args.generation_batch_size)
    prompts = math.ceil(rows / (args.num_generations if method.groups else 1))
    learners = [network for network in (policy, critic) if network is not None]
    if sharded and args.bf16:
        for network in learners:
            network.bfloat16()  # FSDP gathers weights in this precision
    with FakeTensorMode():
        for network in learners:
            make_fake(network)
            _enable_checkpointing(network, args)
        actor = PerturbedPolicy(policy, critic, args.perturbation) if perturbed else policy
        phases = {} if args.use_vllm else {"sampling": sampling_bytes(actor, args, rows, prompts, prompt)}
        if critic is not None:
            phases["critic update"] = critic_update_bytes(critic, args, prompt, *loss)
        if not perturbed:
            phases["policy update"] = policy_update_bytes(policy, args, prompt)
        if sharded:  # sampling and scoring gather all weights, updates layer by layer
            phases.setdefault("sampling", {})["gathered weights"] = network_bytes(policy)
            phases["policy update"]["gathered weights"] = _gathered_bytes(policy)
            if critic is not None:
                phases["scoring"] = {"gathered weights": network_bytes(critic)}
                phases["critic update"]["gathered weights"] = _gathered_bytes(critic)
    return phases


def optimizer_bytes(args: DVPOConfig, parameters: list[nn.Parameter]) -> int:
    """Bytes of the states that the run's optimiser keeps after its first step."""
    from transformers import Trainer

    shapes = nn.ParameterList(nn.Parameter(torch.empty(2, 8, dtype=p.dtype)) for p in parameters[:1])
    kind, arguments = Trainer.get_optimizer_cls_and_kwargs(args, shapes)
    optimizer = kind(shapes.parameters(), **arguments)
    for parameter in shapes:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    each = sum(x.nbytes for x in kept if x.numel() > 1) / sum(p.numel() for p in shapes)
    return round(each * sum(p.numel() for p in parameters))


def _enable_checkpointing(network: nn.Module, args: DVPOConfig) -> None:
    network = getattr(network, "backbone", network)
    enable = getattr(network, "activation_checkpointing_enable", None)
    if args.activation_checkpointing and enable is not None:
        enable(activation_checkpointing_kwargs=args.activation_checkpointing_kwargs or {"use_reentrant": False})
        if hasattr(network, "peft_config"):
            network.enable_input_require_grads()


def _gathered_bytes(network: nn.Module) -> int:
    """Two layers (one is fetched while the other computes) and all that belongs to no layer."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    layers = sum(network_bytes(layer) for blocks in lists for layer in blocks)
    return network_bytes(network) - layers + 2 * largest_layer_bytes(network)
