"""Noisy rewards: corruptions, pseudo-labels, a trained reward model."""
