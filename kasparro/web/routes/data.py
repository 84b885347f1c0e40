"""GET /data: the newest record of every coin of every source, in pages and one by one."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kasparro.model.record import RANK_LIMIT
from kasparro.pipeline.report import Moment, SourceName
from kasparro.sources import registry
from kasparro.store import cursors, queries
from kasparro.store.cursors import CursorExpired, CursorNeedsSlowPool, ReplicaBehind
from kasparro.store.selection import Filters, Selection
from kasparro.web.http.context import context_of
from kasparro.web.http.problems import Problem, not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import PageQuery, Pagination
from kasparro.web.service import Service

# From here on a page may take long.
DEEP_OFFSET = 10_000
LARGE_LIMIT = 250

_encode = msgspec.json.Encoder().encode

Field = Literal[
    "source",
    "source_id",
    "asset",
    "symbol",
    "name",
    "rank",
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
    "observed_at",
    "first_seen_at",
    "updated_at",
    "rank_observed_at",
]
Sort = Literal[
    "rank",
    "-rank",
    "source",
    "-source",
    "source_id",
    "-source_id",
    "asset",
    "-asset",
    "symbol",
    "-symbol",
    "name",
    "-name",
    "price_usd",
    "-price_usd",
    "market_cap_usd",
    "-market_cap_usd",
    "volume_24h_usd",
    "-volume_24h_usd",
    "circulating_supply",
    "-circulating_supply",
    "total_supply",
    "-total_supply",
    "max_supply",
    "-max_supply",
    "percent_change_1h",
    "-percent_change_1h",
    "percent_change_24h",
    "-percent_change_24h",
    "percent_change_7d",
    "-percent_change_7d",
    "observed_at",
    "-observed_at",
    "first_seen_at",
    "-first_seen_at",
    "updated_at",
    "-updated_at",
]


Labels = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=200)], ...], msgspec.Meta(max_length=500)
]
Rank = Annotated[int, msgspec.Meta(ge=1, le=RANK_LIMIT)]


Fields = Annotated[
    Annotated[tuple[Field, ...], msgspec.Meta(max_length=50)],
    msgspec.Meta(
        description="The fields that a row has: these alone, in the order of the full row; a comma list, or "
        "repeated. Where none is named, all but `rank_observed_at`.",
        examples=[["source", "symbol", "price_usd"]],
    ),
]


AsOf = Annotated[
    parameters.MomentOrDay | None,
    msgspec.Meta(
        description="What was newest at this moment, from history; a date means the end of that day in UTC. "
        "Coins without a record until then are left out; `asset` and `first_seen_at` are those of now.",
        examples=["2024-06-01", "2024-06-01T12:00:00Z"],
    ),
]


class RowQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of one row: what of it."""

    as_of: AsOf = None
    fields: Fields = ()


class DataQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /data: which rows, in what order, and what of them."""

    cursor: Annotated[
        paging.Cursor | None,
        msgspec.Meta(
            description="Where to go on: `next_cursor` of an answer to the same query, whose other "
            "parameters are repeated with it. A walk by cursor shows everything as it was when its first "
            "page was read: each row exactly once, in its place and with its values of then, whatever is "
            "loaded meanwhile. It can go on for an hour at least; with `as_of`, sorted by `source`, always, "
            "else until something is loaded. Excludes `page`.",
            examples=["ksQI8O3oAkq0kZCpY29pbmdlY2tvp2JpdGNvaW6xQ2n_6vY2PqTkRn1c8T7e"],
        ),
    ] = None
    source: Annotated[
        Annotated[tuple[SourceName, ...], msgspec.Meta(max_length=20)],
        msgspec.Meta(
            description="Rows of these sources; a comma list, or repeated.", examples=[["coingecko"]]
        ),
    ] = ()
    symbol: Annotated[
        Labels,
        msgspec.Meta(
            description="Rows with these ticker symbols, in any case; a comma list, or repeated.",
            examples=[["btc", "eth"]],
        ),
    ] = ()
    id: Annotated[
        Labels,
        msgspec.Meta(
            description="Rows with these source_ids; a comma list, or repeated.", examples=[["bitcoin"]]
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
            description="Rows whose name or symbol holds this text, in any case.", examples=["coin"]
        ),
    ] = None
    rank_min: Annotated[
        Rank | None, msgspec.Meta(description="Rows of this rank or a later one.", examples=[101])
    ] = None
    rank_max: Annotated[
        Rank | None, msgspec.Meta(description="Rows of this rank or an earlier one.", examples=[100])
    ] = None
    price_usd_min: Annotated[
        Decimal | None, msgspec.Meta(description="Rows of this price or more.", examples=[0.01])
    ] = None
    price_usd_max: Annotated[
        Decimal | None, msgspec.Meta(description="Rows of this price or less.", examples=[1])
    ] = None
    market_cap_usd_min: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows of this market capitalisation or more.", examples=[1000000]),
    ] = None
    market_cap_usd_max: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows of this market capitalisation or less.", examples=[1000000000]),
    ] = None
    volume_24h_usd_min: Annotated[
        Decimal | None, msgspec.Meta(description="Rows of this volume in 24 hours or more.", examples=[1000])
    ] = None
    volume_24h_usd_max: Annotated[
        Decimal | None,
        msgspec.Meta(description="Rows of this volume in 24 hours or less.", examples=[1000000]),
    ] = None
    updated_since: Annotated[
        Moment | None,
        msgspec.Meta(
            description="Rows that changed at this moment or later.", examples=["2024-06-01T12:00:00Z"]
        ),
    ] = None
    as_of: AsOf = None
    sort: Annotated[
        Sort | None,
        msgspec.Meta(
            description="The field that orders the rows, `-` before it from high to low. Rows without "
            "a value come last either way; ties are settled by source and source_id. Unset: `rank`; with "
            "`as_of` `source`, since any other order has to look up every coin.",
            examples=["-market_cap_usd"],
        ),
    ] = None
    fields: Fields = ()

    def selection(self) -> Selection:
        """What the query asks for, page by page."""
        filters = Filters(
            # The key begins with the source: with all of them, an id is looked up in it.
            sources=self.source or (registry.names() if self.id else ()),
            ids=self.id,
            assets=self.asset,
            symbols=self.symbol,
            text=self.q,
            rank_min=self.rank_min,
            rank_max=self.rank_max,
            price_usd_min=self.price_usd_min,
            price_usd_max=self.price_usd_max,
            market_cap_usd_min=self.market_cap_usd_min,
            market_cap_usd_max=self.market_cap_usd_max,
            volume_24h_usd_min=self.volume_24h_usd_min,
            volume_24h_usd_max=self.volume_24h_usd_max,
            updated_since=self.updated_since,
        )
        sort = self.sort or ("rank" if self.as_of is None else "source")
        return Selection(filters=filters, sort=sort, fields=self.fields, as_of=self.as_of)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest record of one coin as one source reports it; with `fields`, what was asked for of it."""

    source: SourceName | UnsetType = UNSET
    source_id: Annotated[
        str | UnsetType, msgspec.Meta(description="The id that the source gives the coin.")
    ] = UNSET
    asset: Annotated[str | UnsetType | None, msgspec.Meta(description="The coin across sources.")] = UNSET
    symbol: Annotated[
        str | UnsetType | None,
        msgspec.Meta(description="The newest that the source has given; a file may lack the column."),
    ] = UNSET
    name: Annotated[
        str | UnsetType | None,
        msgspec.Meta(description="The newest that the source has given; a file may lack the column."),
    ] = UNSET
    rank: Annotated[
        int | UnsetType | None,
        msgspec.Meta(
            description="The newest that the source has given. Where the newest file has no ranks, it is "
            "older than `observed_at`; `rank_observed_at` says how old."
        ),
    ] = UNSET
    price_usd: Decimal | UnsetType | None = UNSET
    market_cap_usd: Decimal | UnsetType | None = UNSET
    volume_24h_usd: Decimal | UnsetType | None = UNSET
    circulating_supply: Decimal | UnsetType | None = UNSET
    total_supply: Decimal | UnsetType | None = UNSET
    max_supply: Decimal | UnsetType | None = UNSET
    percent_change_1h: Decimal | UnsetType | None = UNSET
    percent_change_24h: Decimal | UnsetType | None = UNSET
    percent_change_7d: Decimal | UnsetType | None = UNSET
    observed_at: Annotated[
        Moment | UnsetType, msgspec.Meta(description="The moment that the values are of.")
    ] = UNSET
    first_seen_at: Annotated[
        Moment | UnsetType, msgspec.Meta(description="When this coin of this source came first.")
    ] = UNSET
    updated_at: Annotated[Moment | UnsetType, msgspec.Meta(description="When the row last changed.")] = UNSET
    rank_observed_at: Annotated[
        Moment | UnsetType | None,
        msgspec.Meta(description="The moment that `rank` is of; only where `fields` names it."),
    ] = UNSET


class DataPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of records."""

    data: list[Record]
    pagination: Pagination


class RecordPath(msgspec.Struct, frozen=True, kw_only=True):
    """What identifies a record."""

    source: Annotated[SourceName, msgspec.Meta(examples=["coingecko"])]
    source_id: Annotated[str, msgspec.Meta(description="Percent-encoded, `/` too.", examples=["bitcoin"])]


async def page(service: Service, request: Request, query: DataQuery) -> Response:
    """GET /data."""
    try:
        return await _page(service, request, query)
    except CursorNeedsSlowPool:
        context_of(request.scope).slow = True
        return await _page(service, request, query)


async def _page(service: Service, request: Request, query: DataQuery) -> Response:
    path = request.scope["path"]
    asked = query.selection()
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        told = paging.start(query, path, signing_key)
        try:
            rows = await queries.page(
                connection,
                service.totals,
                asked,
                limit=query.limit,
                offset=paging.offset(query),
                after=None if told is None else cursors.position(asked.sort, told),
                slow=context_of(request.scope).slow,
            )
        except msgspec.ValidationError:
            raise paging.bad_cursor("cursor was made by another version of this service") from None
        except CursorExpired as ended:
            raise paging.bad_cursor(
                f"this cursor has expired ({ended}); start again without a cursor"
            ) from None
        except ReplicaBehind:
            if service.database.one_server:
                # Nothing lags behind a server's own data: it was put back to what it said earlier.
                raise paging.bad_cursor(
                    "this cursor is of data that is gone; start again without a cursor"
                ) from None
            raise Problem(
                503,
                "The replica that was asked is behind the walk of this cursor.",
                kind="replica-behind",
                title="Replica behind",
                headers={"Retry-After": "1"},
            ) from None
    pagination = paging.pagination(query, path, signing_key, total=rows.total, last=rows.last)
    body = b'{"data":[' + rows.json.encode() + b'],"pagination":' + _encode(pagination) + b"}"
    return Response(body, headers=paging.links(query, path, pagination), media_type="application/json")


async def row(service: Service, request: Request, query: RowQuery) -> Response:
    """GET /data/{source}/{source_id}."""
    source, source_id = request.path_params["source"], request.path_params["source_id"]
    if source not in registry.names():
        raise not_found("There is no such source.", parameter="source", allowed=", ".join(registry.names()))
    if "�" in source_id:
        # The server puts this character where a path is not UTF-8.
        try:
            unquote_to_bytes(request.scope["raw_path"]).decode()
        except UnicodeDecodeError:
            raise Problem(400, "The path is not UTF-8.", parameter="source_id") from None
    found = None
    if "\x00" not in source_id:
        async with service.read_connection(request) as connection:
            found = await queries.row(connection, source, source_id, fields=query.fields, as_of=query.as_of)
    if isinstance(found, datetime):
        first = parameters.written(found)
        raise not_found(
            f"{source} has no record of this id until {parameters.written(query.as_of)}; "
            f"its first record is of {first}.",
            parameter="as_of",
            allowed=f"a time from {first} on",
        )
    if found is None:
        raise not_found(f"{source} has no record with this id.", parameter="source_id")
    return Response(found, media_type="application/json")


def _by_key(query: DataQuery) -> bool:
    # Whether a page reads no more coins than it shows, and those that its sources and ids leave out.
    key = DataQuery(source=query.source, id=query.id).selection().filters
    return query.sort in {None, "source"} and query.selection().filters == key


def _may_be_slow(query: DataQuery) -> bool:
    # A search, a page far down, a large one, one in an order or of values that no index has, and one that has
    # to look up every coin's history may each take long; those below it never wait for them.
    return (
        query.q is not None
        or paging.offset(query) > DEEP_OFFSET
        or query.limit > LARGE_LIMIT
        or (query.as_of is not None and not _by_key(query))
        or not (query.id or query.asset or query.symbol or _indexed(query))
    )


def _indexed(query: DataQuery) -> bool:
    # Whether an index leads to the rows in their order, past few that the filters leave out.
    key = DataQuery(
        source=query.source, id=query.id, rank_min=query.rank_min, rank_max=query.rank_max
    ).selection()
    return query.sort in {None, "rank", "source"} and query.selection().filters == key.filters


ENDPOINTS = (
    Endpoint(
        path="/data",
        handler=page,
        summary="The newest record of every coin of every source",
        description="A page of records, filtered and sorted. Numbers have every digit that the source told.",
        area="data",
        query=DataQuery,
        answer=DataPage,
        caching="version",
        slow=_may_be_slow,
        headers=paging.LINK,
    ),
    Endpoint(
        path="/data/{source}/{source_id:path}",
        handler=row,
        summary="One record",
        description="The newest record of one coin of one source.",
        area="data",
        path_shape=RecordPath,
        query=RowQuery,
        answer=Record,
        problems=(400, 404, 500, 503),
        caching="version",
    ),
)
