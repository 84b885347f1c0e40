"""Endpoints, their parameters and pages, and the OpenAPI document."""
