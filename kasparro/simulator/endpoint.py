"""Handles the calls of one API: logs, counts and answers them, with the active faults."""

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kasparro.simulator.calls import HEADERS_OF_INTEREST, Call, Calls
from kasparro.simulator.clock import Clock
from kasparro.simulator.damage import damaged
from kasparro.simulator.delivery import ResponseWriter, deliver
from kasparro.simulator.faults import CallFaults, Faults
from kasparro.simulator.payloads import Payloads
from kasparro.simulator.quota import Excess, Quota
from kasparro.simulator.served import ServedResponse, ServedResponses
from kasparro.simulator.upstream import JSON, Answer, Selection, Upstream, array_of


class Endpoint:
    """The ASGI application of one simulated upstream."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        clock: Clock,
        quota: Quota,
        faults: Faults,
        payloads: Payloads,
        calls: Calls,
        served: ServedResponses,
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._quota = quota
        self._faults = faults
        self._payloads = payloads
        self._calls = calls
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        call = self._log(request)
        number = len(self._calls)
        excess = self._quota.count()
        path = call.path.removeprefix(self._upstream.base)
        page = _page(call) if path == self._upstream.path else None
        faults = self._faults.for_call(self._upstream.name, path, page)
        answer = self._rejection(request, excess) or self._answer(request, path, page, faults)
        writer = ResponseWriter(call, scope, receive, send)
        if faults.delivery is not None:
            call.fault = str(type(faults.delivery).__struct_config__.tag)
            complete = await deliver(writer, faults.delivery, answer, self._upstream)
        else:
            complete = await writer.send(_if_modified(answer, request))
        if complete and answer.status == 200 and page is not None:
            self._served.add(ServedResponse(number=number, api=call.api, page=page, body=answer.body))

    def _log(self, request: Request) -> Call:
        call = Call(
            at=self._clock.now(),
            tick=self._clock.tick,
            api=self._upstream.name,
            method=request.method,
            path=request.url.path,
            query=dict(request.query_params),
            headers={name: request.headers[name] for name in HEADERS_OF_INTEREST if name in request.headers},
        )
        self._calls.add(call)
        return call

    def _rejection(self, request: Request, excess: Excess | None) -> Answer | None:
        """The response to a call that is not allowed; None if it is."""
        if excess == "month":
            return self._upstream.exhausted()
        if excess is not None:
            return self._upstream.throttled(excess)
        return None if request.method == "GET" else self._upstream.not_found()

    def _answer(self, request: Request, path: str, page: int | None, faults: CallFaults) -> Answer:
        """The response before a delivery fault changes it."""
        upstream = self._upstream
        if path != upstream.path:
            return self._contracts(request, path, faults)
        selection = upstream.select(request.headers, request.query_params)
        if isinstance(selection, Answer):
            return selection
        body = None if page is None else self._payloads.get(upstream.name, page)
        if body is None:
            body = self._body(selection, faults)
        return Answer(200, body, JSON, upstream.headers(body))

    def _contracts(self, request: Request, path: str, faults: CallFaults) -> Answer:
        records = self._upstream.contracts(path, request.headers, request.query_params)
        if isinstance(records, Answer):
            return records
        written = [msgspec.json.encode(record) for record in records][: faults.list_length]
        body = array_of(damaged(written, faults.content, self._clock.now()))
        return Answer(200, body, JSON, self._upstream.headers(body))

    def _body(self, selection: Selection, faults: CallFaults) -> bytes:
        if faults.shift:
            start = max(0, selection.start - faults.shift)
            selection = msgspec.structs.replace(selection, start=start)
        if faults.list_length is not None:
            count = max(0, min(selection.count, faults.list_length - selection.start))
            selection = msgspec.structs.replace(selection, count=count)
        if not faults.content:
            return self._upstream.body(selection)
        return array_of(damaged(self._upstream.records(selection), faults.content, self._clock.now()))


def _page(call: Call) -> int | None:
    """The requested page; None if it is not a number."""
    page = call.query.get("page", "1")
    return int(page) if page.isascii() and page.isdigit() and len(page) < 10 else None


def _if_modified(answer: Answer, request: Request) -> Answer:
    """The response, or a 304 if the client has the body already."""
    etag = dict(answer.headers).get("etag")
    if etag is None or request.headers.get("if-none-match") != etag:
        return answer
    return Answer(304, b"", answer.content_type, answer.headers)
