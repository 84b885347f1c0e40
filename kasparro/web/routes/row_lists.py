"""Pages of /data and /assets: the parameters that both have, and the response."""

from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.model.record import RANK_LIMIT
from kasparro.store import cursors, queries
from kasparro.store.cursors import CursorAhead, CursorExpired, CursorNeedsSlowPool
from kasparro.store.selection import Filters, Selection
from kasparro.web.http.context import context_of
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi import parameters
from kasparro.web.openapi.pagination import PageQuery
from kasparro.web.service import Service

# A page beyond this offset or limit may take long.
DEEP_OFFSET = 10_000
LARGE_LIMIT = 250

# The parameters that select rows, with their names in a selection.
_FILTERS = MappingProxyType(
    {
        **{name: name for name in Filters.__struct_fields__},
        "source": "sources",
        "id": "ids",
        "asset": "assets",
        "symbol": "symbols",
        "q": "text",
    }
)

_encode = msgspec.json.Encoder().encode

Labels = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=200)], ...], msgspec.Meta(max_length=500)
]
Rank = Annotated[int, msgspec.Meta(ge=1, le=RANK_LIMIT)]


class RowsQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a list of rows: filters, and which page."""

    symbol: Annotated[
        Labels,
        msgspec.Meta(
            description="Rows with these ticker symbols, in any case; a comma list, or repeated.",
            examples=[["btc", "eth"]],
        ),
    ] = ()
    asset: Annotated[
        Labels,
        msgspec.Meta(
            description="Rows of these coins across sources; a comma list, or repeated.",
            examples=[["btc-bitcoin"]],
        ),
    ] = ()
    q: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None,
        msgspec.Meta(
            description="Rows whose name or symbol contains this text, in any case.", examples=["coin"]
        ),
    ] = None
    rank_min: Annotated[
        Rank | None, msgspec.Meta(description="Rows with this rank or a higher number.", examples=[101])
    ] = None
    rank_max: Annotated[
        Rank | None, msgspec.Meta(description="Rows with this rank or a lower number.", examples=[100])
    ] = None
    price_usd_min: Annotated[
        Decimal | None, msgspec.Meta(description="Rows with at least this price.", examples=[0.01])
    ] = None
    price_usd_max: Annotated[
        Decimal | None, msgspec.Meta(description="Rows with at most this price.", examples=[1])
    ] = None
    market_cap_usd_min: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows with at least this market capitalisation.", examples=[1000000]),
    ] = None
    market_cap_usd_max: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows with at most this market capitalisation.", examples=[1000000000]),
    ] = None
    volume_24h_usd_min: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows with at least this volume in 24 hours.", examples=[1000]),
    ] = None
    volume_24h_usd_max: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows with at most this volume in 24 hours.", examples=[1000000]),
    ] = None

    def selection(self) -> Selection:
        """The rows, order and fields that the query selects."""
        raise NotImplementedError

    def conditions(self) -> dict[str, Any]:
        """The filters that are given, by their names in a selection."""
        given = parameters.given(self).items()
        return {_FILTERS[name]: value for name, value in given if name in _FILTERS}


async def page(service: Service, request: Request, query: PageQuery, selection: Selection) -> Response:
    """A page of the rows that a query selects."""
    context = context_of(request.scope)
    while True:
        try:
            return await _page(service, request, query, selection)
        except CursorNeedsSlowPool:
            context.slow = True
        except CursorAhead as ahead:
            context.at_least = ahead.version


async def _page(service: Service, request: Request, query: PageQuery, selection: Selection) -> Response:
    path, context = request.scope["path"], context_of(request.scope)
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        decoded = paging.decode_cursor(query, path, signing_key)
        try:
            found = await queries.page(
                connection,
                service.totals[selection.rows.name],
                selection,
                limit=query.limit,
                offset=paging.offset(query),
                after=None if decoded is None else cursors.position(selection, decoded),
                slow=context.slow,
            )
        except msgspec.ValidationError:
            raise paging.bad_cursor("This cursor was made by another version of Kasparro") from None
        except CursorExpired as reason:
            raise paging.bad_cursor(
                f"This cursor has expired ({reason}). Start again without a cursor"
            ) from None
        except CursorAhead as ahead:
            if not service.database.one_server and context.at_least < ahead.version:
                raise
            # No server has this version any more.
            raise paging.bad_cursor(
                "The database was restored to a state before this cursor. Start again without a cursor"
            ) from None
        context.data_version = found.version
    pagination = paging.pagination(query, path, signing_key, total=found.total, last=found.last)
    if query.cursor is not None:
        context.next_cursor = pagination.next_cursor
    body = b'{"data":[' + found.json.encode() + b'],"pagination":' + _encode(pagination) + b"}"
    return Response(body, headers=paging.link_header(query, path, pagination), media_type="application/json")


def given_filters(query: RowsQuery) -> set[str]:
    """The names of the parameters of a query that select rows."""
    return parameters.given(query).keys() & _FILTERS.keys()


def may_be_slow(query: RowsQuery) -> bool:
    """Whether a query may take long, whatever its order is: a text search, a large or a deep page."""
    return query.q is not None or paging.offset(query) > DEEP_OFFSET or query.limit > LARGE_LIMIT
