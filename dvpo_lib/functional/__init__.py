"""Losses, quantiles, advantages: pure functions of tensors."""
