"""Sentences that notebooks compute from their tables."""
