"""Pages of a list: by signed cursor, unless a page number is asked for."""

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


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a list: which part of it."""

    limit: Annotated[
        int, msgspec.Meta(ge=1, le=1_000, description="How many rows a page holds.", examples=[50])
    ] = 50
    page: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)] | None,
        msgspec.Meta(
            description="Which page, from 1, of the rows as they are now: a row that moves between two "
            "requests may come twice or not at all. Unset, the first page comes, and `next` leads on by "
            "cursor. Excludes `cursor`.",
            examples=[1],
        ),
    ] = None
    cursor: Annotated[
        Cursor | None,
        msgspec.Meta(
            description="Where to go on: `next_cursor` of an answer to the same query, whose other "
            "parameters are repeated with it. A walk by cursor neither skips nor repeats a row. Excludes "
            "`page`.",
            examples=["ksQI8O3oAkq0kZCpY29pbmdlY2tvp2JpdGNvaW6xQ2n_6vY2PqTkRn1c8T7e"],
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.page is not None and self.cursor is not None:
            raise bad_parameter("page, cursor", "page and cursor are both given.", "page or cursor, not both")


class Pagination(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a page stands in its list."""

    limit: Annotated[int, msgspec.Meta(description="The most rows that a page holds.")]
    page: Annotated[int | None, msgspec.Meta(description="This page's number; null after a cursor.")]
    pages: Annotated[
        int | None, msgspec.Meta(description="How many pages of this size there are; null with `as_of`.")
    ]
    total: Annotated[
        int | None,
        msgspec.Meta(
            description="How many rows the filters let through; null with `as_of`, where counting them would "
            "read every coin's history."
        ),
    ]
    next: Annotated[
        str | None,
        msgspec.Meta(
            description="The next page, as a relative URL: by `cursor`, or by `page` where that was given; "
            "null on the last one."
        ),
    ]
    next_cursor: Annotated[
        str | None, msgspec.Meta(description="The `cursor` of the next page; null on the last one.")
    ]


class _Sealed(msgspec.Struct, frozen=True, array_like=True):
    # `query` is a digest of the route and the query that the key belongs to.
    query: bytes
    key: Any


_decode = msgspec.msgpack.Decoder(_Sealed).decode


def offset(query: PageQuery) -> int:
    """How many rows lie before the asked page."""
    return ((query.page or 1) - 1) * query.limit


def start(query: PageQuery, path: str, signing_key: bytes) -> Any | None:
    """The key of the row that the query's cursor stands at; None where there is no cursor.

    Raises Problem (400) where it is not one that `pagination` made for this route and query.
    """
    if query.cursor is None:
        return None
    try:
        cursor = _opened(query.cursor, signing_key)
    except ValueError:
        raise bad_cursor("cursor is damaged, or was not made here") from None
    if cursor.query != _digest(query, path):
        raise bad_cursor("cursor belongs to another query")
    return cursor.key


def bad_cursor(detail: str) -> Problem:
    """The problem of a cursor that cannot be gone on from."""
    return bad_parameter(
        "cursor", f"{detail}.", "next_cursor of an answer to this query, with its other parameters unchanged"
    )


def pagination(
    query: PageQuery, path: str, signing_key: bytes, *, total: int | None, last: Any | None
) -> Pagination:
    """Where the page of this query stands; `last` is the key of its last row, None where no row follows."""
    next_cursor = following = None
    if last is not None:
        next_cursor = _sealed(_Sealed(_digest(query, path), last), signing_key)
        if query.page is None:
            following = parameters.write(query, cursor=next_cursor)
        else:
            following = parameters.write(query, page=query.page + 1)
    return Pagination(
        limit=query.limit,
        page=(query.page or 1) if query.cursor is None else None,
        pages=None if total is None else -(-total // query.limit),
        total=total,
        next=None if following is None else _url(path, following),
        next_cursor=next_cursor,
    )


# What `links` gives, for the description.
LINK = {
    "Link": "The pages around this one (RFC 8288), relative URLs: `next` and `first`, by cursor; where "
    "`page` was given by page, and `prev` too."
}


def links(query: PageQuery, path: str, found: Pagination) -> dict[str, str]:
    """The Link header (RFC 8288) of a page: where the first, the next and the previous one are.

    A client that asked for a page by number stays with numbers. A cursor leads one way, so it has no `prev`.
    """
    first = None if query.page is None else 1
    related = {"next": found.next, "first": _url(path, parameters.write(query, page=first, cursor=None))}
    before = (query.page or 1) - 1
    if found.pages is not None:
        before = min(before, found.pages)
    if before:
        related["prev"] = _url(path, parameters.write(query, page=before))
    return {"Link": ", ".join(f'<{url}>; rel="{name}"' for name, url in related.items() if url is not None)}


def _url(path: str, query: str) -> str:
    return f"{quote(path)}?{query}" if query else quote(path)


def _digest(query: PageQuery, path: str) -> bytes:
    bare = msgspec.structs.replace(query, limit=1, page=None, cursor=None)
    return blake2b(_encode((path, bare)), digest_size=_DIGEST_BYTES).digest()


def _sealed(cursor: _Sealed, signing_key: bytes) -> str:
    body = _encode(cursor)
    return _text(body + _signature(body, signing_key))


def _opened(text: str, signing_key: bytes) -> _Sealed:
    # Raises ValueError, of which the errors of base64 and msgspec are kinds.
    sealed = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    if _text(sealed) != text:
        # The decoder passes over characters that are not of its alphabet.
        raise ValueError("base64")
    body, signature = sealed[:-_SIGNATURE_BYTES], sealed[-_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(body, signing_key)):
        raise ValueError("signature")
    return _decode(body)


def _text(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).rstrip(b"=").decode()


def _signature(body: bytes, signing_key: bytes) -> bytes:
    return hmac.digest(signing_key, body, "sha256")[:_SIGNATURE_BYTES]
