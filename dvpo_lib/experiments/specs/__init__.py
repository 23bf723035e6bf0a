"""Runs of the store as data: one module a kind, because the store hashes code by module."""
