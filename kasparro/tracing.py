"""Sends OpenTelemetry traces if the standard variables are set. Otherwise nothing is imported, and spans cost
nothing."""

import asyncio
import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import structlog

from kasparro import __version__

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")
Work: TypeAlias = Callable[P, Coroutine[Any, Any, T]]
Kind: TypeAlias = Literal["server", "client", "internal"]
Attributes: TypeAlias = Mapping[str, str | int]

# Statements are shown in spans, without the values of their parameters, up to this length.
STATEMENT_CHARS = 2_000

# If one of these is set, traces are wanted.
_WANTING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")

# How long spans are sent, with retries, unless OTEL_EXPORTER_OTLP_TIMEOUT says otherwise. A service has 10 s
# to stop, so a receiver that does not answer must not take longer.
EXPORT_S = 3
# How long the service waits at its end for the last spans to be sent.
FLUSH_S = 2.0

# The provider, its exporter and tracer, and the package `opentelemetry.trace`. None: nothing is traced.
_provider: Any = None
_exporter: Any = None
_tracer: Any = None
_api: Any = None


def configure(environ: Mapping[str, str] = os.environ) -> None:
    """Trace from now on, if the variables of OpenTelemetry ask for it (opentelemetry.io, environment variable
    specification). Call it once for each process."""
    global _provider, _exporter, _tracer, _api  # noqa: PLW0603 - one tracer for the process, as in OpenTelemetry itself
    if not is_wanted(environ):
        return
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    protocol = environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    )
    if exporter != "otlp" or protocol != "http/protobuf":
        log.warning(
            "traces_off", reason="only OTEL_TRACES_EXPORTER=otlp with the protocol http/protobuf is supported"
        )
        return
    try:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        _api = importlib.import_module("opentelemetry.trace")
    except ImportError:
        log.warning("traces_off", reason="OpenTelemetry is not installed: pip install 'kasparro[otel]'")
        return
    named = "OTEL_SERVICE_NAME" in environ or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = resources.Resource.create(
        {"service.version": __version__, **({} if named else {"service.name": "kasparro"})}
    )
    # It sends in a thread of its own, and once more when the process exits.
    _provider = sdk.TracerProvider(resource=resource)
    has_timeout = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"} & environ.keys()
    _exporter = otlp.OTLPSpanExporter(timeout=None if has_timeout else EXPORT_S)
    _provider.add_span_processor(export.BatchSpanProcessor(_exporter))
    _tracer = _provider.get_tracer("kasparro", __version__)


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the variables ask for traces."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return False
    return any(environ.get(name, "").strip() for name in _WANTING)


async def flush() -> None:
    """Send the spans that have ended. A worker process needs this, because a signal ends it."""
    if _provider is not None:
        # OpenTelemetry's own limit on this does not interrupt an export.
        sending = threading.Thread(target=_provider.force_flush, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_S)
        if sending.is_alive():
            _exporter.shutdown()


def traced(
    name: str, attributes: Callable[P, Attributes] | None = None, kind: Kind = "internal"
) -> Callable[[Work[P, T]], Work[P, T]]:
    """Decorates a coroutine function: each call is a span. `attributes` gets the arguments of the call."""

    def decorate(function: Work[P, T]) -> Work[P, T]:
        @functools.wraps(function)
        async def call(*arguments: P.args, **named: P.kwargs) -> T:
            if _tracer is None:
                return await function(*arguments, **named)
            given = attributes(*arguments, **named) if attributes else {}
            with _tracer.start_as_current_span(name, kind=_kind(kind), attributes=given):
                return await function(*arguments, **named)

        return call

    return decorate


def note(**attributes: str | int) -> None:
    """Add attributes to the current span. In their names, a double underscore stands for a dot."""
    if _tracer is not None:
        span = _api.get_current_span()
        for name, value in attributes.items():
            span.set_attribute(name.replace("__", "."), value)


def trace_queries(connection: Any) -> None:
    """Make each statement of a connection of asyncpg a span."""
    if _tracer is not None:
        connection.add_query_logger(_record_query)


def _record_query(query: Any) -> None:
    # asyncpg calls this just after the statement, in its context.
    ended = time.time_ns()
    span = _tracer.start_span(
        query.query.lstrip().partition(" ")[0].partition("\n")[0].upper() or "statement",
        kind=_kind("client"),
        start_time=ended - int(query.elapsed * 1e9),
        attributes={"db.system.name": "postgresql", "db.query.text": query.query[:STATEMENT_CHARS]},
    )
    if query.exception is not None:
        span.set_status(_api.StatusCode.ERROR, type(query.exception).__name__)
    span.end(ended)


def trace_requests(app: "ASGIApp", route_of: "Callable[[Scope], str]") -> "ASGIApp":
    """The application, with a span for each request if traces are wanted. `route_of` returns a request's
    route."""
    if _tracer is None:
        return app
    propagate = importlib.import_module("opentelemetry.propagate")

    async def traced_app(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        route = route_of(scope)
        attributes = {"http.request.method": scope["method"], "http.route": route, "url.path": scope["path"]}
        with _tracer.start_as_current_span(
            f"{scope['method']} {route}",
            context=propagate.extract(headers),
            kind=_kind("server"),
            attributes=attributes,
        ) as span:

            async def send_and_note(message: "Message") -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    for name, value in message["headers"]:
                        if name == b"x-request-id":
                            span.set_attribute("kasparro.request_id", value.decode("latin-1"))
                    if status >= 500:
                        span.set_status(_api.StatusCode.ERROR)
                await send(message)

            await app(scope, receive, send_and_note)

    return traced_app


def _kind(kind: Kind) -> Any:
    return getattr(_api.SpanKind, kind.upper())
