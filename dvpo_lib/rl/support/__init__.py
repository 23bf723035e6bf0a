"""Set-up, checkpoints, prompts and logs around the trainer's loop."""
