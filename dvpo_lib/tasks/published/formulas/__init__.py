"""Formulas: read whole from any spelling, given a meaning, and compared by it. Only `numbers` and above need SymPy."""
