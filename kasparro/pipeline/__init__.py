"""Runs: when they start, how they load the sources, and what their outcome is."""
