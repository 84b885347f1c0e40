"""What several modules need of HTTP headers."""

import re

HeaderList = list[tuple[bytes, bytes]]

# For responses that are read while they are made: nginx passes them on at once, and stores none of them.
UNBUFFERED = {"X-Accel-Buffering": "no"}

# An entity tag (RFC 9110, 8.8.3), whose last part may be the token of a data version.
_ENTITY_TAGS = re.compile(rb'(?:W/)?("([\x21\x23-\x7e\x80-\xff]*?)(?:-v[0-9a-f]{1,15}\.[0-9a-f]{12})?")')


def entity_tags(if_none_match: bytes) -> list[tuple[bytes, bytes]]:
    """The entity tags that If-None-Match names, for the weak comparison (RFC 9110, 13.1.2), each with what it
    says about the content, without the data version."""
    return _ENTITY_TAGS.findall(if_none_match)
