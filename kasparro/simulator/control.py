"""The control API: what tests and people do to a running simulator over HTTP."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kasparro.simulator.faults import parse_faults
from kasparro.simulator.market import Api

if TYPE_CHECKING:
    from kasparro.simulator.server import Simulator

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Query = TypeVar("Query", bound=msgspec.Struct)


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Advance(_Strict):
    """How far time moves on."""

    ticks: Annotated[int, msgspec.Meta(ge=1)] = 1


class FaultQuery(_Strict):
    """Which fault to switch off; none given: all."""

    id: int | None = None


class PayloadQuery(_Strict):
    """Where a payload goes; without a page it is the API's whole answer."""

    api: Api
    page: Annotated[int, msgspec.Meta(ge=1)] | None = None


class CallQuery(_Strict):
    """Whose calls, and after how many of all; none given: all."""

    api: Api | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class AnswerQuery(_Strict):
    """Answers of the calls after this one, by number."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class ForgetQuery(_Strict):
    """Answers of the calls up to this one, by number."""

    through: Annotated[int, msgspec.Meta(ge=0)]


class NothingElse(_Strict):
    """A request without parameters."""


def routes(simulator: "Simulator") -> list[Route]:
    """The control API of this simulator."""

    async def list_faults(request: Request) -> Response:
        _query(request, NothingElse)
        return _json(simulator.faults)

    async def add_faults(request: Request) -> Response:
        _query(request, NothingElse)
        faults = parse_faults(await request.body())
        return _json([simulator.add_fault(fault) for fault in faults], status=201)

    async def remove_faults(request: Request) -> Response:
        query = _query(request, FaultQuery)
        if query.id is None:
            simulator.clear_faults()
        elif not simulator.remove_fault(query.id):
            return _json({"error": f"No fault {query.id} is on."}, status=404)
        return Response(status_code=204)

    async def list_calls(request: Request) -> Response:
        query = _query(request, CallQuery)
        calls = simulator.calls[query.after :]
        return _json([call for call in calls if query.api in (None, call.api)])

    async def list_answers(request: Request) -> Response:
        return _json(simulator.answers.after(_query(request, AnswerQuery).after))

    async def forget_answers(request: Request) -> Response:
        simulator.answers.forget(_query(request, ForgetQuery).through)
        return Response(status_code=204)

    async def advance(request: Request) -> Response:
        _query(request, NothingElse)
        body = await request.body()
        simulator.advance(msgspec.json.decode(body or b"{}", type=Advance).ticks)
        return _json({"tick": simulator.clock.tick, "now": simulator.clock.now()})

    async def reset(request: Request) -> Response:
        _query(request, NothingElse)
        simulator.reset()
        return Response(status_code=204)

    async def put_payload(request: Request) -> Response:
        query = _query(request, PayloadQuery)
        body = await request.body()
        if query.page is None:
            simulator.replay(query.api, [body])
        else:
            simulator.put_payload(query.api, body, page=query.page)
        return Response(status_code=204)

    async def clear_payloads(request: Request) -> Response:
        _query(request, NothingElse)
        simulator.clear_payloads()
        return Response(status_code=204)

    return [
        Route("/faults", _checked(list_faults), methods=["GET"]),
        Route("/faults", _checked(add_faults), methods=["POST"]),
        Route("/faults", _checked(remove_faults), methods=["DELETE"]),
        Route("/calls", _checked(list_calls), methods=["GET"]),
        Route("/answers", _checked(list_answers), methods=["GET"]),
        Route("/answers", _checked(forget_answers), methods=["DELETE"]),
        Route("/advance", _checked(advance), methods=["POST"]),
        Route("/reset", _checked(reset), methods=["POST"]),
        Route("/payload", _checked(put_payload), methods=["PUT"]),
        Route("/payload", _checked(clear_payloads), methods=["DELETE"]),
    ]


def _checked(handler: Handler) -> Handler:
    """The handler, with a 400 that says what is wrong for input that does not fit."""

    async def checked(request: Request) -> Response:
        try:
            return await handler(request)
        except msgspec.DecodeError as error:
            return _json({"error": str(error)}, status=400)

    return checked


def _query(request: Request, shape: type[Query]) -> Query:
    return msgspec.convert(dict(request.query_params), shape, strict=False)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
