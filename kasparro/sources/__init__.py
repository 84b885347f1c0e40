"""The sources of records: one module each, and what they share."""
