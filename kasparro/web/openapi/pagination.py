"""Cursor pagination of lists, and pagination by number on request: queries, signed cursors, and links."""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated, Any
from urllib.parse import quote

import msgspec

from kasparro.web.http.problems import Problem, bad_parameter
from kasparro.web.openapi import parameters

PAGE_LIMIT = 2**31 - 1
_SIGNATURE_BYTES = 16
_DIGEST_BYTES = 8

_encode = msgspec.msgpack.Encoder().encode

Cursor = Annotated[str, msgspec.Meta(min_length=1, max_length=4_000)]


Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most rows of a page.", examples=[50])]


class CursorQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a list that has no page numbers."""

    limit: Limit = 50
    cursor: Annotated[
        Cursor | None,
        msgspec.Meta(
            description="The position to continue from: `next_cursor` of a response to the same query. "
            "Repeat the other parameters. A cursor is always valid.",
            examples=["ksQI8O3oAkq0kZCpY29pbmdlY2tvp2JpdGNvaW6xQ2n_6vY2PqTkRn1c8T7e"],
        ),
    ] = None


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a list: which page of it."""

    limit: Limit = 50
    page: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] | None,
        msgspec.Meta(
            description="The number of a page, from 1, of the rows as they are now. A row that moves between "
            "two requests may appear twice or not at all. Unset: the first page, and `next` continues by "
            "cursor. Excludes `cursor`.",
            examples=[1],
        ),
    ] = None
    cursor: Annotated[
        Cursor | None,
        msgspec.Meta(
            description="The position to continue from: `next_cursor` of a response to the same query. "
            "Repeat the other parameters. Pages by cursor neither skip nor repeat a row. Excludes `page`.",
            examples=["ksQI8O3oAkq0kZCpY29pbmdlY2tvp2JpdGNvaW6xQ2n_6vY2PqTkRn1c8T7e"],
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.page is not None and self.cursor is not None:
            raise bad_parameter("page, cursor", "page and cursor are both given.", "page or cursor, not both")


class Pagination(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The position of a page in its list."""

    limit: Annotated[int, msgspec.Meta(description="The most rows of a page.")]
    page: Annotated[int | None, msgspec.Meta(description="The number of this page; null after a cursor.")]
    pages: Annotated[
        int | None,
        msgspec.Meta(description="The number of pages of this size; null if `total` is."),
    ]
    total: Annotated[
        int | None,
        msgspec.Meta(
            description="How many rows pass the filters. Null with `as_of` and in a history: counting them "
            "would read all of the history."
        ),
    ]
    next: Annotated[
        str | None,
        msgspec.Meta(
            description="The relative URL of the next page: by `page` if the request had one, otherwise by "
            "`cursor`. Null on the last page."
        ),
    ]
    next_cursor: Annotated[
        str | None, msgspec.Meta(description="The `cursor` of the next page; null on the last one.")
    ]


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    # A position, and a digest of the path and the query that it belongs to.
    query: bytes
    position: Any


_decode = msgspec.msgpack.Decoder(_Cursor).decode


def offset(query: PageQuery) -> int:
    """The number of rows before the requested page."""
    return ((query.page or 1) - 1) * query.limit


def decode_cursor(query: CursorQuery | PageQuery, path: str, signing_key: bytes) -> Any | None:
    """The position in the query's cursor; None if it has no cursor.

    Raises Problem (400) if `pagination` did not make the cursor for this path and query.
    """
    if query.cursor is None:
        return None
    try:
        cursor = _verified(query.cursor, signing_key)
    except ValueError:
        raise bad_cursor("This cursor is damaged, or of another database") from None
    if cursor.query != _digest(query, path):
        raise bad_cursor("This cursor belongs to another query")
    return cursor.position


def bad_cursor(detail: str) -> Problem:
    """The problem of a cursor that is not valid; `detail` without the full stop."""
    return bad_parameter(
        "cursor", f"{detail}.", "next_cursor of a response to this query, with its other parameters unchanged"
    )


def pagination(
    query: CursorQuery | PageQuery, path: str, signing_key: bytes, *, total: int | None, last: Any | None
) -> Pagination:
    """The position of this query's page; `last` is the position of its last row, None if no row follows."""
    next_cursor = next_query = None
    page = _page(query)
    if last is not None:
        next_cursor = _signed(_Cursor(_digest(query, path), last), signing_key)
        if page is None:
            next_query = parameters.serialize(query, cursor=next_cursor)
        else:
            next_query = parameters.serialize(query, page=page + 1)
    return Pagination(
        limit=query.limit,
        page=(page or 1) if isinstance(query, PageQuery) and query.cursor is None else None,
        pages=None if total is None else -(-total // query.limit),
        total=total,
        next=None if next_query is None else _url(path, next_query),
        next_cursor=next_cursor,
    )


# The description of what `link_header` returns.
LINK_HEADER = {
    "Link": "Relative URLs of other pages (RFC 8288). By cursor: `next` and `first`. If the request had a "
    "`page`: by number, and `prev` too."
}


def link_header(query: CursorQuery | PageQuery, path: str, found: Pagination) -> dict[str, str]:
    """The Link header (RFC 8288) of a page: the URLs of the first, the next and the previous page.

    A client that asks for a page by number gets numbers. A cursor leads forward only, so it has no `prev`.
    """
    page = _page(query)
    first = None if page is None else 1
    urls = {"next": found.next, "first": _url(path, parameters.serialize(query, page=first, cursor=None))}
    previous = (page or 1) - 1
    if found.pages is not None:
        previous = min(previous, found.pages)
    if previous:
        urls["prev"] = _url(path, parameters.serialize(query, page=previous))
    return {"Link": ", ".join(f'<{url}>; rel="{rel}"' for rel, url in urls.items() if url is not None)}


def _page(query: CursorQuery | PageQuery) -> int | None:
    return query.page if isinstance(query, PageQuery) else None


def _url(path: str, query: str) -> str:
    return f"{quote(path)}?{query}" if query else quote(path)


def _digest(query: CursorQuery | PageQuery, path: str) -> bytes:
    page = {"page": None} if isinstance(query, PageQuery) else {}
    without_page = msgspec.structs.replace(query, limit=1, cursor=None, **page)
    return blake2b(_encode((path, without_page)), digest_size=_DIGEST_BYTES).digest()


def _signed(cursor: _Cursor, signing_key: bytes) -> str:
    body = _encode(cursor)
    return _text(body + _signature(body, signing_key))


def _verified(text: str, signing_key: bytes) -> _Cursor:
    # Raises ValueError, which the errors of base64 and msgspec are subclasses of.
    signed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if _text(signed) != text:
        # The decoder ignores characters outside its alphabet.
        raise ValueError("base64")
    body, signature = signed[:-_SIGNATURE_BYTES], signed[-_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(body, signing_key)):
        raise ValueError("signature")
    return _decode(body)


def _text(signed: bytes) -> str:
    return urlsafe_b64encode(signed).rstrip(b"=").decode()


def _signature(body: bytes, signing_key: bytes) -> bytes:
    return hmac.digest(signing_key, body, "sha256")[:_SIGNATURE_BYTES]
