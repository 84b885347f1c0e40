"""CSV archives: from any file to records."""

from kasparro.sources.archives.source import Archives

__all__ = ["Archives"]
