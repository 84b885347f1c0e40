"""GET /assets/{asset}/history and its exports: one line of points or candles of all sources of a coin."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.assets.timeline import (
    REFERENCE,
    REFERENCE_INTERVALS,
    Candle,
    Candles,
    Point,
    Points,
    SourceCandle,
    SourcePoint,
)
from kasparro.store import asset_history, history
from kasparro.store.exports import Form
from kasparro.store.history import Interval, Part
from kasparro.store.pool import Connection
from kasparro.web.http.problems import not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import Pagination
from kasparro.web.routes import exports
from kasparro.web.routes.assets import AssetPath
from kasparro.web.routes.history import (
    LONG_PAGE,
    HistoryCsvQuery,
    HistoryEntry,
    HistoryNdjsonQuery,
    HistoryQuery,
    moment_of,
)
from kasparro.web.service import Service

_encode = msgspec.json.Encoder().encode

_END = datetime.max.replace(tzinfo=UTC)
_START = datetime(1, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
# Lines that an export holds at the same time.
_AT_ONCE = 250


class AssetHistoryEntry(HistoryEntry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A point or a candle of an asset."""

    sources: Annotated[list[str], msgspec.Meta(description="The sources that it is made of.")]


class AssetHistoryPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of points or candles of an asset, the oldest first."""

    data: list[AssetHistoryEntry]
    pagination: Pagination


class _Range(msgspec.Struct, frozen=True):
    """The points from the moment `since` to `until`, both included, or the candles that begin then."""

    parts: list[Part]
    interval: Interval
    since: datetime
    until: datetime
    max_lag: timedelta

    def needed(self) -> list[Part]:
        """The parts of the history that these points or candles depend on."""
        if self.interval == "raw":
            before, last = REFERENCE + self.max_lag, self.until
        else:
            length = history.LENGTHS[self.interval]
            before = REFERENCE_INTERVALS * length + self.max_lag
            last = _later(history.start_of(self.interval, self.until), length - _TICK)
        return asset_history.between(self.parts, _earlier(self.since, before), _later(last, _TICK))


async def asset_history_page(service: Service, request: Request, query: HistoryQuery) -> Response:
    """GET /assets/{asset}/history."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection, asset_history.snapshot(connection):
        signing_key = await service.signing_key(connection)
        wanted = await _range(service, connection, request, query)
        if (after := paging.decode_cursor(query, path, signing_key)) is not None:
            wanted = msgspec.structs.replace(wanted, since=max(wanted.since, moment_of(after) + _TICK))
        # One more than the page shows, to know whether another page follows.
        rows: list[Point | Candle] = []
        async with aclosing(_entries(connection, wanted)) as entries:
            async for entry in entries:
                rows.append(entry)
                if len(rows) > query.limit:
                    break
    shown = rows[: query.limit]
    last = _time(shown[-1]) if len(rows) > query.limit else None
    pagination = paging.pagination(query, path, signing_key, total=None, last=last)
    lines = ",".join(map(_json, shown))
    body = b'{"data":[' + lines.encode() + b'],"pagination":' + _encode(pagination) + b"}"
    return Response(body, headers=paging.link_header(query, path, pagination), media_type="application/json")


async def asset_history_csv(service: Service, request: Request, query: HistoryCsvQuery) -> Response:
    """GET /assets/{asset}/history.csv."""
    fields = (*history.fields(query.interval), "sources")
    header = exports.csv_header(fields, spreadsheet=query.spreadsheet)
    return await _export(service, request, query, "csv", header)


async def asset_history_ndjson(service: Service, request: Request, query: HistoryNdjsonQuery) -> Response:
    """GET /assets/{asset}/history.ndjson."""
    return await _export(service, request, query, "ndjson")


async def _export(
    service: Service, request: Request, query: HistoryNdjsonQuery, form: Form, header: str = ""
) -> Response:
    parts = partial(_parts, service=service, request=request, query=query, form=form)
    return await exports.stream(service, request, form, parts, name="kasparro-history", header=header)


async def _parts(
    connection: Connection, *, service: Service, request: Request, query: HistoryNdjsonQuery, form: Form
) -> AsyncGenerator[bytes, None]:
    written = _csv if form == "csv" else _json
    line_end = exports.LINE_ENDS[form]
    async with asset_history.snapshot(connection):
        wanted = await _range(service, connection, request, query)
        lines: list[str] = []
        async with aclosing(_entries(connection, wanted)) as entries:
            async for entry in entries:
                lines.append(written(entry) + line_end)
                if len(lines) == _AT_ONCE:
                    yield "".join(lines).encode()
                    lines = []
        if lines:
            yield "".join(lines).encode()


