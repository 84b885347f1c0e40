"""Assesses a source run against the source's earlier runs: drift, anomalies, freshness."""
