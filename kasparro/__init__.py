"""Kasparro: one self-hosted API for crypto market data."""

from importlib.metadata import version

__version__ = version("kasparro")
