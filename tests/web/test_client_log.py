"""What clients cause is logged at a bounded rate, and never as an error."""

import asyncio

import aiohttp
import pytest

from kasparro.store.pool import Connection
from tests.conftest import LogEvents
from tests.web.conftest import serving
from tests.web.http.test_protocol import NOWHERE
from tests.web.routes.test_exports import begun, exports, many

REQUESTS = 300


async def test_requests_without_a_database_make_a_few_lines(logged: LogEvents) -> None:
    async with serving(NOWHERE) as client:

        async def ask(number: int) -> int:
            async with client.get(f"/data/csv/{number}") as answer:
                return answer.status

        statuses = await asyncio.gather(*map(ask, range(REQUESTS)))
    lines = [event for event in logged.seen if event["level"] != "debug"]
    assert statuses == [503] * REQUESTS
    assert {event["event"] for event in lines} == {"database_unreachable"}
    assert {event["level"] for event in lines} == {"warning"}
    # One at once, and one for each period that the requests took.
    assert len(lines) < REQUESTS / 10


async def test_an_interrupted_export_is_a_warning_with_its_reason(
    client: aiohttp.ClientSession,
    connection: Connection,
    logged: LogEvents,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await many(connection)
    async with begun(client) as answer:
        (pid,) = await exports(connection)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    (event,) = await logged.reached(1, "response_interrupted", level="warning")
    assert event["path"] == "/data.ndjson"
    assert "PostgreSQL" in event["reason"]
    assert "error" not in {seen["level"] for seen in logged.seen}
    # Our server cuts the connection itself, so nothing is raised into it.
    assert [record for record in caplog.records if record.exc_info] == []
