"""Generated problems with their rewards, tests of policies, published problems (files and hub) with their judge."""
