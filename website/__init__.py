"""The static site: `make site` builds it from docs/, docstrings and rendered notebooks; `make site-test` checks it."""
