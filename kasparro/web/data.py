"""GET /data: the newest record of every coin of every source, in pages and one by one."""

from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.pipeline.report import Moment, SourceName
from kasparro.settings import SOURCES
from kasparro.store import reading
from kasparro.store.reading import Filters
from kasparro.web import paging
from kasparro.web.endpoint import Endpoint
from kasparro.web.paging import PageQuery, Pagination
from kasparro.web.problems import Problem, not_found
from kasparro.web.service import Service

# From here on a page may take long.
DEEP_OFFSET = 10_000
LARGE_LIMIT = 250

_encode = msgspec.json.Encoder().encode

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


class DataQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /data."""

    source: Annotated[
        Annotated[tuple[SourceName, ...], msgspec.Meta(max_length=20)],
        msgspec.Meta(
            description="Rows of these sources; a comma list, or repeated.", examples=[["coingecko"]]
        ),
    ] = ()
    symbol: Annotated[
        Annotated[
            tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=200)], ...],
            msgspec.Meta(max_length=500),
        ],
        msgspec.Meta(
            description="Rows with these ticker symbols, in any case; a comma list, or repeated.",
            examples=[["btc", "eth"]],
        ),
    ] = ()
    q: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None,
        msgspec.Meta(
            description="Rows whose name or symbol holds this text, in any case.", examples=["coin"]
        ),
    ] = None
    sort: Annotated[
        Sort,
        msgspec.Meta(
            description="The field that orders the rows, `-` before it from high to low. Rows without "
            "a value come last either way; ties are settled by source and source_id.",
            examples=["-market_cap_usd"],
        ),
    ] = "rank"


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest record of one coin as one source reports it."""

    source: SourceName
    source_id: Annotated[str, msgspec.Meta(description="The id that the source gives the coin.")]
    asset: Annotated[str | None, msgspec.Meta(description="The coin across sources.")]
    symbol: str | None
    name: str | None
    rank: int | None
    price_usd: Decimal | None
    market_cap_usd: Decimal | None
    volume_24h_usd: Decimal | None
    circulating_supply: Decimal | None
    total_supply: Decimal | None
    max_supply: Decimal | None
    percent_change_1h: Decimal | None
    percent_change_24h: Decimal | None
    percent_change_7d: Decimal | None
    observed_at: Annotated[Moment, msgspec.Meta(description="The moment that the values are of.")]
    first_seen_at: Annotated[Moment, msgspec.Meta(description="When this coin of this source came first.")]
    updated_at: Annotated[Moment, msgspec.Meta(description="When the row last changed.")]


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
    path = request.scope["path"]
    filters = Filters(sources=query.source, symbols=query.symbol, text=query.q)
    async with service.reading(request) as connection:
        signing_key = await service.signing_key(connection)
        told = paging.start(query, path, signing_key)
        try:
            after = None if told is None else reading.key(query.sort, told)
        except msgspec.ValidationError:
            raise paging.bad_cursor("cursor was made by another version of this service") from None
        rows = await reading.page(
            connection,
            filters=filters,
            sort=query.sort,
            limit=query.limit,
            offset=paging.offset(query),
            after=after,
        )
    pagination = paging.pagination(query, path, signing_key, total=rows.total, last=rows.last)
    body = b'{"data":[' + rows.json.encode() + b'],"pagination":' + _encode(pagination) + b"}"
    return Response(body, media_type="application/json")


async def row(service: Service, request: Request, query: Any) -> Response:
    """GET /data/{source}/{source_id}."""
    source, source_id = request.path_params["source"], request.path_params["source_id"]
    if source not in SOURCES:
        raise not_found("There is no such source.", parameter="source", allowed=", ".join(SOURCES))
    if "�" in source_id:
        # The server puts this character where a path is not UTF-8.
        try:
            unquote_to_bytes(request.scope["raw_path"]).decode()
        except UnicodeDecodeError:
            raise Problem(400, "The path is not UTF-8.", parameter="source_id") from None
    found = None
    if "\x00" not in source_id:
        async with service.reading(request) as connection:
            found = await reading.row(connection, source, source_id)
    if found is None:
        raise not_found(f"{source} has no record with this id.", parameter="source_id")
    return Response(found, media_type="application/json")


def _wide(query: DataQuery) -> bool:
    # A search, a page far down and a large one may each take long; those below it never wait for them.
    return query.q is not None or paging.offset(query) > DEEP_OFFSET or query.limit > LARGE_LIMIT


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
        wide=_wide,
    ),
    Endpoint(
        path="/data/{source}/{source_id:path}",
        handler=row,
        summary="One record",
        description="The newest record of one coin of one source.",
        area="data",
        path_shape=RecordPath,
        answer=Record,
        problems=(400, 404, 500, 503),
        caching="version",
    ),
)
