"""Judges what a source run brought: drift, anomalies, freshness."""
