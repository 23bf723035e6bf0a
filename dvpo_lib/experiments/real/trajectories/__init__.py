"""Critics on an agent's conversations with users and tools (tau-bench), cross-validated by task."""
