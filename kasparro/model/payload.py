"""Raw payloads: what each call upstream was answered, kept for a while so that it can be read again."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

# What can tell later why an answer was as it was: its kind, its age, its validators, the limits it names.
STORED_HEADERS = (
    "content-type",
    "content-encoding",
    "content-length",
    "date",
    "age",
    "cache-control",
    "etag",
    "last-modified",
    "retry-after",
    "ratelimit",
    "ratelimit-limit",
    "ratelimit-policy",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
    "cf-cache-status",
    "cf-ray",
)
HEADER_LIMIT = 500
# Of an answer that cannot be read again, this much is kept to be looked at.
FAILED_BODY_LIMIT = 1 << 20


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """What one call upstream was answered, and when.

    `path` and `parameters` are what was asked below the base URL; keys travel in request headers, of which
    none is kept. `status` is None where no answer began; `complete` tells whether `body` is all of it, as it
    was once decompressed. `received_at` is the time that its records were read with. Of its list the first
    `items_limit` items belong to what is fetched, None for all.
    """

    path: str
    parameters: Mapping[str, str]
    received_at: datetime
    status: int | None = None
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    complete: bool = False
    body: bytes = b""
    items_limit: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether it answers what was asked, as far as HTTP can tell."""
        return self.status == 200 and self.complete


class Retention(msgspec.Struct, frozen=True):
    """How long raw payloads and the rejects of a run are kept, and how many bytes of payloads; 0 for none."""

    age: timedelta = timedelta(days=7)
    payload_bytes: int = 512_000_000
