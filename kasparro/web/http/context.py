"""The context of a request: its id, start and encoding, and what handlers record for headers and metrics."""

import itertools
import os
import re
import time

from starlette.types import Scope

from kasparro.web.http.encodings import IDENTITY, choose_encoding
from kasparro.web.http.headers import HeaderList

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

# Random per process, then counted: as unique as a random id of that length, at a tenth of its cost.
_PREFIX = os.urandom(8).hex().encode()
_COUNT = itertools.count(int.from_bytes(os.urandom(4)))


def request_id(proposed: bytes | None = None) -> bytes:
    """The client's X-Request-ID if it is fit for logs and headers, otherwise a new id."""
    if proposed is not None and _REQUEST_ID.fullmatch(proposed):
        return proposed
    return b"%b%016x" % (_PREFIX, next(_COUNT))


# Clients of other APIs send their keys as parameters, such as x_cg_demo_api_key.
_CREDENTIAL = re.compile(r"([^&=]*(?:key|token|secret|passw)[^&=]*=)[^&]+", re.IGNORECASE)


def shown_query(scope: Scope) -> str:
    """The query string for a log line: the values of parameters that may be secrets are replaced."""
    return _CREDENTIAL.sub(r"\1***", scope["query_string"].decode("latin-1"))


# What the response cache did: it had the response, it did not have it, or it was not asked.
HIT, MISS, NONE = "hit", "miss", "none"
# The route of a path that the service does not have.
OTHER = "other"


class RequestContext:
    """What is known about one request.

    `key_name` is the name of its API key. `route` is the template of its path. Handlers add `database_s`, the
    time with a database connection; `at_least`, the data version that the response must have, because the
    client has seen it; `oldest_version` and `data_version`, between which the data version of the response
    is; `next_cursor`, that of the page after the response, if the request had a cursor itself;
    `postgres_pid`, the server process that worked for it; `slow`, whether its query may take long;
    `fresh`, whether the data that was read is certainly of the newest version; `duration_s`, the time that
    the metrics count if it is not the whole time. `extra_headers` are added to every response.
    """

    __slots__ = (
        "at_least",
        "cache",
        "data_version",
        "database_s",
        "duration_s",
        "encoding",
        "extra_headers",
        "fresh",
        "if_none_match",
        "key_name",
        "next_cursor",
        "oldest_version",
        "postgres_pid",
        "request_id",
        "route",
        "slow",
        "started",
    )

    def __init__(
        self,
        headers: dict[bytes, bytes],
        extra_headers: HeaderList | None = None,
        started: float | None = None,
        id_: bytes | None = None,
    ) -> None:
        self.request_id = (id_ or request_id()).decode()
        self.started = time.perf_counter() if started is None else started
        self.extra_headers = extra_headers or []
        accepted = headers.get(b"accept-encoding")
        self.encoding = IDENTITY if accepted is None else choose_encoding(accepted)
        self.if_none_match = headers.get(b"if-none-match")
        self.key_name: str | None = None
        self.database_s: float | None = None
        self.postgres_pid: int | None = None
        self.duration_s: float | None = None
        self.route = OTHER
        self.cache = NONE
        self.fresh = True
        self.at_least = 0
        self.next_cursor: str | None = None
        self.oldest_version: int | None = None
        self.data_version: int | None = None
        self.slow = False

    def database_fields(self) -> dict[str, int]:
        """The server process of the request's query for a log line; the log of PostgreSQL has its number."""
        return {} if self.postgres_pid is None else {"postgres_pid": self.postgres_pid}

    def server_timing(self) -> bytes:
        """The value of the Server-Timing header (milliseconds)."""
        value = b"total;dur=%.2f" % ((time.perf_counter() - self.started) * 1e3)
        if self.cache != NONE:
            value += b", cache;desc=" + self.cache.encode()
        if self.database_s is not None:
            value += b", db;dur=%.2f" % (self.database_s * 1e3)
        return value


def context_of(scope: Scope) -> RequestContext:
    """The context that the middleware gave this request."""
    context: RequestContext = scope["kasparro.context"]
    return context
