"""GET /data/{source}/{source_id}/history and its exports: a coin's points or candles of one source."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kasparro.store import history
from kasparro.store.exports import Form
from kasparro.store.history import Interval, Part
from kasparro.store.pool import Connection
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import CursorQuery, Pagination
from kasparro.web.routes import exports
from kasparro.web.routes.data import RecordPath, no_such_coin, record_key
from kasparro.web.routes.exports import Spreadsheet
from kasparro.web.schemas import Moment
from kasparro.web.service import Service

# A longer page may take long.
LONG_PAGE = 250

_encode = msgspec.json.Encoder().encode


Begin = Annotated[
    parameters.MomentOrDayStart | None,
    msgspec.Meta(
        description="Points of this moment or later, or candles that begin then. A date means the start of "
        "that day in UTC.",
        examples=["2024-06-01", "2024-06-01T12:00:00Z"],
    ),
]
End = Annotated[
    parameters.MomentOrDay | None,
    msgspec.Meta(
        description="Points of this moment or earlier, or candles that begin then: the bound is included. A "
        "date means the end of that day in UTC.",
        examples=["2024-06-30", "2024-06-30T12:00:00Z"],
    ),
]
OfInterval = Annotated[
    Interval,
    msgspec.Meta(
        description="`raw`: the points as they were recorded. Otherwise candles of an hour, a day or a week, "
        "in UTC; weeks begin on Monday.",
        examples=["1d"],
    ),
]


class HistoryQuery(CursorQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a history."""

    begin: Begin = msgspec.field(name="from", default=None)
    end: End = msgspec.field(name="to", default=None)
    interval: OfInterval = "raw"


class HistoryNdjsonQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a history as a whole."""

    begin: Begin = msgspec.field(name="from", default=None)
    end: End = msgspec.field(name="to", default=None)
    interval: OfInterval = "raw"


class HistoryCsvQuery(HistoryNdjsonQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a history as CSV."""

    spreadsheet: Spreadsheet = False


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With `interval=raw` a point, which has `observed_at`; otherwise a candle, which has `time`."""

    observed_at: Annotated[Moment | UnsetType, msgspec.Meta(description="The moment of the values.")] = UNSET
    price_usd: Decimal | UnsetType | None = UNSET
    market_cap_usd: Decimal | UnsetType | None = UNSET
    volume_24h_usd: Decimal | UnsetType | None = UNSET
    time: Annotated[Moment | UnsetType, msgspec.Meta(description="When the candle begins.")] = UNSET
    open: Annotated[Decimal | UnsetType, msgspec.Meta(description="The first price.")] = UNSET
    high: Annotated[Decimal | UnsetType, msgspec.Meta(description="The highest price.")] = UNSET
    low: Annotated[Decimal | UnsetType, msgspec.Meta(description="The lowest price.")] = UNSET
    close: Annotated[Decimal | UnsetType, msgspec.Meta(description="The last price.")] = UNSET
    count: Annotated[int | UnsetType, msgspec.Meta(description="How many prices the candle has.")] = UNSET


class HistoryPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of points or candles, the oldest first."""

    data: list[HistoryEntry]
    pagination: Pagination


async def history_page(service: Service, request: Request, query: HistoryQuery) -> Response:
    """GET /data/{source}/{source_id}/history."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        part = await _part(connection, request, query)
        after = paging.decode_cursor(query, path, signing_key)
        if after is not None:
            part = msgspec.structs.replace(part, since=_following(part, query.interval, after))
        # One more than the page shows, to know whether another page follows.
        rows = await history.page(connection, part, query.interval, query.limit + 1)
    shown = rows[: query.limit]
    last = shown[-1][0] if len(rows) > query.limit else None
    pagination = paging.pagination(query, path, signing_key, total=None, last=last)
    lines = ",".join(line for _, line in shown)
    body = b'{"data":[' + lines.encode() + b'],"pagination":' + _encode(pagination) + b"}"
    return Response(body, headers=paging.link_header(query, path, pagination), media_type="application/json")


async def history_csv(service: Service, request: Request, query: HistoryCsvQuery) -> Response:
    """GET /data/{source}/{source_id}/history.csv."""
    header = exports.csv_header(history.fields(query.interval), spreadsheet=query.spreadsheet)
    return await _export(service, request, query, "csv", header)


async def history_ndjson(service: Service, request: Request, query: HistoryNdjsonQuery) -> Response:
    """GET /data/{source}/{source_id}/history.ndjson."""
    return await _export(service, request, query, "ndjson")


async def _export(
    service: Service, request: Request, query: HistoryNdjsonQuery, form: Form, header: str = ""
) -> Response:
    return await exports.stream(
        service,
        request,
        form,
        partial(_parts, request=request, query=query, form=form),
        name="kasparro-history",
        header=header,
    )


async def _parts(
    connection: Connection, *, request: Request, query: HistoryNdjsonQuery, form: Form
) -> AsyncGenerator[bytes, None]:
    part = await _part(connection, request, query)
    async with aclosing(history.export(connection, part, query.interval, form)) as parts:
        async for lines in parts:
            yield lines


async def _part(connection: Connection, request: Request, query: HistoryQuery | HistoryNdjsonQuery) -> Part:
    # Raises Problem if there is no such coin.
    source, source_id = record_key(request)
    found = None if source_id is None else await history.span(connection, source, source_id)
    if found is None:
        raise no_such_coin(source)
    return history.within(found, query.interval, query.begin, query.end)


def moment_of(position: Any) -> datetime:
    """The moment in a decoded cursor. Raises Problem (400) if it has none."""
    try:
        found: datetime = msgspec.convert(position, Moment)
    except msgspec.ValidationError:
        raise paging.bad_cursor("This cursor was made by another version of Kasparro") from None
    return found


def _following(part: Part, interval: Interval, after: Any) -> datetime:
    # The first moment after a position, within the part.
    return min(max(part.since, history.after(interval, moment_of(after))), part.until)


_POINTS = (
    "Points are the records of a coin as its source gave them: `observed_at`, `price_usd`, `market_cap_usd` "
    "and `volume_24h_usd`. Candles are computed from the prices of points: `time`, `open`, `high`, `low`, "
    "`close` and `count`. Intervals without a price are left out. The oldest come first. "
)
_PATH = "/data/{source}/{source_id:path}/history"
ENDPOINTS = (
    Endpoint(
        path=_PATH,
        handler=history_page,
        summary="The history of one coin from one source",
        description=_POINTS + "A page keeps its place while new data arrives: later points come later.",
        tag="data",
        path_params=RecordPath,
        query=HistoryQuery,
        response=HistoryPage,
        problems=(400, 404, 500, 503),
        caching="version",
        slow=lambda query: query.limit > LONG_PAGE,
        headers=paging.LINK_HEADER,
    ),
    *exports.endpoints(
        _PATH,
        handlers=(history_csv, history_ndjson),
        queries=(HistoryCsvQuery, HistoryNdjsonQuery),
        summary="The history of one coin from one source",
        description=_POINTS,
        cells="Null is an empty cell.",
        line="Each line is a point or a candle.",
        tag="data",
        path_params=RecordPath,
    ),
)