async def candles(
    service: Service, connection: Connection, request: Request, query: HistoryNdjsonQuery
) -> AsyncGenerator[Candle, None]:
    """The candles of the asset in the path. It needs a snapshot.

    Raises Problem (404) if there is no such asset.
    """
    wanted = await _range(service, connection, request, query)
    async with aclosing(_entries(connection, wanted)) as entries:
        async for entry in entries:
            if isinstance(entry, Candle):
                yield entry


async def _range(
    service: Service, connection: Connection, request: Request, query: HistoryQuery | HistoryNdjsonQuery
) -> _Range:
    # Raises Problem (404) if there is no such asset.
    asset = request.path_params["asset"]
    # No text in PostgreSQL contains NUL.
    parts = None if "\x00" in asset else await asset_history.parts(connection, asset)
    if parts is None:
        raise not_found("There is no such asset.", parameter="asset")
    return _Range(
        parts,
        query.interval,
        _START if query.begin is None else query.begin,
        _END if query.end is None else query.end,
        service.settings.quote_max_lag,
    )


async def _entries(connection: Connection, wanted: _Range) -> AsyncGenerator[Point | Candle, None]:
    needed = wanted.needed()
    if wanted.interval == "raw":
        points = Points(wanted.max_lag)
        async with aclosing(asset_history.points(connection, needed)) as moments:
            async for rows in moments:
                point = points.add([SourcePoint(*row) for row in rows])
                if point is not None and wanted.since <= point.observed_at <= wanted.until:
                    yield point
        return
    candles = Candles(history.LENGTHS[wanted.interval], wanted.max_lag)
    async with aclosing(asset_history.candles(connection, needed, wanted.interval)) as intervals:
        async for rows in intervals:
            candle = candles.add([SourceCandle(*row) for row in rows])
            if candle is not None and wanted.since <= candle.time <= wanted.until:
                yield candle


def _time(entry: Point | Candle) -> datetime:
    return entry.observed_at if isinstance(entry, Point) else entry.time


def _cells(entry: Point | Candle) -> dict[str, str | None]:
    """The fields of an entry as text, without the sources."""
    return {name: _text(value) for name, value in msgspec.structs.asdict(entry).items() if name != "sources"}


def _text(value: Any) -> str | None:
    match value:
        case datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        case Decimal():
            return f"{value:f}"
        case None:
            return None
        case _:
            return str(value)


def _json(entry: Point | Candle) -> str:
    time, *values = _cells(entry).items()
    cells = "".join(f',"{name}":{"null" if value is None else value}' for name, value in values)
    return f'{{"{time[0]}":"{time[1]}"{cells},"sources":{_encode(entry.sources).decode()}}}'


def _csv(entry: Point | Candle) -> str:
    # A name of a source needs no quotes.
    return ",".join([*(value or "" for value in _cells(entry).values()), " ".join(entry.sources)])


def _earlier(moment: datetime, by: timedelta) -> datetime:
    return moment - by if moment - _START > by else _START


def _later(moment: datetime, by: timedelta) -> datetime:
    return moment + by if _END - moment > by else _END


_PATH = "/assets/{asset}/history"
_DESCRIPTION = (
    "One line of all rows that are linked to the asset, each as long as its link holds. Points are records: "
    "`observed_at`, `price_usd`, `market_cap_usd` and `volume_24h_usd`; records of one moment are one point, "
    "with medians. Candles have the medians of the sources' candles: `time`, `open`, `high`, `low`, `close` "
    "and `count`. Outlying prices are left out, and `sources` are those that count. The oldest come first. "
)
ENDPOINTS = (
    Endpoint(
        path=_PATH,
        handler=asset_history_page,
        summary="The history of one coin across sources",
        description=_DESCRIPTION,
        tag="assets",
        path_params=AssetPath,
        query=HistoryQuery,
        response=AssetHistoryPage,
        problems=(400, 404, 500, 503),
        caching="version",
        slow=lambda query: query.limit > LONG_PAGE,
        headers=paging.LINK_HEADER,
    ),
    *exports.endpoints(
        _PATH,
        handlers=(asset_history_csv, asset_history_ndjson),
        queries=(HistoryCsvQuery, HistoryNdjsonQuery),
        summary="The history of one coin across sources",
        description=_DESCRIPTION,
        cells="Null is an empty cell. The sources are separated by spaces.",
        line="Each line is a point or a candle.",
        tag="assets",
        path_params=AssetPath,
    ),
)
