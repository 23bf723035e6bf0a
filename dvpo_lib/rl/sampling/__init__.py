"""Sampling: answers and dialogues, by the built-in sampler or by another engine."""
