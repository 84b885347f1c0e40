"""What several modules need of HTTP headers."""

import re

HeaderList = list[tuple[bytes, bytes]]

# For responses that are read while they are made: nginx passes them on at once, and stores none of them.
UNBUFFERED = {"X-Accel-Buffering": "no"}

_ENTITY_TAGS = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether If-None-Match names this entity tag, or any, by the weak comparison (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == b"*" or etag in _ENTITY_TAGS.findall(if_none_match)
