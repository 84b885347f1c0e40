"""GET /data.csv, /assets.csv and the same as .ndjson: all rows that a query selects, streamed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, TypeAlias

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kasparro.log_rate import RateLimitedLog
from kasparro.store import exports
from kasparro.store.exports import EXPORT_S, Form
from kasparro.store.pool import Connection
from kasparro.store.selection import Selection
from kasparro.web.http.context import context_of
from kasparro.web.http.disconnects import ResponseAborted
from kasparro.web.http.encodings import IDENTITY, Encoder, new_encoder
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.http.headers import UNBUFFERED
from kasparro.web.http.rate_limit import client_id
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import PageQuery
from kasparro.web.routes.assets import AssetsQuery
from kasparro.web.routes.data import DataQuery
from kasparro.web.routes.row_lists import RowsQuery
from kasparro.web.service import Service

client_log = RateLimitedLog(structlog.get_logger())

Handler = Callable[[Service, Request, Any], Awaitable[Response]]
# Reads an export in parts of whole lines.
Parts: TypeAlias = Callable[[Connection], AsyncGenerator[bytes, None]]
_MEDIA_TYPES: dict[Form, str] = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
LINE_ENDS: dict[Form, str] = {"csv": "\r\n", "ndjson": "\n"}
_BYTE_ORDER_MARK = "\ufeff"

Spreadsheet = Annotated[
    bool,
    msgspec.Meta(
        description="For spreadsheet programs: the file starts with a byte order mark, so that they detect "
        "UTF-8, and a text that they would take for a formula gets an apostrophe in front. Leave it out to "
        "read back exactly what the source sent.",
        examples=[True],
        extra_json_schema={"example": True},
    ),
]


def _query(name: str, page_query: type[RowsQuery], *fields: tuple[str, Any, Any]) -> Any:
    # The query of a list without pages, and with more fields.
    of_list = [
        (field.name, field.type, field.default)
        for field in msgspec.structs.fields(page_query)
        if field.name not in PageQuery.__struct_fields__
    ]
    return msgspec.defstruct(
        name,
        [*of_list, *fields],
        namespace={
            "__doc__": "The query of an export.",
            "selection": page_query.selection,
            "conditions": page_query.conditions,
        },
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


class _Export(Response):
    # A streamed response that always closes its chunks. Starlette's StreamingResponse cancels them again and
    # again when the client disconnects, also while the query in PostgreSQL is being ended.

    def __init__(
        self,
        headers: dict[str, str],
        first: bytes,
        chunks: AsyncGenerator[bytes, None],
        *,
        form: Form,
        aborted: asyncio.Event,
    ) -> None:
        super().__init__(headers=headers, media_type=_MEDIA_TYPES[form])
        del self.headers["Content-Length"]
        self._first = first
        self._chunks = chunks
        self._aborted = aborted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        others = {asyncio.create_task(_disconnected(receive)), asyncio.create_task(self._aborted.wait())}
        try:
            await asyncio.wait({sending, *others}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif self._aborted.is_set():
                raise ResponseAborted
        finally:
            for task in (sending, *others):
                task.cancel()
            await asyncio.wait({sending, *others})
            await self._chunks.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def export_csv(service: Service, request: Request, query: Any) -> Response:
    """GET /data.csv."""
    selection = query.selection()
    parts = partial(exports.export, selection=selection, form="csv", spreadsheet=query.spreadsheet)
    header = csv_header(selection.shown, spreadsheet=query.spreadsheet)
    return await stream(service, request, "csv", parts, name=_name(selection), header=header)


async def export_ndjson(service: Service, request: Request, query: Any) -> Response:
    """GET /data.ndjson."""
    selection = query.selection()
    parts = partial(exports.export, selection=selection, form="ndjson")
    return await stream(service, request, "ndjson", parts, name=_name(selection))


async def export_assets_csv(service: Service, request: Request, query: Any) -> Response:
    """GET /assets.csv."""
    return await export_csv(service, request, query)


async def export_assets_ndjson(service: Service, request: Request, query: Any) -> Response:
    """GET /assets.ndjson."""
    return await export_ndjson(service, request, query)


def _name(selection: Selection) -> str:
    return f"kasparro-{selection.rows.name}"


def csv_header(fields: Sequence[str], *, spreadsheet: bool) -> str:
    """What a CSV begins with."""
    return (_BYTE_ORDER_MARK if spreadsheet else "") + ",".join(fields) + LINE_ENDS["csv"]


async def stream(
    service: Service, request: Request, form: Form, parts: Parts, *, name: str, header: str = ""
) -> Response:
    """The response with a header and all that a function reads from a connection, as a file of this name. It
    starts when a slot is free. Raises what reading the first part raises."""
    encoding = context_of(request.scope).encoding
    headers = {
        "Content-Disposition": f'attachment; filename="{name}.{form}"',
        "Vary": service.cache_policy.vary,
        **UNBUFFERED,
        **({} if encoding == IDENTITY else {"Content-Encoding": encoding}),
    }
    if request.method == "HEAD":
        response = Response(headers=headers, media_type=_MEDIA_TYPES[form])
        # It would be the length of a GET (RFC 9110, 8.6), which is not known.
        del response.headers["Content-Length"]
        return response
    aborted = asyncio.Event()
    encoder = new_encoder(encoding)
    chunks = _chunks(service, request, parts, header=header, aborted=aborted, encoder=encoder)
    try:
        # An error before the first chunk still becomes a problem document.
        first = await anext(chunks, b"")
    except BaseException:
        await chunks.aclose()
        raise
    return _Export(headers, first, chunks, form=form, aborted=aborted)


async def _chunks(
    service: Service,
    request: Request,
    parts: Parts,
    *,
    header: str,
    aborted: asyncio.Event,
    encoder: Encoder | None,
) -> AsyncGenerator[bytes, None]:
    context = context_of(request.scope)
    client = client_id(context.key_name, request.scope)
    async with (
        service.export_queue.slot(client, aborted.set) as slot,
        service.database.exporting() as connection,
        aclosing(parts(connection)) as found,
    ):
        context.postgres_pid = service.database.server_process(connection)
        ends_at = time.monotonic() + EXPORT_S
        async for part in found:
            chunk, header = header.encode() + part, ""
            # In a thread: compressing this many rows takes longer than other requests should wait.
            encoded = chunk if encoder is None else await asyncio.to_thread(encoder.encode, chunk)
            # The speed of a client is measured in rows, however well they are compressed.
            with slot.sending(len(chunk)):
                yield encoded
            if time.monotonic() > ends_at:
                client_log.info("long_export_aborted", address=client, limit_s=EXPORT_S)
                raise ResponseAborted
    rest = header.encode()
    if encoder is not None:
        # A decoder checks the end mark, so only a complete export gets it.
        rest = (encoder.encode(rest) if rest else b"") + encoder.finish()
    if rest:
        yield rest


HEADERS = {
    "Content-Disposition": "A name for the file.",
    "Cache-Control": "Always `no-store`.",
    "X-Accel-Buffering": "Always `no`, so that proxies pass rows on at once.",
    "Vary": "The request headers that the response depends on.",
}
_LIMITS = ExportQueue.limits
STREAMED = (
    "All of it is read at one moment. The response is streamed, and compressed according "
    "to Accept-Encoding (zstd, gzip). A response without the last chunk of HTTP is incomplete. "
    f"A client, which is an API key or an address, has at most {_LIMITS.per_client} exports running. "
    f"{_LIMITS.queued_per_client} more wait, each for up to {_LIMITS.queue_timeout_s:.0f} s. While others "
    f"wait, an export ends if its client reads less than {_LIMITS.min_bytes_per_s // 1024} KiB/s (before "
    f"compression) over {_LIMITS.window_s:.0f} s. An export takes at most {EXPORT_S / 60:.0f} minutes. "
)


def endpoints(
    path: str,
    *,
    handlers: tuple[Handler, Handler],
    queries: tuple[Any, Any],
    summary: str,
    description: str,
    cells: str,
    line: str,
    tag: str,
    path_params: type[msgspec.Struct] | None = None,
) -> tuple[Endpoint, Endpoint]:
    """The endpoints of a path's CSV and NDJSON, each with its handler and query.

    `cells` describes the cells of CSV, `line` a line of JSON.
    """
    # Only a path with parameters can name something that does not exist.
    problems = (400, 429, 500, 503) if path_params is None else (400, 404, 429, 500, 503)
    csv, ndjson = (
        Endpoint(
            path=f"{path}.{form}",
            handler=handler,
            summary=f"{summary} as {title}",
            description=description + STREAMED + text,
            tag=tag,
            path_params=path_params,
            query=query,
            response=str,
            problems=problems,
            media_type=_MEDIA_TYPES[form],
            headers=HEADERS,
            caching="never",
        )
        for form, title, handler, query, text in zip(
            _MEDIA_TYPES, ("CSV", "lines of JSON"), handlers, queries, (cells, line), strict=True
        )
    )
    return csv, ndjson


def _of_list(
    path: str, query: type[RowsQuery], rows: str, handlers: tuple[Handler, Handler]
) -> tuple[Endpoint, Endpoint]:
    tag = path.removeprefix("/")
    return endpoints(
        path,
        handlers=handlers,
        queries=(
            _query(f"{tag.capitalize()}CsvQuery", query, ("spreadsheet", Spreadsheet, False)),
            _query(f"{tag.capitalize()}NdjsonQuery", query),
        ),
        summary=f"All {rows}",
        description=f"All {rows} that pass the filters. ",
        cells="Null is an empty cell without quotes; an empty text is a quoted one. Values are exact. "
        "`spreadsheet=true` makes the file safe for spreadsheet programs.",
        line=f"Each line is a row as in {path}.",
        tag=tag,
    )


ENDPOINTS = (
    *_of_list("/data", DataQuery, "rows", (export_csv, export_ndjson)),
    *_of_list("/assets", AssetsQuery, "assets", (export_assets_csv, export_assets_ndjson)),
)
