"""Data that several layers share: records, batches, payloads, field profiles."""
