"""Rendered responses: a body with its entity tag, in every encoding that clients requested."""

import asyncio
from hashlib import sha256

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from kasparro.store.version_tokens import TOKENS, VersionTokens
from kasparro.web.http.encodings import IDENTITY, MEDIUM_BYTES, SMALL_BYTES, compress
from kasparro.web.http.headers import HeaderList, entity_tags

# Memory of an entry in addition to its body: objects, headers and key. An estimate.
OVERHEAD_BYTES = 2_500

NO_BODY: Message = {"type": "http.response.body", "body": b""}
_SET_BY_ENCODING = frozenset({b"content-length", b"content-type"})


class EncodedBody:
    """A response in one encoding, ready to send."""

    __slots__ = (
        "_headers",
        "_headers_304",
        "_message",
        "_of_content",
        "_tokens",
        "_version",
        "body",
        "etag",
        "route",
    )

    def __init__(self, response: "CachedResponse", body: bytes, encoding: str) -> None:
        of_content = response.tag if encoding == IDENTITY else f"{response.tag}-{encoding}"
        self.route = response.route
        self.etag = f'"{of_content}{response.token}"'.encode()
        self.body = body
        # Not the response itself: in a cycle, the body would stay in memory until the garbage collector finds
        # it, which takes a tenth of a request.
        self._tokens, self._version = response.tokens, response.version
        self._of_content = of_content.encode()
        self._message: Message = {"type": "http.response.body", "body": body}
        # A 304 repeats these (RFC 9110, 15.4.5).
        self._headers_304: HeaderList = [(b"etag", self.etag), *response.headers]
        self._headers: HeaderList = [
            (b"content-type", response.content_type),
            (b"content-length", b"%d" % len(body)),
            *([] if encoding == IDENTITY else [(b"content-encoding", encoding.encode())]),
            *self._headers_304,
        ]

    def reply(self, if_none_match: bytes | None) -> tuple[int, HeaderList, Message]:
        """Status, headers and body: a 304 if If-None-Match names this content, otherwise a 200.

        The tag may be of an earlier data version. The 304 then has that tag, because a cache updates only the
        response whose tag is in the 304 (RFC 9111, 4.3.4).
        """
        if if_none_match is None:
            return 200, self._headers, self._message
        if if_none_match == self.etag or if_none_match.strip() == b"*":
            return 304, self._headers_304, NO_BODY
        named = [tag for tag, content in entity_tags(if_none_match) if content == self._of_content][:TOKENS]
        tags = {tag: 0 if self._tokens is None else self._tokens.newest(tag) for tag in named}
        # A version that is newer than that of the response is lost. Its client must get the tag of this one.
        known = [tag for tag in named if tags[tag] <= self._version]
        if not known:
            return 200, self._headers, self._message
        tag = self.etag if self.etag in known else max(known, key=tags.__getitem__)
        return 304, [(b"etag", tag), *self._headers_304[1:]], NO_BODY


class CachedResponse:
    """A 200 of one route to one query.

    The entity tag has a hash of the body, and a token of the newest data version that the body may show. If a
    new data version leaves the body as it was, clients need not fetch it again, because only the hashes are
    compared. The token shows to every process which version the client has seen.
    """

    __slots__ = (
        "_encoding",
        "aliases",
        "bytes",
        "content_type",
        "counted_bytes",
        "encodings",
        "headers",
        "key",
        "next_cursor",
        "oldest_version",
        "route",
        "tag",
        "token",
        "tokens",
        "version",
    )

    def __init__(
        self,
        response: Response,
        route: str,
        cache_control: str,
        vary: str,
        *,
        versions: tuple[int, int] = (0, 0),
        tokens: VersionTokens | None = None,
        next_cursor: str | None = None,
    ) -> None:
        headers = response.raw_headers
        self.route = route
        self.content_type = dict(headers)[b"content-type"]
        self.headers: HeaderList = [
            *(header for header in headers if header[0] not in _SET_BY_ENCODING),
            (b"cache-control", cache_control.encode()),
            (b"vary", vary.encode()),
        ]
        body = bytes(response.body)
        # Processors have instructions for this hash, so it takes a third of the time of BLAKE2.
        self.tag = sha256(body).hexdigest()[:24]
        # It shows a data version between these two; both are 0 if it shows none.
        self.oldest_version, self.version = versions
        self.tokens = tokens
        # Of a page that a client has reached by a cursor.
        self.next_cursor = next_cursor
        self.token = tokens.token(self.version) if tokens is not None and self.version else ""
        self._encoding: dict[str, asyncio.Task[EncodedBody]] = {}
        self.encodings = {IDENTITY: EncodedBody(self, body, IDENTITY)}
        # These four are for the cache: its key and aliases, the present size, and the size that it counted.
        self.key = (b"", b"")
        self.aliases: list[tuple[bytes, bytes]] = []
        header_bytes = sum(len(name) + len(value) for name, value in headers)
        self.bytes = len(body) + header_bytes + OVERHEAD_BYTES
        self.counted_bytes = 0

    async def encoded(self, encoding: str) -> EncodedBody:
        """The response in this encoding, compressed once. A small body is not compressed, and a large one is
        compressed in a thread."""
        found = self.encodings.get(encoding)
        if found is None:
            plain = self.encodings[IDENTITY]
            if len(plain.body) < SMALL_BYTES:
                found = self.encodings[encoding] = plain
            elif len(plain.body) <= MEDIUM_BYTES:
                found = self._add(encoding, compress(plain.body, encoding))
        if found is None:
            task = self._encoding.get(encoding)
            if task is None:
                task = self._encoding[encoding] = asyncio.create_task(self._encode(encoding))
            # A client that goes away must not cancel the task for the others.
            found = await asyncio.shield(task)
        return found

    async def _encode(self, encoding: str) -> EncodedBody:
        try:
            body = await asyncio.to_thread(compress, self.encodings[IDENTITY].body, encoding)
        finally:
            del self._encoding[encoding]
        return self._add(encoding, body)

    def _add(self, encoding: str, body: bytes) -> EncodedBody:
        encoded = self.encodings[encoding] = EncodedBody(self, body, encoding)
        self.bytes += len(body)
        return encoded


class PreparedResponse:
    """The ASGI response that sends an encoded body, or a 304, to one request."""

    def __init__(self, encoded: EncodedBody, if_none_match: bytes | None) -> None:
        self._status, self._headers, self._body = encoded.reply(if_none_match)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send(self._body)
