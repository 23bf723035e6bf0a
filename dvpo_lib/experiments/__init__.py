"""Runs as data, the store that keeps them, and studies: critics, example responses, noise effects, real outcomes."""
