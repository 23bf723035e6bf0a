"""Policies, critics, Q critics, and the training of critics on logs."""
