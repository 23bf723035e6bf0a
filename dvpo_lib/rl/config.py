"""Settings of a training run: the arguments of the trainer (`DVPOConfig`)."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from dvpo_lib.common.setting_checks import parsed_setting, setting_choices, setting_types, validated_setting
from dvpo_lib.common.tables import short_repr
from dvpo_lib.functional import advantages as adv
from dvpo_lib.models.critic import CriticSettings
from dvpo_lib.rl.sampling.engines import SamplingCuts

COUNTS = ("logging_steps", "save_steps", "eval_steps", "warmup_steps", "num_train_epochs")  # finite
# (name, smallest, largest), both allowed; settings in ABOVE_ZERO exclude 0.
BOUNDS = (
    ("num_generations", 1, None),
    ("num_iterations", 1, None),
    ("max_completion_length", 1, None),
    ("temperature", 0, None),
    ("top_p", 0, 1),
    ("beta", 0, None),
    ("epsilon", 0, None),
    ("epsilon_high", 0, None),
    ("delta", 0, None),
    ("ref_model_sync_steps", 1, None),
    ("ref_model_mixup_alpha", 0, 1),
    ("entropy_coef", 0, None),
    ("gamma", 0, 1),
    ("lam", 0, 1),
    ("lam_critic", 0, 1),
    ("lam_adaptive", 0, None),
    ("reward_clip", 0, 0.49),
    ("awr_temperature", 0, None),
    ("perturbation", 0, None),
    ("importance_sampling_cap", 0, None),
    ("sampling_batch_size", 1, None),
    ("vllm_server_timeout", 0, None),
    ("vllm_response_timeout", 0, None),
)
ABOVE_ZERO = (
    "temperature top_p epsilon epsilon_high delta gamma lam_adaptive awr_temperature vllm_response_timeout".split()
)
NESTED = {"critic": CriticSettings, "readout": adv.ReadoutSettings}
JSON_SETTINGS = ("model_init_kwargs", "generation_kwargs", "chat_template_kwargs")  # may be JSON texts, as `NESTED` may


@dataclass
class DVPOConfig(TrainingArguments):
    """Settings of a run: `transformers.TrainingArguments`, TRL's names for what TRL has, and the method's own.

    `per_device_train_batch_size` completions go through a network at once (a micro-batch),
    `gradient_accumulation_steps` micro-batches make an optimiser step, `steps_per_generation` micro-batches are sampled
    together (a generation batch, one iteration), and `num_iterations` passes are made over it. `max_steps` and
    `num_train_epochs` count optimiser steps and passes over the prompts.

    Example:
        >>> args = DVPOConfig(method="ppo", max_steps=10, learning_rate=3e-6, report_to="none")
        >>> args.method, args.lam
        ('ppo', 0.95)
    """

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "generation_kwargs",
        "chat_template_kwargs",
        "transformers_continuous_batching_config",
        "critic",
        "readout",
    ]

    # ---- other defaults than those of `transformers`, as in TRL ----
    learning_rate: float = 1e-6
    logging_steps: float = 10
    gradient_checkpointing: bool = True  # activations of an update are computed twice, which saves memory
    bf16: bool | None = None  # autocast of every forward; null: if the device is a GPU that can
    remove_unused_columns: bool | None = False  # reward functions see all columns

    # ---- the method ----
    method: str = "dvpo"  # a row of METHODS
    critic: CriticSettings | str | dict | None = None  # null: defaults of the kind needed, learning rate 5e-6
    critic_peft: bool = True  # with `peft_config` the critic's backbone gets adapters, too
    beta: float = 0.0  # weight of the KL penalty to the reference policy; 0: no reference policy
    kl_placement: Literal["reward", "loss"] | None = None  # of the penalty; null: as in the method's source
    kl_estimator: Literal["k1", "k2", "k3"] | None = None  # of the KL there; null: as in the method's source
    use_bias_correction_kl: bool = False  # KL in the loss times the policy ratio: k3's gradient is then that of the KL
    sync_ref_model: bool = False  # the reference policy follows the policy (TR-DPO) ...
    ref_model_sync_steps: int = 512  # ... after so many optimiser steps each ...
    ref_model_mixup_alpha: float = 0.6  # ... this share of the way
    gamma: float = 1.0  # discount
    lam: float = 0.95  # lambda of the actor's advantages
    lam_critic: float = 1.0  # lambda of the critic's targets
    lam_adaptive: float | None = None  # c of the length-adaptive lambda 1 - 1/(c * length)
    target: Literal["comonotone", "mixture"] = "comonotone"  # mixing of distributions in lambda-returns
    readout: adv.ReadoutSettings | str | dict | None = None  # from distribution to value; null: the mean
    whiten_advantages: bool = True  # to mean 0 and deviation 1 over the batch's tokens, for methods that do so
    worst_case: Literal["min_heads", "lower_tail"] = "min_heads"  # robust_ppo: smallest head, or lower-tail mean
    missing_rewards: Literal["drop", "bootstrap"] = "drop"  # left out, or replaced by the critic's expectation
    reward_clip: float = 0.1  # *_clip_reward: batch quantile at which rewards are clipped
    extraction: Literal["awr", "perturbed"] = "awr"  # offline methods: regression of the policy, or perturbed logits
    awr_temperature: float = 0.1  # of exp(A / temperature), in units of the return
    perturbation: float = 4.0  # weight of Q - V in the perturbed logits

    # ---- the policy's update ----
    num_iterations: int = 1  # passes over a generation batch
    epsilon: float = 0.2  # clip range of the policy ratio
    epsilon_high: float | None = None  # upper clip range; null: epsilon
    delta: float | None = None  # largest ratio at negative advantages, above 1 + epsilon_high; null: no limit
    importance_sampling_level: Literal["token", "sequence"] = "token"  # ratio of each token, or mean of its response
    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo"] | None = None  # TRL's names of averages; null: the method's
    entropy_coef: float = 0.0  # weight of the entropy bonus
    router_aux_loss_coef: float | None = None  # of a mixture of experts' load balance; null: the model's own
    mask_truncated_completions: bool = False  # responses without an end take no part in the loss
    disable_dropout: bool = True  # in updates; with dropout the first policy ratio is not 1
    # Denominator of the policy ratio: the sampler's log-probabilities, those of a forward like the update's, or the
    # latter with truncated importance weights. Null: sampler in float32, truncated in bf16, in fp16, with vLLM and with
    # continuous batching, recompute if the sampling distribution is cut (top_p ...).
    old_logprobs: Literal["sampler", "recompute", "truncated"] | None = None
    importance_sampling_cap: float = 2.0  # of the truncated weights pi_forward / pi_sampler

    # ---- sampling ----
    num_generations: int = 8  # completions a prompt, for methods with groups; other methods take one
    num_generations_eval: int | None = None  # the same in evaluation; null: num_generations
    max_completion_length: int = 256  # tokens, end of sequence included
    temperature: float = 1.0  # of sampling and of log-probabilities
    top_p: float = 1.0  # smallest set of tokens with this mass
    top_k: int = 0  # most likely tokens; 0: all
    min_p: float | None = None  # least share of the largest probability
    repetition_penalty: float = 1.0  # of tokens that stand in the text already
    generation_kwargs: dict | str | None = None  # the four above and `temperature` by `transformers`' names
    chat_template_kwargs: dict | str | None = None  # of the tokenizer's chat template
    generation_batch_size: int | None = None  # completions sampled together; null: by steps_per_generation
    steps_per_generation: int | None = None  # the same in micro-batches; null: gradient_accumulation_steps
    sampling_batch_size: int | None = None  # completions with a cache at the same time; null: the generation batch
    shuffle_dataset: bool | None = True  # a new order of prompts in each epoch

    # ---- sampling engine: the built-in sampler, unless one of these names another ----
    cache_implementation: str | None = None  # `generate` of `transformers` with this cache: dynamic, static ...
    use_transformers_continuous_batching: bool = False  # its `generate_batch`; rows share one random stream
    transformers_continuous_batching_config: dict | str | None = None  # of that
    use_vllm: bool = False  # a vLLM server
    vllm_mode: Literal["server"] = "server"  # in an environment of its own
    vllm_server_base_url: str | None = None  # its address, such as http://localhost:8000; null: host and port
    vllm_server_host: str = "0.0.0.0"
    vllm_server_port: int = 8000
    vllm_server_timeout: float = 240.0  # seconds to wait for a server that is starting
    vllm_response_timeout: float = 1800.0  # seconds for the completions of a batch, and for new weights
    vllm_weights_dir: str | None = None  # folder of new weights, which the server sees, too; null: in output_dir

    # ---- model and rewards ----
    model_init_kwargs: dict | str | None = None  # of `from_pretrained`, for models passed by name
    trust_remote_code: bool = False  # of `from_pretrained`
    rewards_on_main: bool = False  # the main process scores all rows: for functions unsafe to run in several processes
    reward_weights: list[float] | None = None  # of the reward functions; null: 1 each
    scale_rewards: str | None = None  # group methods: by deviation of the group, batch or none; null: the method's

    # ---- logs ----
    log_completions: bool = False  # a table of completions with every log, printed and under output_dir/completions
    num_completions_to_print: int | None = None  # rows of it; null: all

    def __post_init__(self):
        if self.bf16 is None:
            self.bf16 = not (self.fp16 or self.use_cpu) and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if (self.bf16 or several) and not torch.accelerator.is_available():
            self.use_cpu = True  # where it would run anyway; without the word processes would not find each other
        if isinstance(self.scale_rewards, bool):
            self.scale_rewards = "group" if self.scale_rewards else "none"
        for name in (*NESTED, *JSON_SETTINGS):
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, parsed_setting(name, value))
        self._check_values()
        own = {name: getattr(self, name) for name in NESTED}
        for name in own:  # the base class parses JSON, and knows no settings objects
            setattr(self, name, None)
        if self.activation_checkpointing is None:  # the newer name of the same setting
            self.activation_checkpointing = self.gradient_checkpointing
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        super().__post_init__()
        for name, kind in NESTED.items():
            setattr(self, name, validated_setting(name, kind | None, own[name]))
        self.readout = self.readout or adv.ReadoutSettings()
        self._apply_generation_kwargs()
        self._set_batch_sizes()

    @property
    def sampling_cuts(self) -> SamplingCuts:
        """Cuts of the sampling distribution."""
        return SamplingCuts(self.top_p, self.top_k, self.min_p, self.repetition_penalty)

    @property
    def sampling_engine(self) -> Literal["builtin", "generate", "continuous", "vllm"]:
        """What samples.

        Raises:
            ValueError: If the settings name several engines.
        """
        named = {
            "use_vllm": ("vllm", self.use_vllm),
            "use_transformers_continuous_batching": ("continuous", self.use_transformers_continuous_batching),
            "cache_implementation": ("generate", self.cache_implementation is not None),
        }
        chosen = {name: engine for name, (engine, is_set) in named.items() if is_set}
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)}: only one of them can sample")
        return next(iter(chosen.values()), "builtin")

    @property
    def steps_per_iteration(self) -> int:
        """Optimiser steps on one generation batch."""
        return self.num_iterations * self.steps_per_generation // self.gradient_accumulation_steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all settings, nested ones as dictionaries."""
        plain = super().to_dict()
        return plain | {name: asdict(getattr(self, name)) for name in NESTED if getattr(self, name) is not None}

    def _apply_generation_kwargs(self) -> None:
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        as_it_is = dict(do_sample=True, num_beams=1, num_return_sequences=1)  # other values: no sampling
        for name, value in (self.generation_kwargs or {}).items():
            if name in as_it_is and value == as_it_is[name]:
                continue
            if name not in names:
                raise ValueError(f"generation_kwargs: {name} is not supported; there are {', '.join(names)}")
            setattr(self, name, value)
        self._check_values()

    def _check_values(self) -> None:
        for name, low, high in BOUNDS:
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name}: {short_repr(value)} is not a number")
            if not (value >= low) or value == 0 and name in ABOVE_ZERO or high is not None and value > high:
                wanted = f"{'above' if name in ABOVE_ZERO else 'at least'} {low}"
                raise ValueError(f"{name}: {value} should be {wanted}{f' and at most {high}' if high else ''}")
        for name in COUNTS:
            if isinstance(value := getattr(self, name), float) and not math.isfinite(value):
                raise ValueError(f"{name}: {value} is no finite number")
        for name, choices in {**setting_choices(DVPOConfig), "scale_rewards": ("group", "batch", "none")}.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name}: {short_repr(value)} is none of {', '.join(map(str, choices))}")
        for name, kind in setting_types(DVPOConfig).items():
            if name not in {*NESTED, "scale_rewards"}:
                validated_setting(name, kind, getattr(self, name), strict=True)
        if self.auto_find_batch_size:
            raise ValueError("auto_find_batch_size would split groups: lower per_device_train_batch_size instead")

    def _set_batch_sizes(self) -> None:
        """Fills in the generation batch from the micro-batch, or the number of micro-batches from it."""
        micro_batch = self.per_device_train_batch_size * self.world_size
        size, steps = self.generation_batch_size, self.steps_per_generation
        if size is None:
            steps = steps or self.gradient_accumulation_steps
            size = micro_batch * steps
        elif size % micro_batch:
            raise ValueError(
                f"generation_batch_size ({size}) must be divisible by the global batch size ({micro_batch}), which is "
                "per_device_train_batch_size times the number of processes"
            )
        elif steps is not None and steps * micro_batch != size:
            raise ValueError(
                "generation_batch_size and steps_per_generation cannot be both set: "
                f"{size} completions are {size // micro_batch} micro-batches of {micro_batch}, not {steps}"
            )
        else:
            steps = size // micro_batch
        if steps % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation ({steps}) must be a multiple of gradient_accumulation_steps "
                f"({self.gradient_accumulation_steps}): an optimiser step learns from one generation batch"
            )
        self.generation_batch_size, self.steps_per_generation = size, steps


def changed_settings(args: DVPOConfig, **changes: Any) -> DVPOConfig:
    """A copy of the settings with some of them replaced, unchecked."""
    args = copy.copy(args)
    vars(args).update(changes)
    return args
