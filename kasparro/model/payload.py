"""Raw payloads: the responses of upstreams, stored for a while so that a run can be replayed."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

# The response headers that can explain a response later: type, age, validators and rate limits.
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
# How much of the body of a failed response is stored, for people to look at.
FAILED_BODY_LIMIT = 1 << 20


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """The response to one upstream call.

    `path` and `parameters` are the request below the base URL. Request headers, which contain keys, are not
    stored. `status` is None if no response arrived. `body` is decompressed, and `complete` says whether it is
    whole. `received_at` is the time of fetching that its records use. Only the first `items_limit` items of
    the list were wanted; None: all.
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
        """Whether the call succeeded, according to HTTP."""
        return self.status == 200 and self.complete


class Retention(msgspec.Struct, frozen=True):
    """How long payloads and rejects are stored, and how many bytes of payloads; 0: no payloads."""

    age: timedelta = timedelta(days=7)
    payload_bytes: int = 512_000_000
