"""Base classes of the trainer: construction, run state, checkpoints, prompts, sampling and evaluation."""
