"""Settings trees, JSON lines, seeds, generated passages of text, durable files, processes."""
