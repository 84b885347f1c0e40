"""Rendered answers: a body with its entity tag, in the codings that were asked for, ready to send."""

import asyncio
import re
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeAlias

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kasparro.web.http.encodings import IDENTITY, SMALL_BYTES, compress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HeaderList = list[tuple[bytes, bytes]]
# Makes an answer, and says whether it may be kept.
Render: TypeAlias = "Callable[[], Awaitable[tuple[CachedResponse, bool]]]"

# What an answer costs beside its bytes, those of its headers and of how it is asked for: about this much.
OVERHEAD_BYTES = 2_500

_TAGS = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_NOT_KEPT = frozenset({b"content-length", b"content-type"})


class EncodedBody:
    """One coding of an answer: the headers of its 200, those of its 304, and its body as a message."""

    __slots__ = ("body", "etag", "headers", "message", "route", "unchanged")

    def __init__(self, answer: "CachedResponse", body: bytes, coding: str) -> None:
        tag = answer.tag if coding == IDENTITY else f"{answer.tag}-{coding}"
        self.route = answer.route
        self.etag = f'"{tag}"'.encode()
        self.body = body
        self.message: Message = {"type": "http.response.body", "body": body}
        # What a 304 repeats (RFC 9110, 15.4.5).
        self.unchanged: HeaderList = [(b"etag", self.etag), *answer.headers]
        coded = [] if coding == IDENTITY else [(b"content-encoding", coding.encode())]
        self.headers: HeaderList = [
            (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(body)),
            *coded,
            *self.unchanged,
        ]


class CachedResponse:
    """A 200 of one route to one query. Its tag is of its bytes: where a new version of the data leaves them
    as they are, clients need not fetch them again.
    """

    __slots__ = (
        "_coding",
        "bytes",
        "content_type",
        "headers",
        "kept_bytes",
        "key",
        "route",
        "spellings",
        "tag",
        "variants",
    )

    def __init__(self, response: Response, route: str, cache_control: str, vary: str) -> None:
        headers = response.raw_headers
        self.route = route
        self.content_type = dict(headers)[b"content-type"]
        self.headers: HeaderList = [
            *(one for one in headers if one[0] not in _NOT_KEPT),
            (b"cache-control", cache_control.encode()),
            (b"vary", vary.encode()),
        ]
        body = bytes(response.body)
        self.tag = blake2b(body, digest_size=12).hexdigest()
        self._coding: dict[str, asyncio.Task[EncodedBody]] = {}
        self.variants = {IDENTITY: EncodedBody(self, body, IDENTITY)}
        # Of the cache that keeps it.
        self.key = (b"", b"")
        self.spellings: list[tuple[bytes, bytes]] = []
        told = sum(len(name) + len(value) for name, value in headers)
        self.bytes = len(body) + told + OVERHEAD_BYTES
        self.kept_bytes = 0

    async def variant(self, coding: str) -> EncodedBody:
        """The answer in a coding, made once, in a thread; a small one stays as it is."""
        found = self.variants.get(coding)
        if found is None:
            making = self._coding.get(coding)
            if making is None:
                making = self._coding[coding] = asyncio.create_task(self._make(coding))
            # Whoever stops waiting leaves the others their answer.
            found = await asyncio.shield(making)
        return found

    async def _make(self, coding: str) -> EncodedBody:
        plain = self.variants[IDENTITY]
        try:
            if len(plain.body) < SMALL_BYTES:
                made = plain
            else:
                made = EncodedBody(self, await asyncio.to_thread(compress, plain.body, coding), coding)
                self.bytes += len(made.body)
            self.variants[coding] = made
        finally:
            del self._coding[coding]
        return made


class PreparedResponse:
    """The ASGI response of one variant to one request."""

    def __init__(self, variant: EncodedBody, if_none_match: bytes | None) -> None:
        self._variant = variant
        self._unchanged = if_none_match is not None and matches(if_none_match, variant.etag)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        for message in (
            ({"type": "http.response.start", "status": 304, "headers": self._variant.unchanged}, NO_BODY)
            if self._unchanged
            else (
                {"type": "http.response.start", "status": 200, "headers": self._variant.headers},
                self._variant.message,
            )
        ):
            await send(message)


NO_BODY: Message = {"type": "http.response.body", "body": b""}


def matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether If-None-Match names this tag, or any: the comparison is the weak one (RFC 9110, 13.1.2)."""
    return if_none_match.strip() == b"*" or etag in _TAGS.findall(if_none_match)
