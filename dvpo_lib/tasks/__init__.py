"""Generated problems with their rewards, tests of policies, published problems with their judge."""
