"""Losses, targets and read-outs on return distributions whose truth is known (notebook 00)."""
