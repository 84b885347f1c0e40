"""Benchmarks: Kasparro compared with the layer beneath it, measured in one invocation."""
