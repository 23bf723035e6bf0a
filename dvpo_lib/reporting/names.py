"""Display names of methods, noises, roles, test sets and columns."""

from __future__ import annotations

BASE = "base"  # in rows of runs, in place of a method: the test of the base policy
BY_KIND = "greedy: "  # begins the metrics that say how greedy answers to one kind of question are
DISPLAY_NAMES = {
    "dvpo": "DVPO",
    "dvpo_winsorised": "DVPO winsorised",
    "ppo": "PPO",
    "ppo_clip_reward": "PPO, clipped reward",
    "robust_ppo": "Robust PPO",
    "grpo": "GRPO",
    "grpo_clip_reward": "GRPO, clipped reward",
    "dr_grpo": "Dr. GRPO",
    "reinforce_pp": "REINFORCE++",
    "cql": "CQL",
    "rfqi": "RFQI",
    "none": "no noise",
    "flip": "flipped labels",
    "false_positive": "false positives",
    "false_negative": "false negatives",
    "spikes": "heavy-tailed spikes",
    "prompt_spikes": "prompt-dependent spikes",
    "missing": "missing rewards",
    "length_bias": "length bias",
    "late_flips": "late flips",
    "majority_vote": "majority vote",
    "reward_model": "reward model",
    "ID": "in distribution (ID)",
    "OOD": "out of distribution (OOD)",
    "transfer": "untrained families (transfer)",
    "ALL": "all test sets",
    "math_id": "math",
    "math_ood": "math, longer",
    "science_id": "science",
    "science_ood": "science, longer",
    "dialogue_id": "dialogue",
    "dialogue_ood": "dialogue, longer",
    "slots_id": "slots",
    "slots_ood": "slots, unseen services",
    "other_slots_id": "slots, other domains",
    "other_slots_ood": "slots, other domains, unseen services",
    "gsm8k_id": "GSM8K",
    "gsm8k_ood": "GSM8K, longer",
    "mmlu_id": "MMLU STEM",
    "mmlu_ood": "MMLU STEM, longer",
    "tcr": "TCR",
    "acr": "ACR",
    "gcr": "GCR",
    "sampled": "sampled",
    "pass_at_k": "pass@k",
    "greedy": "greedy",
    "reward_true": "true reward",
    "reward_noisy": "reward as received",
    "kl": "KL to the base (nats/token)",
    "entropy": "entropy (nats/token)",
    "length": "response length (tokens)",
    "clip_fraction": "clipped tokens (share)",
    "approx_kl": "KL of one update (nats/token)",
    "explained_variance": "explained variance of the critic",
    "critic/lower_tail": "width of the lower tail",
    "critic/upper_tail": "width of the upper tail",
    "policy_grad_norm": "policy gradient norm",
    "critic_grad_norm": "critic gradient norm",
    "flat_groups": "groups without spread (share)",
    "rollouts": "scored rollouts",
    "iteration": "iteration",
    "layers": "layers of the critic",
    "pretraining": "pretraining rollouts",
}


TAIL_COLUMNS = ("critic/lower_tail", "critic/upper_tail")  # widths that the trainer logs
# Rows of the ablation in the paper's order; those that leave a term out follow.
ABLATION_ROWS = ("core", "+ consistency", "+ tail calibration", "+ mean shift", "+ tail shape and curvature")


# Variants of the study of denoised rewards, whose names give a statistic to what has none.
VARIANT_PARTS = {"scalar, median": "scalar critic's value", "scalar, prompt mean": "prompt's mean reward"}


def display_name(name: str) -> str:
    """The display name of a method, noise, role, suite, variant or column; unknown names lose their underscores."""
    if name in DISPLAY_NAMES:
        return DISPLAY_NAMES[name]
    for part, shown in VARIANT_PARTS.items():
        name = name.replace(part, shown)
    return name.replace("_", " ")


def setting_text(value) -> str:
    """A setting as written in params.yaml: 5e-05 -> "5e-5", 1.0 -> "1.0", None -> "null", True -> "true"."""
    if not isinstance(value, float):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if value == 0 or 1e-3 < abs(value) < 1e4:
        return str(float(value))
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
