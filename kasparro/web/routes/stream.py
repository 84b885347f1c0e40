"""GET /stream: server-sent events."""

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.web.http.context import context_of
from kasparro.web.http.headers import UNBUFFERED
from kasparro.web.http.rate_limit import client_id
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.routes.row_lists import Labels
from kasparro.web.schemas import SourceName
from kasparro.web.service import Service
from kasparro.web.stream import MEDIA_TYPE, EventStream, Filter, Position, Streams


class StreamQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /stream."""

    asset: Annotated[
        Labels,
        msgspec.Meta(
            description="Only versions in which these coins changed; a comma list, or repeated.",
            examples=[["btc-bitcoin"]],
        ),
    ] = ()
    source: Annotated[
        Annotated[tuple[SourceName, ...], msgspec.Meta(max_length=20)],
        msgspec.Meta(
            description="Only versions in which rows of these sources changed; a comma list, or repeated.",
            examples=[["coingecko"]],
        ),
    ] = ()
    last_event_id: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None,
        msgspec.Meta(
            description="The id of the last event that the client knows, for clients that cannot send the "
            "header Last-Event-ID. The header counts if both are given.",
            examples=["1146a2fd5af0-17-0"],
        ),
    ] = None


async def stream(service: Service, request: Request, query: StreamQuery) -> Response:
    """GET /stream."""
    if request.method == "HEAD":
        response = Response(headers=UNBUFFERED, media_type=MEDIA_TYPE)
        # A stream has no length.
        del response.headers["Content-Length"]
        return response
    client = client_id(context_of(request.scope).key_name, request.scope)
    service.streams.admit(client, request.scope.get("kasparro.connection"))
    # A browser that reconnects sends the header, and the query of the first time.
    last_id = request.headers.get("Last-Event-ID") or query.last_event_id
    wanted = Filter(frozenset(query.asset), frozenset(query.source))
    position = None if last_id is None else Position.parse(last_id)
    first = await service.streams.first_event(wanted, position, client)
    return EventStream(service.streams, client, wanted, first)


_LIMITS = Streams.limits

ENDPOINT = Endpoint(
    path="/stream",
    handler=stream,
    summary="Events as they happen",
    description="Server-sent events, with a JSON object as the data of each. "
    "`version`: the data version was committed, with what changed since the last event "
    '(`{"data_version", "committed_at", "run", "changed": {"count", "rows": [[source, source_id], …], '
    '"assets": [asset, …]}, "truncated"}`). The leading coins come first; if there are more than '
    f"{_LIMITS.listed} rows or assets, the lists are `truncated`. "
    "`run`: a run as in `/runs/{id}`, at most once a second while it works, and once at its end. "
    "`reset`: it is not known what changed since the last event, so that the client must read everything "
    'again (`{"data_version", "committed_at", "reason"}`). '
    "The first event has the current data version, and the newest run follows it. "
    "The id of an event is valid after restarts and in every process: with Last-Event-ID, the first event "
    "has what changed since then. "
    "A client that reads slowly gets fewer events, each with all changes since the one before. It is "
    f"disconnected if it does not read for {_LIMITS.write_s:.0f} s. "
    f"Without events, a comment follows every {_LIMITS.heartbeat_s:.0f} s. "
    f"A client, which is an API key or an address, has at most {_LIMITS.per_client} streams.",
    tag="operations",
    query=StreamQuery,
    response=str,
    media_type=MEDIA_TYPE,
    problems=(400, 429, 500, 503),
    headers={
        "X-Accel-Buffering": "Always `no`, so that proxies pass events on at once.",
        "Cache-Control": "Always `no-store`.",
    },
    caching="never",
)
