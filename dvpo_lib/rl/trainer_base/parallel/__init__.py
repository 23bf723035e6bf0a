"""Several processes: what they exchange, sharded weights, shared scoring."""
