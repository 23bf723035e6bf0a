"""Losses, quantiles, advantage recursions, reward placement: pure functions of tensors."""
