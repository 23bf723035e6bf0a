"""Construction of a trainer: TRL's arguments, reward functions, networks, adapters and the accelerator."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import DistributedType
from torch import nn

from dvpo_lib.common.tables import frame_records, is_data_frame
from dvpo_lib.models.architectures import train_in_float32
from dvpo_lib.models.causal_lm import end_tokens, inner_model, position_limit
from dvpo_lib.models.q_critic import PerturbedPolicy
from dvpo_lib.rl.config import DVPOConfig
from dvpo_lib.rl.methods import METHODS, resolve_settings
from dvpo_lib.rl.rewards import RewardClassifier, function_names
from dvpo_lib.rl.sampling.engines import SamplingEngine
from dvpo_lib.rl.sampling.token_sampling import BuiltinSampler
from dvpo_lib.rl.sampling.transformers_samplers import ContinuousSampler, GenerateSampler
from dvpo_lib.rl.sampling.vllm_sampler import VllmSampler
from dvpo_lib.rl.trainer_base import networks
from dvpo_lib.rl.trainer_base.completion_table import CompletionTable
from dvpo_lib.rl.trainer_base.parallel.processes import Processes
from dvpo_lib.rl.trainer_base.parallel.sharding import shard_on_cpus
from dvpo_lib.rl.trainer_base.prompts import PromptChecks, PromptMeans, PromptStream
from dvpo_lib.rl.trainer_base.run_state import RunningTrainer

UNSUPPORTED = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class PreparedTrainer(RunningTrainer):
    """Everything around the loop.

    Args:
        model: Causal LM of `transformers` (trained in place), its name, or a model with adapters of `peft`.
        reward_funcs: Functions, async functions, sequence classifiers or names of these; one or a list. A reward is a
            number, a list of numbers (one for each token of the completion), or None if there is none.
        args: Settings; default: those of `DVPOConfig`.
        train_dataset: Records (a list, a data set, a data frame of pandas) with a column `prompt` (text or list of
            messages); every other column reaches the reward functions by name. Without length it needs `max_steps`.
        eval_dataset: The same, for `evaluate`; or several by name.
        processing_class: The tokenizer; default: the model's.
        reward_processing_classes: Tokenizers of the reward models.
        callbacks, optimizers: As in `transformers.Trainer`; `optimizers` are the policy's.
        peft_config: Adapters of `peft`, for the policy and, by `args.critic_peft`, for the critic.
        critic: A pretrained critic; default: a new one by `args.critic`.
        log_funcs: Reward functions by name that are logged and never learned from (the truth under noise).
        reply: (record, transcript so far) -> next turn of a user or a tool, None if the dialogue is over. It makes
            dialogues of completions (see `sample_dialogues`); only the policy's own tokens are learned from.
        accelerator: In place of the one that `args` describe.

    Attributes:
        actor: What answers prompts: the trained policy, or the base policy with logits perturbed by Q values.
        engine: What samples, by the settings.
        reference: Frozen copy of the initial policy; None without KL penalty, and if adapters are switched off instead.

    Raises:
        ValueError: If settings contradict each other, a record has no prompt, or there is no reward function.
    """

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs=None,
        args: DVPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        callbacks=None,
        optimizers=(None, None),
        peft_config=None,
        critic=None,
        log_funcs: dict[str, Callable] | None = None,
        reply: Callable | None = None,
        accelerator=None,
    ):
        if args is None:
            name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "") or "model"
            args = DVPOConfig(f"{Path(name).name}-DVPO")
        args = resolve_settings(args)
        self.method, self.group_size = METHODS[args.method], args.num_generations if METHODS[args.method].groups else 1
        if train_dataset is None:
            raise ValueError("`train_dataset` is required: records with a column 'prompt'")
        train_dataset, eval_dataset = (
            frame_records(data) if is_data_frame(data) else data for data in (train_dataset, eval_dataset)
        )
        model = networks.load_causal_lm(model, args)
        tokenizer = networks.load_tokenizer(model, args) if processing_class is None else processing_class
        networks.check_special_tokens(tokenizer, model)
        checks = PromptChecks(tokenizer, _longest_prompt(model, args), args.chat_template_kwargs)
        self.prompts = PromptStream(train_dataset, checks, args.seed, args.shuffle_dataset)
        self.prompt_means = PromptMeans()
        if self.prompts.size is None:
            if args.accelerator_config.dispatch_batches:
                raise ValueError("Iterable datasets require `dispatch_batches=False` (in accelerator_config)")
            args.dataloader_num_workers = 0
        if args.accelerator_config.dispatch_batches is None:
            args.accelerator_config.dispatch_batches = False  # records are no tensors: each process reads its own
        self._set_reward_funcs(reward_funcs, reward_processing_classes, args)
        self.log_funcs, self.reply = log_funcs or {}, reply
        self.ends = end_tokens(model, tokenizer)
        generation = getattr(inner_model(model), "generation_config", None)
        if len(self.ends) > 1 and generation is not None:
            generation.eos_token_id = list(self.ends)  # saved with the model; `transformers` resets its other settings
        self.engine = _sampling_engine(args)
        model = self._build_networks(model, critic, peft_config, args)
        config = model.config.get_text_config()
        coefficient = getattr(config, "router_aux_loss_coef", 0.0)
        args.router_aux_loss_coef = coefficient if args.router_aux_loss_coef is None else args.router_aux_loss_coef
        self.aux_loss_enabled = hasattr(config, "output_router_logits") and args.router_aux_loss_coef != 0.0
        if not self.aux_loss_enabled:
            args.router_aux_loss_coef = 0.0
        self._metrics = {"train": defaultdict(list)}
        self.table = CompletionTable(args.generation_batch_size)
        self._warned_of_missing, self._given_accelerator, self._model_to_train = False, accelerator, model
        super().__init__(
            model,
            args,
            data_collator=list,  # records as they are
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        for network in (self.reference, self.critic, self.target_critic):
            if network is not None and not self.is_fsdp_enabled:  # shards move by themselves
                network.to(self.accelerator.device)
        for network in (self.model, self.critic, self.reference, self.target_critic):
            if network is not None:
                self.processes.copy_from_main(network)  # heads and adapters may come from global generators
        self._enable_checkpointing()
        self.trains_policy, self.actor = True, self.model
        if self.method.offline and args.extraction == "perturbed":
            self.trains_policy, self.actor = False, PerturbedPolicy(self.model, self.critic, args.perturbation)

    def _set_reward_funcs(self, funcs, tokenizers, args: DVPOConfig) -> None:
        """Loads reward models and names all reward functions.

        Raises:
            ValueError: If there are none, or tokenizers or weights do not match them.
        """
        funcs = [] if funcs is None else list(funcs) if isinstance(funcs, list | tuple) else [funcs]
        if not funcs:
            raise ValueError("No reward source provided: pass `reward_funcs`, one function or several")
        tokenizers = tokenizers if isinstance(tokenizers, list | tuple) else [tokenizers]
        tokenizers = [None] * len(funcs) if tokenizers == [None] else list(tokenizers)
        for name, values in (("reward_processing_classes", tokenizers), ("reward_weights", args.reward_weights)):
            if values is not None and len(values) != len(funcs):
                raise ValueError(f"the number of {name} ({len(values)}) must match that of reward_funcs ({len(funcs)})")
        for i, func in enumerate(funcs):
            if isinstance(func, str):
                func = networks.load_classifier(func, args)
            if isinstance(func, nn.Module):
                if tokenizers[i] is None:
                    tokenizers[i] = networks.load_tokenizer(func, args)
                networks.check_special_tokens(tokenizers[i], func)
                func.config.get_text_config().pad_token_id = tokenizers[i].pad_token_id  # scores are read before it
                func.to(args.device)
                template = args.chat_template_kwargs
                func = RewardClassifier(func, tokenizers[i], args.per_device_train_batch_size, template)
            if not callable(func):
                raise ValueError(f"reward_funcs[{i}] is no function but {str(func)[:80]!r}")
            funcs[i] = func
        self.reward_funcs, self.reward_func_names = funcs, function_names(funcs)
        self.reward_processing_classes = tokenizers

    def _build_networks(self, model: nn.Module, critic, peft_config, args: DVPOConfig) -> nn.Module:
        """Critic, reference and target critic, each from the policy as it came; returns the policy."""
        if peft_config is None:
            train_in_float32(model, args.bf16 or args.fp16)
        if self.method.critic is not None:
            own = peft_config or (model.active_peft_config if networks.is_peft_model(model) else None)
            own = own if args.critic_peft else None
            self.critic = networks.critic_of(model, critic, args.critic, args, own)
        if self.method.offline:
            self.target_critic = networks.frozen_copy(self.critic)
        self.has_reference = args.beta > 0 or self.method.offline
        if peft_config is not None:
            model = networks.with_adapters(model, peft_config, args)
        elif self.has_reference and not (networks.is_peft_model(model) and networks.adapters_change_nothing(model)):
            self.reference = networks.frozen_copy(model)
        if args.sync_ref_model and (self.reference is None or self.method.offline):
            raise ValueError(
                "sync_ref_model needs a reference policy that can move: beta above 0, no adapters, no offline method"
            )
        return model

    def _enable_checkpointing(self) -> None:
        """Gradient checkpointing of policy and critic; it acts in updates only (see `learning_mode_of`)."""
        if not self.args.activation_checkpointing:
            return
        arguments = self.args.activation_checkpointing_kwargs or {"use_reentrant": False}
        self.args.activation_checkpointing_kwargs = arguments
        for network in (self.model, getattr(self.critic, "backbone", None)):
            enable = getattr(network, "activation_checkpointing_enable", None)
            if enable is not None:
                enable(activation_checkpointing_kwargs=dict(arguments))
            if network is not None and networks.is_peft_model(network):
                network.enable_input_require_grads()

    def _get_dataloader(self, dataset, *arguments, **others):
        """As in `transformers.Trainer`, but a dataset without length has no workers: each would read all of it."""
        workers = self.args.dataloader_num_workers
        self.args.dataloader_num_workers = workers if hasattr(dataset, "__len__") else 0
        try:
            return super()._get_dataloader(dataset, *arguments, **others)
        finally:
            self.args.dataloader_num_workers = workers

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self._given_accelerator is not None:
            self.accelerator = self._given_accelerator
        accelerator = self.accelerator
        shard_on_cpus(accelerator, self.args.fsdp_plugin_args)
        self.is_fsdp_enabled = accelerator.distributed_type == DistributedType.FSDP
        if accelerator.distributed_type in UNSUPPORTED or self.is_fsdp_enabled and not accelerator.is_fsdp2:
            raise NotImplementedError(
                f"{accelerator.distributed_type.value} is not supported: use DDP, or FSDP version 2"
            )
        if self.is_fsdp_enabled and (self.method.offline or networks.is_peft_model(self._model_to_train)):
            raise NotImplementedError(
                "FSDP shards neither adapters nor the critics of offline methods: use DDP for them"
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched not in (1, accelerator.num_processes):
            raise RuntimeError(f"{launched} processes were launched, but Accelerate knows {accelerator.num_processes}")
        self.processes = Processes(accelerator.num_processes, accelerator.process_index, accelerator.device)


def _longest_prompt(model: nn.Module, args: DVPOConfig) -> int | None:
    """Tokens that a prompt may have beside a completion; None if the model's positions have no limit."""
    positions = position_limit(model)
    if positions is None:
        return None
    if positions <= args.max_completion_length:
        raise ValueError(
            f"max_completion_length ({args.max_completion_length}) leaves no room for a prompt in the model's "
            f"{positions} positions"
        )
    return positions - args.max_completion_length


def _sampling_engine(args: DVPOConfig) -> SamplingEngine:
    """The engine that the settings name."""
    kind = args.sampling_engine
    if kind == "builtin":
        return BuiltinSampler()
    if kind == "generate":
        return GenerateSampler(args.cache_implementation)
    if kind == "continuous":
        return ContinuousSampler(args.transformers_continuous_batching_config)
    return VllmSampler(
        args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}",
        args.vllm_weights_dir or Path(args.output_dir) / "vllm_weights",
        args.vllm_server_timeout,
        args.vllm_response_timeout,
        torch.bfloat16 if args.bf16 else None,
    )
