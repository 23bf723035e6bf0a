"""Formulas: parsed from any spelling, evaluated, and compared by value. Only `numbers` and above need SymPy."""
