"""Base classes of the trainer: construction, run state, checkpoints, prompts and evaluation."""
