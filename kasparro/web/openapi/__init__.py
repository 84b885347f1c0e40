"""Endpoints described once: their parameters, pages, and OpenAPI document."""
