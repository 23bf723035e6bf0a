"""Statistics, figures, tables and sentences for the notebooks."""
