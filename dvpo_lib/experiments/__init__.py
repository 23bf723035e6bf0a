"""Runs as data, their store, plans and recipes, and studies: critics, responses, noise effects, real outcomes."""
