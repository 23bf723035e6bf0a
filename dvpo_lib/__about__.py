"""Version of the package, apart from `dvpo_lib/__init__.py`, which the run store hashes."""

__version__ = "0.2.0"
