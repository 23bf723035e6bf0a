"""Statistics, figures, tables, metrics and sentences of finished runs."""
