"""Takes one API's calls: logs, counts, and answers them, with whatever faults are on."""

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kasparro.simulator.answers import Answers, Given
from kasparro.simulator.calls import HEADERS_OF_INTEREST, Call, Calls
from kasparro.simulator.clock import Clock
from kasparro.simulator.damage import damaged
from kasparro.simulator.delivery import Line, deliver
from kasparro.simulator.faults import Faults, Strike
from kasparro.simulator.payloads import Payloads
from kasparro.simulator.quota import Excess, Quota
from kasparro.simulator.upstream import JSON, Answer, Selection, Upstream, array_of


class Endpoint:
    """The ASGI application of one stand-in."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        clock: Clock,
        meter: Quota,
        faults: Faults,
        payloads: Payloads,
        calls: Calls,
        answers: Answers,
    ) -> None:
        self._upstream = upstream
        self._clock = clock
        self._meter = meter
        self._faults = faults
        self._payloads = payloads
        self._calls = calls
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        call = self._log(request)
        number = len(self._calls)
        excess = self._meter.count()
        page = _page(call)
        strike = self._faults.strike(self._upstream.name, page)
        answer = self._answer(request, call, excess, strike, page)
        line = Line(call, scope, receive, send)
        if strike.delivery is not None:
            call.fault = str(type(strike.delivery).__struct_config__.tag)
            told = await deliver(line, strike.delivery, answer, self._upstream)
        else:
            told = await line.answer(_unless_known(answer, request))
        if told and answer.status == 200 and page is not None:
            self._answers.add(Given(number=number, api=call.api, page=page, body=answer.body))

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

    def _answer(
        self, request: Request, call: Call, excess: Excess | None, strike: Strike, page: int | None
    ) -> Answer:
        """The answer that the call gets if nothing happens to it on the way."""
        upstream = self._upstream
        if excess == "month":
            return upstream.exhausted()
        if excess is not None:
            return upstream.throttled(excess)
        if call.path != upstream.base + upstream.path or call.method != "GET":
            return upstream.not_found()
        selection = upstream.select(request.headers, request.query_params)
        if isinstance(selection, Answer):
            return selection
        body = None if page is None else self._payloads.get(upstream.name, page)
        if body is None:
            body = self._body(selection, strike)
        return Answer(200, body, JSON, upstream.headers(body))

    def _body(self, selection: Selection, strike: Strike) -> bytes:
        if strike.shift:
            start = max(0, selection.start - strike.shift)
            selection = msgspec.structs.replace(selection, start=start)
        if strike.cut is not None:
            count = max(0, min(selection.count, strike.cut - selection.start))
            selection = msgspec.structs.replace(selection, count=count)
        if not strike.content:
            return self._upstream.body(selection)
        return array_of(damaged(self._upstream.records(selection), strike.content, self._clock.now()))


def _page(call: Call) -> int | None:
    """The page asked for; ``None`` if that is not a number."""
    page = call.query.get("page", "1")
    return int(page) if page.isascii() and page.isdigit() and len(page) < 10 else None


def _unless_known(answer: Answer, request: Request) -> Answer:
    """A 304 in place of a body that the caller says it has."""
    etag = dict(answer.headers).get("etag")
    if etag is None or request.headers.get("if-none-match") != etag:
        return answer
    return Answer(304, b"", answer.content_type, answer.headers)
