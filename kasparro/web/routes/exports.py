"""GET /data.csv and /data.ndjson: everything that a query selects, streamed."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kasparro.log_rate import RateLimitedLog
from kasparro.store import queries
from kasparro.store.selection import Selection, in_order
from kasparro.web.http.context import context_of
from kasparro.web.http.disconnects import ResponseAborted
from kasparro.web.http.encodings import IDENTITY, Encoder, new_encoder
from kasparro.web.http.export_queue import ExportQueue
from kasparro.web.http.rate_limit import client_id
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import PageQuery
from kasparro.web.routes.data import DataQuery
from kasparro.web.service import Service

client_log = RateLimitedLog(structlog.get_logger())

# PostgreSQL keeps what was replaced since an export began until it ends: no longer than this.
EXPORT_S = 3_600.0

Form = Literal["csv", "ndjson"]
_MEDIA_TYPES: dict[Form, str] = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
_LINE_ENDS: dict[Form, str] = {"csv": "\r\n", "ndjson": "\n"}
_BYTE_ORDER_MARK = "\ufeff"

Spreadsheet = Annotated[
    bool,
    msgspec.Meta(
        description="For a spreadsheet program: the file begins with a byte order mark, by which it knows "
        "UTF-8, and a text that it would read as a formula gets an apostrophe first. Programs leave it out, "
        "and read back exactly what the source sent.",
        examples=[True],
        extra_json_schema={"example": True},
    ),
]


def _query(name: str, *fields: tuple[str, Any, Any]) -> Any:
    # The query of /data without its paging, and more fields.
    of_data = [
        (field.name, field.type, field.default)
        for field in msgspec.structs.fields(DataQuery)
        if field.name not in PageQuery.__struct_fields__
    ]
    return msgspec.defstruct(
        name,
        [*of_data, *fields],
        namespace={"__doc__": "The query of an export.", "selection": DataQuery.selection},
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


CsvQuery = _query("CsvQuery", ("spreadsheet", Spreadsheet, False))
NdjsonQuery = _query("NdjsonQuery")


class _Export(Response):
    # Ends what it streams from, however it ends itself. Not Starlette's own: where a client hangs up, that
    # cancels again and again, also what PostgreSQL is told at the end.

    def __init__(
        self,
        headers: dict[str, str],
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        *,
        form: Form,
        cut: asyncio.Event,
    ) -> None:
        super().__init__(headers=headers, media_type=_MEDIA_TYPES[form])
        del self.headers["Content-Length"]
        self._first = first
        self._pieces = pieces
        self._cut = cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        others = {asyncio.create_task(_hung_up(receive)), asyncio.create_task(self._cut.wait())}
        try:
            await asyncio.wait({sending, *others}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif self._cut.is_set():
                raise ResponseAborted
        finally:
            for task in (sending, *others):
                task.cancel()
            await asyncio.wait({sending, *others})
            await self._pieces.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def export_csv(service: Service, request: Request, query: Any) -> Response:
    """GET /data.csv."""
    return await _export(service, request, query.selection(), "csv", spreadsheet=query.spreadsheet)


async def export_ndjson(service: Service, request: Request, query: Any) -> Response:
    """GET /data.ndjson."""
    return await _export(service, request, query.selection(), "ndjson")


async def _export(
    service: Service, request: Request, asked: Selection, form: Form, *, spreadsheet: bool = False
) -> Response:
    coding = context_of(request.scope).encoding
    headers = {
        "Content-Disposition": f'attachment; filename="kasparro-data.{form}"',
        "Vary": service.cache_policy.vary,
        **({} if coding == IDENTITY else {"Content-Encoding": coding}),
    }
    if request.method == "HEAD":
        response = Response(headers=headers, media_type=_MEDIA_TYPES[form])
        # How long the export would be is not known, and a length told here is that of a GET (RFC 9110, 8.6).
        del response.headers["Content-Length"]
        return response
    cut = asyncio.Event()
    encoder = new_encoder(coding)
    pieces = _pieces(service, request, asked, form, cut=cut, encoder=encoder, spreadsheet=spreadsheet)
    try:
        # What goes wrong before there is anything to give is told as a problem.
        first = await anext(pieces, b"")
    except BaseException:
        await pieces.aclose()
        raise
    return _Export(headers, first, pieces, form=form, cut=cut)


async def _pieces(
    service: Service,
    request: Request,
    asked: Selection,
    form: Form,
    *,
    cut: asyncio.Event,
    encoder: Encoder | None,
    spreadsheet: bool,
) -> AsyncGenerator[bytes, None]:
    client = client_id(context_of(request.scope).key_name, request.scope)
    end = _LINE_ENDS[form]
    head = ",".join(in_order(asked.fields)) + end if form == "csv" else ""
    if spreadsheet:
        head = _BYTE_ORDER_MARK + head
    async with (
        service.export_queue.slot(client, cut.set) as turn,
        service.database.exporting() as connection,
        aclosing(queries.export(connection, asked, form, spreadsheet=spreadsheet)) as parts,
    ):
        ends_at = time.monotonic() + EXPORT_S
        async for lines in parts:
            piece = (head + end.join(lines) + end).encode()
            head = ""
            # In a thread: compressing this many rows takes longer than other requests should wait.
            coded = piece if encoder is None else await asyncio.to_thread(encoder.encode, piece)
            # The pace is that of rows, however small they are on the wire.
            with turn.sending(len(piece)):
                yield coded
            if time.monotonic() > ends_at:
                client_log.info("long_export_aborted", address=client, limit_s=EXPORT_S)
                raise ResponseAborted
    rest = head.encode()
    if encoder is not None:
        # Only a whole export gets the end that a decoder looks for.
        rest = (encoder.encode(rest) if rest else b"") + encoder.finish()
    if rest:
        yield rest


_HEADERS = {
    "Content-Disposition": "A name for the file.",
    "Cache-Control": "Always `no-store`.",
    "Vary": "What beside the URL the answer depends on.",
}
_TERMS = ExportQueue.limits
_DESCRIPTION = (
    "Everything that the filters let through, of one moment, streamed, compressed by Accept-Encoding (zstd, "
    "gzip). An answer that breaks off, without the last chunk that HTTP has at its end, is not whole. "
    f"A client, which is a key or an address, has {_TERMS.per_client} exports at work at once; "
    f"{_TERMS.queued_per_client} more wait for their turn, for {_TERMS.queue_timeout_s:.0f} s at most. While "
    f"others wait, one whose client takes less than {_TERMS.min_bytes_per_s // 1024} KiB/s (before "
    f"compression) over {_TERMS.window_s:.0f} s is cut. No export takes longer than {EXPORT_S / 60:.0f} "
    "minutes. "
)
ENDPOINTS = (
    Endpoint(
        path="/data.csv",
        handler=export_csv,
        summary="All rows as CSV",
        description=_DESCRIPTION
        + "Null is an empty cell without quotes, an empty text is a quoted one. Values are exact; "
        "`spreadsheet=true` makes a file that spreadsheet programs open safely.",
        area="data",
        query=CsvQuery,
        answer=str,
        problems=(400, 429, 500, 503),
        media_type="text/csv",
        headers=_HEADERS,
        caching="never",
    ),
    Endpoint(
        path="/data.ndjson",
        handler=export_ndjson,
        summary="All rows as lines of JSON",
        description=_DESCRIPTION + "A line is a record as in /data.",
        area="data",
        query=NdjsonQuery,
        answer=str,
        problems=(400, 429, 500, 503),
        media_type="application/x-ndjson",
        headers=_HEADERS,
        caching="never",
    ),
)
