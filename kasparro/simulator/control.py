"""The control API: tests and people change a running simulator over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kasparro.simulator.coins import Api
from kasparro.simulator.events import AnyEvent, ImpossibleEvent
from kasparro.simulator.faults import parse_faults
from kasparro.simulator.simulation import Simulation

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Query = TypeVar("Query", bound=msgspec.Struct)


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Advance(_Strict):
    """How many ticks the market's clock moves forward."""

    ticks: Annotated[int, msgspec.Meta(ge=1)] = 1


class FaultQuery(_Strict):
    """The id of the fault to remove; None removes all faults."""

    id: int | None = None


class PayloadQuery(_Strict):
    """What a payload replaces: one page of an API, or its whole list if `page` is None."""

    api: Api
    page: Annotated[int, msgspec.Meta(ge=1)] | None = None


class CallQuery(_Strict):
    """Which calls to list."""

    api: Api | None = None
    """Only the calls of this API; None lists the calls of both."""
    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How many of the first calls to leave out, counted over both APIs."""


class ServedQuery(_Strict):
    """Which responses to list: those to calls with a number above `after`."""

    after: Annotated[int, msgspec.Meta(ge=0)] = 0


class ForgetQuery(_Strict):
    """Which responses to forget: those to calls with a number up to `through`."""

    through: Annotated[int, msgspec.Meta(ge=0)]


class NoQuery(_Strict):
    """A request without parameters."""


def routes(simulation: Simulation) -> list[Route]:
    """The routes of the control API."""

    async def list_faults(request: Request) -> Response:
        _query(request, NoQuery)
        return _json(simulation.faults)

    async def add_faults(request: Request) -> Response:
        _query(request, NoQuery)
        faults = parse_faults(await request.body())
        return _json([simulation.add_fault(fault) for fault in faults], status=201)

    async def remove_faults(request: Request) -> Response:
        query = _query(request, FaultQuery)
        if query.id is None:
            simulation.clear_faults()
        elif not simulation.remove_fault(query.id):
            return _json({"error": f"No active fault has the id {query.id}."}, status=404)
        return Response(status_code=204)

    async def list_events(request: Request) -> Response:
        _query(request, NoQuery)
        return _json(simulation.market.events)

    async def trigger_event(request: Request) -> Response:
        _query(request, NoQuery)
        event = msgspec.json.decode(await request.body(), type=AnyEvent)
        simulation.trigger(event)
        return _json(event, status=201)

    async def list_coins(request: Request) -> Response:
        _query(request, NoQuery)
        return _json(simulation.true_coins())

    async def list_calls(request: Request) -> Response:
        query = _query(request, CallQuery)
        calls = simulation.calls[query.after :]
        return _json([call for call in calls if query.api in (None, call.api)])

    async def list_served(request: Request) -> Response:
        return _json(simulation.served.after(_query(request, ServedQuery).after))

    async def forget_served(request: Request) -> Response:
        simulation.served.forget(_query(request, ForgetQuery).through)
        return Response(status_code=204)

    async def advance(request: Request) -> Response:
        _query(request, NoQuery)
        body = await request.body()
        simulation.advance(msgspec.json.decode(body or b"{}", type=Advance).ticks)
        return _json({"tick": simulation.clock.tick, "now": simulation.clock.now()})

    async def reset(request: Request) -> Response:
        _query(request, NoQuery)
        simulation.reset()
        return Response(status_code=204)

    async def put_payload(request: Request) -> Response:
        query = _query(request, PayloadQuery)
        body = await request.body()
        if query.page is None:
            simulation.replay(query.api, [body])
        else:
            simulation.put_payload(query.api, body, page=query.page)
        return Response(status_code=204)

    async def clear_payloads(request: Request) -> Response:
        _query(request, NoQuery)
        simulation.clear_payloads()
        return Response(status_code=204)

    return [
        Route("/faults", _checked(list_faults), methods=["GET"]),
        Route("/faults", _checked(add_faults), methods=["POST"]),
        Route("/faults", _checked(remove_faults), methods=["DELETE"]),
        Route("/events", _checked(list_events), methods=["GET"]),
        Route("/events", _checked(trigger_event), methods=["POST"]),
        Route("/coins", _checked(list_coins), methods=["GET"]),
        Route("/calls", _checked(list_calls), methods=["GET"]),
        Route("/served", _checked(list_served), methods=["GET"]),
        Route("/served", _checked(forget_served), methods=["DELETE"]),
        Route("/advance", _checked(advance), methods=["POST"]),
        Route("/reset", _checked(reset), methods=["POST"]),
        Route("/payload", _checked(put_payload), methods=["PUT"]),
        Route("/payload", _checked(clear_payloads), methods=["DELETE"]),
    ]


def _checked(handler: Handler) -> Handler:
    """The handler. Invalid input gets a 400 that describes the error."""

    async def checked(request: Request) -> Response:
        try:
            return await handler(request)
        except (msgspec.DecodeError, ImpossibleEvent) as error:
            return _json({"error": str(error)}, status=400)

    return checked


def _query(request: Request, shape: type[Query]) -> Query:
    return msgspec.convert(dict(request.query_params), shape, strict=False)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
