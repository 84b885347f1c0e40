"""GET /stream sends each committed version and the progress of runs, and resumes where a client stopped."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
import pytest

from kasparro.settings import ApiKey, Secret, Settings
from kasparro.store import changes
from kasparro.store.data_version import DataVersion
from kasparro.store.pool import Connection, Database
from kasparro.store.row_versions import CURSOR_LIFETIME, delete_expired
from kasparro.store.runs import RunRecord
from kasparro.supervision import Supervisor
from kasparro.web import stream
from kasparro.web.http.request_metrics import Counts
from kasparro.web.stream import Filter, Streams, _Step
from tests.conftest import LogEvents, copied_database
from tests.support.assets import make_link, resolve
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.citus import counts_versions
from tests.support.commands import listening_url, started_command
from tests.support.event_stream import Event, EventReader, event_stream
from tests.support.json_responses import get_json
from tests.support.metrics import metric_value, scrape
from tests.support.raw_http import connected
from tests.web.conftest import service, serving
from tests.web.http.test_other_server import hypercorn_service

pytestmark = pytest.mark.slow

_minutes = itertools.count()


async def commit(database: Database, *ids: str, source: str = "coinpaprika") -> None:
    """Commit a version in which these rows change."""
    at = datetime.now(UTC) + timedelta(minutes=next(_minutes))
    records = [make_record(each, at=at, price_usd=Decimal(next(_minutes) + 1)) for each in ids]
    # With the lock of a run, because a service ends the batches of a run without it.
    await load_batches(database, make_batch(*records), source=source)


def limits(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Change the limits of streams."""
    monkeypatch.setattr(Streams, "limits", msgspec.structs.replace(Streams.limits, **changed))


def rows(event: Event) -> set[str]:
    """The source_ids in an event, which must be whole."""
    changed = event.data["changed"]
    assert changed["count"] == len(changed["rows"])
    assert not event.data["truncated"]
    return {source_id for _, source_id in changed["rows"]}


async def drain(events: EventReader) -> Event:
    """The version that a stream begins with."""
    return await events.next("version", "reset")


# Events


