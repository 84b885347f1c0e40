"""Rendered responses, kept per data version."""
