"""What is known of one request beside what it asks for: its id, its time, and what its client can take."""

import itertools
import os
import re
import time

from kasparro.web.cache.response import HeaderList
from kasparro.web.http.encodings import IDENTITY, chosen

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

# Random for this process, then counted: as unique as a random one of that length, at a tenth of the price.
_PREFIX = os.urandom(8).hex().encode()
_COUNT = itertools.count(int.from_bytes(os.urandom(4)))


def request_id(told: bytes | None = None) -> bytes:
    """The id of a request: what its client told, if that is fit for logs and headers, or a new one."""
    if told is not None and _REQUEST_ID.fullmatch(told):
        return told
    return b"%b%016x" % (_PREFIX, next(_COUNT))


# How an answer came about: it was kept, it is kept from now on, or nothing like it is.
HIT, MISS, NONE = "hit", "miss", "none"
# The route of what none of the service's paths is.
OTHER = "other"


class RequestContext:
    """What handlers may know of a request and add to it.

    `key` is the name of its API key; `database_s`, what they waited for the database; `route`, which of the
    service's paths it was; `slow`, whether what it asks for may take long; `current`, whether what was read
    is sure to be of the newest version; `added`, headers of whatever answer it gets.
    """

    __slots__ = (
        "added",
        "cache",
        "current",
        "database_s",
        "encoding",
        "if_none_match",
        "key",
        "request_id",
        "route",
        "slow",
        "started",
    )

    def __init__(
        self, headers: dict[bytes, bytes], added: HeaderList | None = None, started: float | None = None
    ) -> None:
        self.request_id = request_id(headers.get(b"x-request-id")).decode()
        self.started = time.perf_counter() if started is None else started
        self.added = added or []
        accepted = headers.get(b"accept-encoding")
        self.encoding = IDENTITY if accepted is None else chosen(accepted)
        self.if_none_match = headers.get(b"if-none-match")
        self.key: str | None = None
        self.database_s: float | None = None
        self.route = OTHER
        self.cache = NONE
        self.current = True
        self.slow = False

    def server_timing(self) -> bytes:
        """How long it took so far, as the header of that name tells it (milliseconds)."""
        told = b"total;dur=%.2f" % ((time.perf_counter() - self.started) * 1e3)
        if self.cache != NONE:
            told += b", cache;desc=" + self.cache.encode()
        if self.database_s is not None:
            told += b", db;dur=%.2f" % (self.database_s * 1e3)
        return told