@counts_versions
async def test_stream_begins_with_the_current_version_and_the_newest_run(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await commit(database, "btc")

    async with event_stream(client) as events:
        version, run = await events.next(), await events.next()

    assert version.kind == "version"
    assert version.data["data_version"] == 1
    assert version.data["committed_at"].endswith("Z")
    assert version.data["run"] == 1
    assert version.data["changed"] == {"count": 0, "rows": [], "assets": []}
    assert run.kind == "run"
    shown = await get_json(client, "/runs/1")
    unsettled = {"duration_s", "sources"}
    assert run.data.keys() == shown.keys()
    assert all(run.data[name] == shown[name] for name in shown.keys() - unsettled)


async def test_empty_database_has_a_version_and_no_run(client: aiohttp.ClientSession) -> None:
    async with event_stream(client) as events:
        version = await events.next()

    assert (version.data["data_version"], version.data["committed_at"]) == (0, None)


@counts_versions
async def test_commit_is_sent_with_its_rows_and_assets(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await commit(database, "btc-bitcoin")
    await resolve(database, make_link("coinpaprika"))
    async with event_stream(client) as events:
        await drain(events)
        await commit(database, "btc-bitcoin", "eth-ethereum")
        event = await events.next("version")

    assert event.data["data_version"] == 3
    assert event.data["changed"] == {
        "count": 2,
        "rows": [["coinpaprika", "btc-bitcoin"], ["coinpaprika", "eth-ethereum"]],
        "assets": ["btc-bitcoin"],
    }
    assert event.data["truncated"] is False


async def test_row_that_got_an_asset_is_one_row(client: aiohttp.ClientSession, database: Database) -> None:
    await commit(database, "btc-bitcoin")
    async with event_stream(client) as events:
        await drain(events)
        await resolve(database, make_link("coinpaprika"))
        assert rows(await events.next("version")) == {"btc-bitcoin"}


async def test_every_row_that_changed_is_in_some_event(
    client: aiohttp.ClientSession, database: Database
) -> None:
    """Versions that come faster than the events are merged, and nothing is lost."""
    async with event_stream(client) as events:
        await drain(events)
        for number in range(10):
            await commit(database, f"coin-{number}")
        seen: set[str] = set()
        versions = [0]
        while len(seen) < 10:
            event = await events.next("version")
            seen |= rows(event)
            versions.append(event.data["data_version"])

    assert seen == {f"coin-{number}" for number in range(10)}
    assert versions == sorted(set(versions))
    assert len(versions) < 10


async def test_long_lists_are_truncated_and_counted(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(monkeypatch, listed=2)
    async with event_stream(client) as events:
        await drain(events)
        await commit(database, "a", "b", "c")
        event = await events.next("version")

    assert event.data["truncated"] is True
    assert event.data["changed"]["count"] == 3
    assert event.data["changed"]["rows"] == [["coinpaprika", "a"], ["coinpaprika", "b"]]


async def test_run_is_sent_while_it_works_and_once_at_its_end(
    client: aiohttp.ClientSession, database: Database
) -> None:
    async with event_stream(client) as events:
        await drain(events)
        run = await RunRecord.start(database, "etl", ("csv",), datetime.now(UTC))
        statuses = [(await events.next("run")).data["status"] for _ in range(2)]
        async with database.writing() as connection:
            await connection.execute(
                "UPDATE runs SET status = 'succeeded', finished_at = now() WHERE id = $1", run.id
            )
        while statuses[-1] == "running":
            statuses.append((await events.next("run")).data["status"])
        await commit(database, "btc")
        event = await events.next()

    assert statuses[-1] == "succeeded"
    assert set(statuses[:-1]) == {"running"}
    assert event.kind == "version"


async def test_run_that_ended_between_two_looks_is_sent(
    client: aiohttp.ClientSession, database: Database
) -> None:
    async with database.writing() as connection, event_stream(client) as events:
        await drain(events)
        await connection.execute(
            "INSERT INTO runs (trigger, status, started_at, finished_at)"
            " SELECT 'etl', 'succeeded', now(), now() FROM generate_series(1, 3)"
        )
        seen = [(await events.next("run")).data["id"] for _ in range(3)]

    assert seen == [1, 2, 3]


# Filters


@counts_versions
@pytest.mark.parametrize("query", ["?asset=btc-bitcoin", "?asset=nosuch,btc-bitcoin", "?source=coingecko"])
async def test_filter_leaves_out_other_versions(
    client: aiohttp.ClientSession, database: Database, query: str
) -> None:
    await commit(database, "bitcoin", source="coingecko")
    await commit(database, "eth-ethereum")
    link = make_link("coingecko", source_id="bitcoin")
    await resolve(database, link, make_link("coinpaprika", "eth-ethereum", "eth-ethereum"))
    async with event_stream(client, query) as events, event_stream(client) as others:
        await drain(events)
        await drain(others)
        await commit(database, "eth-ethereum")
        assert rows(await others.next("version")) == {"eth-ethereum"}
        await commit(database, "bitcoin", source="coingecko")
        event = await events.next("version")

    assert event.data["data_version"] == 5
    assert event.data["changed"] == {
        "count": 1,
        "rows": [["coingecko", "bitcoin"]],
        "assets": ["btc-bitcoin"],
    }


async def test_filter_by_asset_hears_of_a_row_that_left_it(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await commit(database, "btc-bitcoin")
    await resolve(database, make_link("coinpaprika"))
    async with event_stream(client, "?asset=btc-bitcoin") as events:
        await drain(events)
        await resolve(database, ended={("coinpaprika", "btc-bitcoin"): datetime.now(UTC)})
        assert rows(await events.next("version")) == {"btc-bitcoin"}


@counts_versions
async def test_filtered_stream_gets_the_ids_of_other_versions(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client for which nothing changes would once be too far behind to resume."""
    limits(monkeypatch, heartbeat_s=0.1)
    async with event_stream(client, "?source=csv") as events:
        before = (await drain(events)).last_id
        await commit(database, "btc")
        while (after := await events.next_id()) == before:
            pass

    assert after.split("-")[1] == "1"


def step(*rows: tuple[str, str, str]) -> _Step:
    """The way to a version in which these rows and their assets changed."""
    state = changes.State(
        database="0" * 12,
        version=1,
        manual_edits=0,
        oldest_version=0,
        committed_at=None,
        committed_by_run=None,
        run_id=None,
        run_status=None,
    )
    assets = list(dict.fromkeys(asset for _, _, asset in rows))
    return _Step(changes.Changes(state, rows, assets), None, Streams.limits.listed)


def is_kept(step: _Step, *assets: str) -> bool:
    """Whether the event for clients with this filter is rendered only once."""
    wanted = Filter(frozenset(assets))
    return step.event(wanted, always=False) is step.event(wanted, always=False)


def test_filter_by_asset_lists_the_leading_assets_first() -> None:
    changed = step(*(("coingecko", asset, asset) for asset in "cab"))

    assert b'"assets":["c","b"]' in changed.event(Filter(frozenset("bcx")), always=False)


def test_events_of_short_filters_are_kept() -> None:
    coins = [f"coin-{number}" for number in range(21)]
    changed = step(*(("coingecko", coin, coin) for coin in coins))

    assert is_kept(changed)
    assert is_kept(changed, *coins[:20])
    assert not is_kept(changed, *coins)


def test_events_that_are_kept_have_a_bound_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = step(("coingecko", "a", "a"), ("coingecko", "b", "b"))
    size = len(changed.event(Filter(frozenset("a")), always=False))
    monkeypatch.setattr(stream, "EVENT_BYTES", size)

    assert is_kept(changed, "a")
    assert not is_kept(changed, "b")
    assert is_kept(changed)


@pytest.mark.parametrize("query", ["?source=binance", "?coin=btc", "?asset=", "?asset=a&limit=5"])
async def test_wrong_parameter_is_a_problem(client: aiohttp.ClientSession, query: str) -> None:
    assert (await get_json(client, f"/stream{query}", 400))["title"] == "Invalid parameter"


# Resuming


@counts_versions
@pytest.mark.parametrize("as_header", [True, False])
async def test_client_resumes_after_a_restart(database_url: str, database: Database, as_header: bool) -> None:
    async with serving(database_url) as client, event_stream(client) as events:
        last_id = (await drain(events)).last_id
    await commit(database, "a")
    await commit(database, "b")

    async with serving(database_url) as client:
        query, headers = ("?last_event_id=x", {"Last_Event_ID": last_id}) if as_header else ("", {})
        async with event_stream(client, query or f"?last_event_id={last_id}", **headers) as events:
            event = await events.next()

    assert event.kind == "version"
    assert event.data["data_version"] == 2
    assert rows(event) == {"a", "b"}


async def test_client_resumes_after_kill_9(database_url: str, database: Database) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json"}
    async with (
        started_command("serve", PORT="0", **environment) as process,
        aiohttp.ClientSession(await listening_url(process)) as client,
        event_stream(client) as events,
    ):
        await drain(events)
        await commit(database, "a")
        event = await events.next("version")
        process.kill()
        with pytest.raises((EOFError, aiohttp.ClientPayloadError)):
            await events.next("version")
    await commit(database, "b")

    async with (
        service(database_url) as client,
        event_stream(client, Last_Event_ID=event.last_id) as events,
    ):
        assert rows(await events.next()) == {"b"}


async def test_each_worker_sends_and_resumes_the_same(database_url: str, database: Database) -> None:
    async with service(database_url, "--workers", "2") as client, AsyncExitStack() as stack:
        # Enough for both workers to have some.
        streams = [await stack.enter_async_context(event_stream(client)) for _ in range(8)]
        first_ids = {(await drain(events)).last_id for events in streams}
        await commit(database, "a")
        sent = [await events.next("version") for events in streams]
        resumed = []
        for _ in range(8):
            async with event_stream(client, Last_Event_ID=next(iter(first_ids))) as events:
                resumed.append(await events.next())

    assert len(first_ids) == 1
    assert len({msgspec.json.encode(event) for event in sent}) == 1
    assert {frozenset(rows(event)) for event in resumed} == {frozenset({"a"})}


async def test_client_that_missed_nothing_gets_no_reset(
    client: aiohttp.ClientSession, database: Database
) -> None:
    await commit(database, "a")
    async with event_stream(client) as events:
        last_id = (await drain(events)).last_id
    async with event_stream(client, Last_Event_ID=last_id) as events:
        event = await events.next()

    assert (event.kind, event.last_id) == ("version", last_id)
    assert rows(event) == set()


async def test_last_client_that_disconnects_ends_the_search_for_changes(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch, known_id: str
) -> None:
    """The next client that resumes there starts another search."""
    await commit(database, "b")
    real = changes.changes
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(connection: Connection, since: int) -> changes.Changes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("unreachable")

    monkeypatch.setattr(changes, "changes", endless)
    async with connected(client) as alone:
        request = f"GET /stream HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {known_id}\r\n\r\n"
        alone.writer.write(request.encode())
        async with asyncio.timeout(20):
            await started.wait()
    async with asyncio.timeout(20):
        await ended.wait()
    monkeypatch.setattr(changes, "changes", real)
    async with event_stream(client, Last_Event_ID=known_id) as events:
        assert rows(await events.next()) == {"b"}


async def test_client_that_disconnects_leaves_the_search_to_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(database, "a")
    await commit(database, "b")
    real, asked = changes.changes, []
    started, released = asyncio.Event(), asyncio.Event()

    async def waiting(connection: Connection, since: int) -> changes.Changes:
        asked.append(since)
        started.set()
        await released.wait()
        return await real(connection, since)

    monkeypatch.setattr(changes, "changes", waiting)
    streams = Streams(database, DataVersion(database, lambda: None), Counts(), Supervisor())
    (_, current, _) = await streams.first_event(Filter(), None, "x")
    position = msgspec.structs.replace(current, version=1)
    first, second = [
        asyncio.create_task(streams.first_event(Filter(), position, client)) for client in ("x", "y")
    ]
    await started.wait()
    first.cancel()
    await asyncio.wait([first])
    released.set()

    text, reached, _ = await second
    assert b'[["coinpaprika","b"]]' in text
    assert reached == current
    # Its own search ended with it.
    assert asked == [1, 1]


async def test_version_that_another_process_sent_earlier_is_no_reset(database: Database) -> None:
    streams, other = (
        Streams(database, DataVersion(database, lambda: None), Counts(), Supervisor()) for _ in range(2)
    )
    await streams.first_event(Filter(), None, "x")
    await commit(database, "a")
    _, position, _ = await other.first_event(Filter(), None, "x")

    text, _, _ = await streams.first_event(Filter(), position, "x")

    assert b"event: version" in text


@pytest.fixture
async def known_id(client: aiohttp.ClientSession, database: Database) -> str:
    """The id of the newest version of a database with two."""
    await commit(database, "a")
    await commit(database, "a")
    async with event_stream(client) as events:
        last_id = (await drain(events)).last_id
    # An open stream would look for the changes of later versions itself.
    async with asyncio.timeout(20):
        while metric_value(await scrape(client), "kasparro_streams"):
            pass
    return last_id


@counts_versions
@pytest.mark.parametrize("last_id", ["nonsense", "0-0-0", "ffffffffffff-1-0", "1" * 200])
async def test_unknown_id_resets(client: aiohttp.ClientSession, known_id: str, last_id: str) -> None:
    async with event_stream(client, Last_Event_ID=last_id) as events:
        event = await events.next()

    assert (event.kind, event.last_id, event.data["data_version"]) == ("reset", known_id, 2)
    assert event.data["reason"] == "the last event id is not one of this database"


async def test_id_of_another_database_resets(
    server_url: str, template: str, database_url: str, known_id: str
) -> None:
    async with copied_database(server_url, template) as other_url, Database(other_url) as other:
        async with other.writing() as connection:
            await connection.execute("UPDATE instance SET cursor_key = 'another'")
        async with serving(other_url) as client, event_stream(client, Last_Event_ID=known_id) as events:
            assert (await events.next()).kind == "reset"


async def test_restored_database_resets_open_streams_and_later_ones(
    client: aiohttp.ClientSession, database: Database, connection: Connection, known_id: str
) -> None:
    async with event_stream(client) as events:
        await drain(events)
        await connection.execute("UPDATE instance SET data_version = 1, counted_versions = 1")
        event = await events.next("reset", "version")
    async with event_stream(client, Last_Event_ID=known_id) as later:
        assert (await later.next()).kind == "reset"

    assert event.kind == "reset"
    assert event.data["reason"] == "the database is older than the last event"


async def test_manual_change_resets(client: aiohttp.ClientSession, connection: Connection) -> None:
    async with event_stream(client) as events:
        await drain(events)
        await connection.execute("UPDATE instance SET data_version = data_version + 1")
        event = await events.next("reset", "version")

    assert (event.kind, event.data["data_version"], event.data["committed_at"]) == ("reset", 1, None)


async def test_id_that_is_too_old_resets(
    client: aiohttp.ClientSession, database: Database, known_id: str
) -> None:
    await commit(database, "a")
    await delete_expired(database, datetime.now(UTC) + timedelta(days=9) + CURSOR_LIFETIME)
    async with event_stream(client, Last_Event_ID=known_id) as events:
        event = await events.next()

    assert (event.kind, event.data["reason"]) == ("reset", "the last event is too old")


@counts_versions
async def test_stream_whose_changes_cannot_be_read_delays_no_other(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing, failed = changes.changes, True, asyncio.Event()

    async def failing_at_first(connection: Connection, since: int) -> changes.Changes:
        if since == 0 and failing:
            failed.set()
            raise asyncpg.QueryCanceledError("statement timeout")
        return await real(connection, since)

    monkeypatch.setattr(changes, "changes", failing_at_first)
    async with event_stream(client) as waiting:
        await drain(waiting)
        await commit(database, "a")
        async with asyncio.timeout(20):
            await failed.wait()
        async with event_stream(client) as later:
            assert (await drain(later)).data["data_version"] == 1
            await commit(database, "b")
            assert rows(await later.next("version")) == {"b"}
        failing = False
        assert rows(await waiting.next("version")) == {"a", "b"}


@counts_versions
async def test_changes_are_read_once_for_all_streams(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = changes.changes, []

    async def counted(connection: Connection, since: int) -> changes.Changes:
        asked.append(since)
        return await real(connection, since)

    monkeypatch.setattr(changes, "changes", counted)
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(event_stream(client)) for _ in range(20)]
        for events in streams:
            last_id = (await drain(events)).last_id
        await commit(database, "a")
        for events in streams:
            assert rows(await events.next("version")) == {"a"}
        for _ in range(5):
            async with event_stream(client, Last_Event_ID=last_id) as resumed:
                assert rows(await resumed.next()) == {"a"}

    assert asked == [0]


# Replicas


async def test_replica_that_is_behind_delays_no_stream_until_the_next_commit(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = changes.changes, []

    async def behind_at_first(connection: Connection, since: int) -> changes.Changes:
        found = await real(connection, since)
        asked.append(since)
        if len(asked) > 1:
            return found
        return changes.Changes(msgspec.structs.replace(found.state, version=since), (), ())

    monkeypatch.setattr(changes, "changes", behind_at_first)
    async with serving(database_url, read_url=database_url) as client, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(event_stream(client)) for _ in range(3)]
        for events in streams:
            await drain(events)
        await commit(database, "a")
        for events in streams:
            assert rows(await events.next("version")) == {"a"}

    assert asked == [0, 0]


async def test_failover_that_lost_versions_resets_open_streams_and_later_ones(
    database_url: str,
    database: Database,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    logged: LogEvents,
) -> None:
    monkeypatch.setattr(stream, "LOST_S", 1.0)
    await commit(database, "a")
    await commit(database, "b")
    async with serving(database_url, read_url=database_url) as client, event_stream(client) as events:
        last_id = (await drain(events)).last_id
        await connection.execute("UPDATE instance SET data_version = 1, counted_versions = 1")
        opened = await events.next("reset", "version")
        async with event_stream(client, Last_Event_ID=last_id) as later:
            resumed = await later.next("reset", "version")
        await commit(database, "c")
        assert "c" in rows(await events.next("version"))

    for event in (opened, resumed):
        assert (event.kind, event.data["data_version"]) == ("reset", 1)
        assert event.data["reason"] == "the database is older than the last event"
    assert [event["found"] for event in logged.seen if event["event"] == "stream_versions_lost"] == [1]


@counts_versions
async def test_replica_that_is_behind_for_a_moment_resets_nothing(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, behind, shown = changes.state, False, asyncio.Event()

    async def state(connection: Connection) -> changes.State:
        found = await real(connection)
        if not behind:
            return found
        shown.set()
        return msgspec.structs.replace(found, version=1)

    monkeypatch.setattr(changes, "state", state)
    await commit(database, "a")
    await commit(database, "b")
    async with serving(database_url, read_url=database_url) as client, event_stream(client) as events:
        await drain(events)
        behind = True
        async with asyncio.timeout(20):
            await shown.wait()
        behind = False
        await commit(database, "c")
        event = await events.next("reset", "version")

    assert (event.kind, event.data["data_version"]) == ("version", 3)


# The connection


async def test_headers(client: aiohttp.ClientSession) -> None:
    async with event_stream(client) as events:
        headers = events.response.headers
    async with client.head("/stream") as response:
        head = response.headers

    for found in (headers, head):
        assert found["Content-Type"] == "text/event-stream; charset=utf-8"
        assert found["Cache-Control"] == "no-store"
        assert found["X-Accel-Buffering"] == "no"
        assert "X-Request-ID" in found
        assert "Content-Length" not in found
        assert "Content-Encoding" not in found


async def test_comments_keep_an_idle_stream_alive(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(monkeypatch, heartbeat_s=0.1)
    async with event_stream(client) as events:
        await drain(events)
        before = events.comments
        while events.comments < before + 2:
            await events.next_id()


async def test_key_is_needed_if_set(database_url: str) -> None:
    settings = Settings(api_keys=(ApiKey("alice", Secret("secret")),))
    async with serving(database_url, settings) as client:
        assert (await get_json(client, "/stream", 401))["status"] == 401
        async with event_stream(client, X_API_Key="secret") as events:
            await drain(events)


async def test_client_has_a_share_of_the_streams(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits(monkeypatch, total=3, per_client=2)
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings) as client, AsyncExitStack() as stack:

        async def opened(address: str) -> EventReader:
            return await stack.enter_async_context(event_stream(client, X_Forwarded_For=address))

        for _ in range(2):
            await drain(await opened("192.0.2.1"))
        async with client.get("/stream", headers={"X-Forwarded-For": "192.0.2.1"}) as rejected:
            problem = await rejected.json(content_type="application/problem+json")
            assert rejected.status == 429
            assert rejected.headers["Retry-After"]
        await drain(await opened("192.0.2.2"))
        async with client.get("/stream", headers={"X-Forwarded-For": "192.0.2.3"}) as full:
            assert full.status == 503
        async with client.get("/data") as others:
            assert others.status == 200

    assert problem["type"] == "urn:kasparro:problem:too-many-streams"
    assert problem["detail"] == "A client can have 2 streams open."


async def test_streams_leave_connections_for_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kasparro.web.server._connection_limit", lambda: 8)
    settings = Settings(trusted_proxies=("127.0.0.1",))
    async with serving(database_url, settings) as client, AsyncExitStack() as stack:
        for _ in range(6):
            await drain(await stack.enter_async_context(event_stream(client)))
        async with client.get("/stream") as rejected:
            assert rejected.status == 429
        async with client.get("/data") as others:
            assert others.status == 200


async def test_place_of_a_closed_stream_is_free_again(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(monkeypatch, per_client=1)
    for _ in range(3):
        async with event_stream(client) as events:
            await drain(events)
        async with asyncio.timeout(20):
            while metric_value(await scrape(client), "kasparro_streams"):
                pass


async def test_slow_client_is_dropped_and_others_get_everything(
    client: aiohttp.ClientSession, database: Database, monkeypatch: pytest.MonkeyPatch, logged: LogEvents
) -> None:
    limits(monkeypatch, write_s=0.2, listed=100_000)
    ids = [f"{'x' * 150}-{number}" for number in range(2_000)]
    async with event_stream(client) as events, connected(client, window=4_096) as slow:
        await drain(events)
        slow.writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await slow.reader.readuntil(b"event: version")
        # Many times what the socket buffers of the slow client hold.
        while not [event for event in logged.seen if event["event"] == "slow_stream_aborted"]:
            await commit(database, *ids)
            assert rows(await events.next("version")) == set(ids)
        async with asyncio.timeout(20):
            while metric_value(samples := await scrape(client), "kasparro_streams") != 1:
                pass

    assert metric_value(samples, "kasparro_streams_dropped_total") == 1


async def test_stream_is_no_slow_request(client: aiohttp.ClientSession) -> None:
    async with event_stream(client) as events:
        await drain(events)
        await asyncio.sleep(0.3)
    async with asyncio.timeout(20):
        while metric_value(samples := await scrape(client), "kasparro_streams"):
            pass

    route = {"route": "/stream"}
    total = metric_value(samples, "kasparro_http_request_duration_seconds_sum", **route)
    assert metric_value(samples, "kasparro_http_requests_total", **route) == 1
    assert total is not None
    assert total < 0.3


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_stop_ends_streams_at_once(database_url: str, workers: str) -> None:
    """A stream ends properly, so that its client reconnects."""
    async with service(database_url, "--workers", workers) as client, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(event_stream(client)) for _ in range(4)]
        for events in streams:
            await drain(events)
        for worker in {dict(labels).get("worker") for name, labels in await scrape(client)} - {None}:
            os.kill(int(worker or 0), signal.SIGTERM)
        for events in streams:
            await events.end()


async def test_streams_outlast_an_unreachable_database(
    server_url: str, database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(monkeypatch, heartbeat_s=0.1)
    async with serving(database_url) as client, event_stream(client) as events:
        await drain(events)
        async with blocked(server_url, database_url):
            before = events.comments
            while events.comments < before + 3:
                await events.next_id()
        await commit(database, "a")
        assert rows(await events.next("version")) == {"a"}


@asynccontextmanager
async def blocked(server_url: str, database_url: str) -> AsyncIterator[None]:
    """A block in which nobody can connect to the database."""
    name = urlsplit(database_url).path.removeprefix("/")
    server = await asyncpg.connect(server_url)
    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    await server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
    yield
    await server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    await server.close()


async def test_other_server_sends_resumes_and_stops(database_url: str, database: Database) -> None:
    async with hypercorn_service(database_url) as client:
        async with event_stream(client) as events:
            last_id = (await drain(events)).last_id
            await commit(database, "a")
            assert rows(await events.next("version")) == {"a"}
        async with asyncio.timeout(20):
            while metric_value(await scrape(client), "kasparro_streams"):
                pass
        events_of_open = await client.get("/stream", headers={"Last-Event-ID": last_id})
        assert rows(await EventReader(events_of_open).next()) == {"a"}
    events_of_open.close()
