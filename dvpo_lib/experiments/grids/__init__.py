"""Grids of runs: the tail-shaping ablation, tuning, and the studies of the evidence."""
