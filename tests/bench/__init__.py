"""Benchmarks: ratios of Kasparro to the bare thing beneath it, measured side by side in one invocation."""
