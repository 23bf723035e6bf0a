"""Speed and memory: `make bench`, or `python -m benchmarks --help`. No stage of the chain depends on it."""
