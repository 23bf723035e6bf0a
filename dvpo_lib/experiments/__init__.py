"""Runs as data, the store that keeps them, and the studies of the notebooks."""
