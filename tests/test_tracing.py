"""OpenTelemetry traces, sent to a receiver that decodes them with the classes of OpenTelemetry itself."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from kasparro import tracing
from tests.conftest import LogEvents
from tests.support.commands import run_command
from tests.support.live_service import live_service

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Span:
    """A span as it was sent."""

    def __init__(self, span: Any, resource: Any) -> None:
        self.name: str = span.name
        self.id: str = span.span_id.hex()
        self.trace: str = span.trace_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.kind: int = span.kind
        self.attributes = values(span.attributes)
        self.resource = values(resource.attributes)
        self.nanoseconds: int = span.end_time_unix_nano - span.start_time_unix_nano


def values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@asynccontextmanager
async def receiver() -> AsyncIterator[tuple[str, list[Span]]]:
    """The URL of a receiver of OTLP over HTTP, and the spans that it has received."""
    spans: list[Span] = []

    async def receive(request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for group in sent.resource_spans:
            for scope in group.scope_spans:
                spans.extend(Span(span, group.resource) for span in scope.spans)
        return web.Response(content_type="application/x-protobuf")

    application = web.Application(client_max_size=64 << 20)
    application.router.add_post("/v1/traces", receive)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2]), spans
    finally:
        await runner.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_requests_and_runs_are_traced(database_url: str, workers: str) -> None:
    async with (
        receiver() as (url, spans),
        live_service(database_url, "--workers", workers, OTEL_EXPORTER_OTLP_ENDPOINT=url) as service,
        aiohttp.ClientSession(service.url) as client,
    ):
        headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-ID": "traced"}
        async with client.get("/data/csv/nosuch", headers=headers) as response:
            assert response.status == 404
    assert "traces_off" not in {event["event"] for event in service.log}
    by_id = {span.id: span for span in spans}

    def ancestors(span: Span) -> list[str]:
        parent = by_id.get(span.parent)
        return [] if parent is None else [parent.name, *ancestors(parent)]

    (request,) = [span for span in spans if span.attributes.get("kasparro.request_id") == "traced"]
    assert (request.name, request.kind) == ("GET /data/{source}/{source_id}", 2)
    assert (request.trace, request.parent) == (TRACE_ID, PARENT_ID)
    assert request.attributes["http.response.status_code"] == 404
    assert request.resource["service.name"] == "kasparro"
    queries = [span for span in spans if span.parent == request.id]
    assert queries
    assert {query.attributes["db.system.name"] for query in queries} == {"postgresql"}
    assert "nosuch" not in str([query.attributes for query in queries])

    (run,) = [span for span in spans if span.name == "run"]
    assert run.attributes == {"kasparro.run": 1, "kasparro.trigger": "startup"}
    sources = [span for span in spans if span.name == "source run"]
    assert {span.attributes["kasparro.source"] for span in sources} == {"coingecko", "coinpaprika", "csv"}
    assert {span.parent for span in sources} == {run.id}
    batches = [span for span in spans if span.name == "batch"]
    assert {tuple(ancestors(span)) for span in batches} == {("source run", "run")}
    assert sum(span.attributes["kasparro.records"] for span in batches) > 300
    assert any(ancestors(span)[:2] == ["batch", "source run"] for span in spans if span.name == "SELECT")
    calls = [span for span in spans if span.name == "upstream call"]
    assert {span.attributes["http.response.status_code"] for span in calls} == {200}
    assert {"/tickers", "/coins/markets"} <= {span.attributes["url.path"] for span in calls}
    assert all(0 <= span.nanoseconds < 60e9 for span in spans)


@pytest.mark.slow
async def test_run_of_a_command_is_sent_before_it_exits(database_url: str) -> None:
    async with receiver() as (url, spans):
        code, _, err = await run_command(
            *("etl", "--source", "csv"),
            DATABASE_URL=database_url,
            OTEL_EXPORTER_OTLP_ENDPOINT=url,
            OTEL_SERVICE_NAME="nightly",
        )
    assert code == 0, err
    assert {span.resource["service.name"] for span in spans} == {"nightly"}
    assert "run" in {span.name for span in spans}


@pytest.mark.slow
async def test_nothing_is_imported_without_the_variables() -> None:
    code = (
        "import sys; from kasparro import tracing; import kasparro.web.server, kasparro.cli.commands;"
        "tracing.configure(); sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_SERVICE_NAME": "a"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, False),
    ],
)
def test_standard_variables_decide(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.is_wanted(environ) is wanted


async def test_missing_package_is_one_clear_line(logged: LogEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing.configure({"OTEL_TRACES_EXPORTER": "otlp"})
    reason = "OpenTelemetry is not installed: pip install 'kasparro[otel]'"
    assert logged.seen == [{"level": "warning", "event": "traces_off", "reason": reason}]


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
    ],
)
async def test_other_exporters_are_named(logged: LogEvents, environ: dict[str, str]) -> None:
    tracing.configure(environ)
    (event,) = logged.seen
    assert event["event"] == "traces_off"
    assert "http/protobuf" in event["reason"]
