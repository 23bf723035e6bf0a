"""Suites of published problems: the splits that the chain trains and tests on, read from files or from the hub."""
