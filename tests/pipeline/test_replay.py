"""Payloads that a run stores, and runs that replay them."""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import msgspec
import pytest
from aiohttp import web

from kasparro.model.payload import Payload, Retention
from kasparro.pipeline.identity import AssetOptions
from kasparro.pipeline.replay import NothingToReplay, prepare_replay
from kasparro.pipeline.run import Run
from kasparro.settings import Secret
from kasparro.simulator import Simulator
from kasparro.simulator.faults import AnyFault, Html, Huge, NotAnArray, Reset, Status, Truncated
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.store import payloads
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord, last_start
from kasparro.web import reports
from tests.conftest import LogEvents
from tests.support.runs import QUICK, apis, run_sources, source_outcomes, table_contents

pytestmark = pytest.mark.slow

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


async def fetch(database: Database, sources: list[Source], **options: Any) -> int:
    """One run that stores its payloads; returns its id."""
    async with Run(database, sources, "etl", **{"retention": Retention(), **options}) as run:
        await run.work(asyncio.Event())
    return run.id


async def replay(database: Database, run_id: int, **options: Any) -> str:
    """Replay a run; returns the status."""
    prepared = await prepare_replay(database, run_id)
    return await run_sources(
        database, prepared.sources, trigger="replay", fetched_at=prepared.fetched_at, **options
    )


async def stored_payloads(database: Database, connection: Connection, run_id: int) -> list[Payload]:
    """The payloads of a run in order, decompressed."""
    ids = await connection.fetch("SELECT id FROM payloads WHERE run_id = $1 ORDER BY id", run_id)
    found = [await payloads.read(database, row["id"]) for row in ids]
    assert None not in found
    return [payload for payload in found if payload is not None]


async def test_every_call_stores_its_payload(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    moment = datetime.now(UTC).replace(microsecond=123_456)

    run_id = await fetch(database, apis(simulator)[1:], clock=lambda: moment)

    *pages, contracts = await stored_payloads(database, connection, run_id)
    assert (contracts.path, contracts.parameters) == ("/coins/list", {"include_platform": "true"})
    assert [(page.path, page.parameters["page"], page.status) for page in pages] == [
        ("/coins/markets", number, 200) for number in ("1", "2", "3", "4")
    ]
    assert all(page.succeeded and page.received_at == moment for page in pages)
    assert all(page.headers["content-type"].startswith("application/json") for page in pages)
    assert all({"date", "etag"} <= page.headers.keys() for page in pages)
    ids = [item["id"] for page in pages for item in msgspec.json.decode(page.body)]
    assert ids == [quote.id for quote in simulator.market.listing("coingecko")]
    row = await connection.fetchrow(
        "SELECT sum(raw_bytes) AS raw, sum(compressed_bytes) AS compressed, sum(octet_length(body)) "
        "AS stored FROM payloads"
    )
    assert row is not None
    assert row["compressed"] == row["stored"] < row["raw"] / 3


@pytest.mark.parametrize(
    ("fault", "status", "complete", "begins"),
    [
        (Status(api="coingecko", code=429, retry_after=3, times=1), 429, True, b'{"status"'),
        (Html(api="coingecko", times=1), 200, True, b"<!DOCTYPE html>"),
        (Truncated(api="coingecko", times=1), 200, False, b'[{"id"'),
        (NotAnArray(api="coingecko", times=1), 200, True, b'{"data":[]}'),
        (Reset(api="coingecko", times=1), None, False, b""),
    ],
)
async def test_unusable_payloads_are_stored_but_not_replayed(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    fault: AnyFault,
    status: int | None,
    complete: bool,
    begins: bytes,
) -> None:
    simulator.add_fault(msgspec.structs.replace(fault, page=None if status is None else 2))
    limits = msgspec.structs.replace(QUICK, total_s=30)
    source = CoinGecko(simulator.coingecko_url, "public", None, limits)

    run_id = await fetch(database, [source])

    bad, *_ = [
        payload
        for payload in await stored_payloads(database, connection, run_id)
        if not payload.body.endswith(b"}]")
    ]
    assert (bad.status, bad.complete) == (status, complete)
    assert bad.body.startswith(begins)
    before = await table_contents(database._url)
    await connection.execute("TRUNCATE unified_data, unified_history")
    assert await replay(database, run_id) == "succeeded"
    assert await table_contents(database._url) == before


@asynccontextmanager
async def echoing_upstream(key: str) -> AsyncIterator[str]:
    """An upstream that repeats the rejected key in body and header."""

    async def reject(request: web.BaseRequest) -> web.Response:
        sent = request.headers["x-cg-demo-api-key"]
        assert sent == key
        return web.Response(
            status=401, text=f"the key {sent} is not known", headers={"X-Request-Id": f"{sent}-1"}
        )

    runner = web.ServerRunner(web.Server(reject))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_payload_holds_no_api_key(database: Database, connection: Connection) -> None:
    """An upstream may repeat the key in its body and headers."""
    key = "CG-hunter2hunter2"
    async with echoing_upstream(key) as url:
        run_id = await fetch(database, [CoinGecko(url, "demo", Secret(key), QUICK)])

    (payload,) = await stored_payloads(database, connection, run_id)
    assert payload.status == 401
    assert payload.body == b"the key *** is not known"
    assert payload.headers["x-request-id"] == "***-1"
    assert key not in await connection.fetchval("SELECT payloads::text FROM payloads")


async def test_endless_body_is_stored_truncated(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Huge(api="coinpaprika", megabytes=70))
    source = apis(simulator)[0]

    run_id = await fetch(database, [source])

    for payload in await stored_payloads(database, connection, run_id):
        assert (payload.complete, len(payload.body)) == (False, 1 << 20)


async def test_replay_refills_empty_tables(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    """It makes no upstream calls."""
    run_id = await fetch(database, apis(simulator))
    first = await source_outcomes(connection)
    before = await table_contents(database._url)
    calls = len(simulator.calls)
    crawls = "SELECT api_calls.*, pages.* FROM api_calls JOIN pages USING (source) ORDER BY 1, number"
    counted = await connection.fetch(crawls)
    await connection.execute("TRUNCATE unified_data, unified_history")

    assert await replay(database, run_id) == "succeeded"

    assert await table_contents(database._url) == before
    again = await source_outcomes(connection)
    for name, source in first.items():
        for figure in ("fetched", "valid", "rejected", "inserted", "updated", "unchanged"):
            assert again[name][figure] == source[figure]
        assert again[name]["calls"] == 0
    assert len(simulator.calls) == calls
    assert await connection.fetch(crawls) == counted
    assert await connection.fetchval("SELECT trigger FROM runs ORDER BY id DESC LIMIT 1") == "replay"


async def test_replay_of_unchanged_data_writes_nothing(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    run_id = await fetch(database, apis(simulator))
    before = await table_contents(database._url)

    assert await replay(database, run_id) == "succeeded"

    assert await table_contents(database._url) == before
    for source in (await source_outcomes(connection)).values():
        assert (source["inserted"], source["updated"], source["corrected"]) == (0, 0, 0)
        assert source["unchanged"] == source["valid"] > 500


def markets(*coins: Mapping[str, object]) -> bytes:
    usual = {"current_price": 1, "market_cap": 2, "market_cap_rank": 3, "total_volume": 4}
    return json.dumps([{"symbol": "s", "name": "n", **usual, **coin} for coin in coins]).encode()


async def test_replay_of_a_crashed_run(database: Database, connection: Connection) -> None:
    """The run crashed after it stored a payload and before it loaded the batch."""
    now = datetime(2026, 6, 1, tzinfo=UTC)
    body = markets({"id": "one"}, {"id": "two", "last_updated": "2026-05-31T23:59:00Z"})
    crashed = await RunRecord.start(database, "schedule", ("coingecko",), now)
    page = Payload(path="/x", parameters={}, received_at=now, status=200, complete=True, body=body)
    await payloads.save(database, crashed.id, "coingecko", page, await payloads.compressed(body))

    assert await replay(database, crashed.id) == "succeeded"

    rows = await connection.fetch(
        "SELECT source_id, observed_at, has_source_time FROM unified_data ORDER BY source_id"
    )
    assert [tuple(row) for row in rows] == [
        ("one", now, False),
        ("two", datetime(2026, 5, 31, 23, 59, tzinfo=UTC), True),
    ]
    assert [row["status"] for row in await connection.fetch("SELECT status FROM runs ORDER BY id")] == [
        "interrupted",
        "succeeded",
    ]


async def test_unchanged_pages_have_nothing_to_replay(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    await fetch(database, apis(simulator)[1:])
    quiet = await fetch(database, apis(simulator)[1:])
    await connection.execute("UPDATE pages SET etag = NULL WHERE number = 2")
    mixed = await fetch(database, apis(simulator)[1:])

    with pytest.raises(NothingToReplay):
        await prepare_replay(database, quiet)
    assert await replay(database, mixed) == "succeeded"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["note"] == "2 of the run's calls brought no news; an earlier run has the records"
    assert (source["fetched"], source["unchanged"]) == (250, 250)


@pytest.mark.parametrize("seed", range(5))
async def test_replay_never_overwrites_newer_records(
    database: Database, connection: Connection, simulator: Simulator, seed: int
) -> None:
    # Times of coins move, stay, go back or are missing. Values change with them or without.
    chance = random.Random(seed)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    runs = []
    for _ in range(7):
        now += timedelta(hours=1)
        coins = []
        for number in range(12):
            at = now - timedelta(hours=chance.randrange(4))
            last_updated = {} if chance.random() < 0.4 else {"last_updated": at.isoformat()}
            coins.append({"id": f"coin-{number}", "current_price": chance.randrange(2), **last_updated})
        simulator.replay("coingecko", [markets(*coins)])
        # No source reports the very microsecond of our request.
        requested_at = now + timedelta(microseconds=1)
        runs.append(await fetch(database, apis(simulator)[1:], clock=lambda at=requested_at: at))
    before = await table_contents(database._url)

    for run_id in [*runs, *chance.sample(runs, len(runs))]:
        await replay(database, run_id, clock=lambda: now + timedelta(minutes=1))

        source = (await source_outcomes(connection))["coingecko"]
        assert (source["inserted"], source["updated"]) == (0, 0)
        assert await table_contents(database._url) == before


MISREAD = """
import msgspec
from kasparro.sources import coingecko, coinpaprika

def misread(read):
    def to_record(item, now):
        record = read(item, now)
        price = record.price_usd
        return msgspec.structs.replace(record, price_usd=price and price.split(".")[0])
    return to_record

coingecko.to_record = misread(coingecko.to_record)
coinpaprika.to_record = misread(coinpaprika.to_record)
"""


async def command(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_replay_repairs_tables_after_a_parser_fix(
    database: Database, connection: Connection, simulator: Simulator, tmp_path: Path
) -> None:
    # First a Kasparro that drops the decimals of every price, then the real one.
    (tmp_path / "sitecustomize.py").write_text(MISREAD)
    environment = {
        "DATABASE_URL": database._url,
        "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
        "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
        "KASPARRO_SOURCES": "coingecko,coinpaprika,csv",
    }
    code, out, err = await command("etl", "--json", **environment, PYTHONPATH=str(tmp_path))
    assert code == 0, err
    wrong = json.loads(out)
    assert not await connection.fetchval(
        "SELECT count(*) FROM unified_data WHERE source <> 'csv' AND price_usd <> trunc(price_usd)"
    )

    code, out, err = await command("replay", str(wrong["id"]), "--json", **environment)

    assert code == 0, err
    report = json.loads(out)
    assert (report["trigger"], report["status"]) == ("replay", "succeeded")
    csv, paprika, gecko = sorted(report["sources"], key=lambda source: len(source["source"]))[0:1] + [
        next(source for source in report["sources"] if source["source"] == name)
        for name in ("coinpaprika", "coingecko")
    ]
    assert (csv["status"], csv["error"]) == (
        "skipped",
        "archives are not replayed; a run reads their files again",
    )
    for source in (paprika, gecko):
        assert source["corrected"] == source["records"]["updated"] > 200
    right = await table_contents(database._url)
    await connection.execute(
        "DELETE FROM unified_data WHERE source <> 'csv'; DELETE FROM unified_history WHERE source <> 'csv';"
        "TRUNCATE pages"
    )
    await run_sources(database, apis(simulator), assets=AssetOptions())
    assert await table_contents(database._url) == right


async def test_nothing_to_replay_is_one_line(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    empty = await fetch(database, apis(simulator)[:1])

    for run_id, message in ((empty + 7, f"there is no run {empty + 7}"), (empty, "has no payload")):
        with pytest.raises(NothingToReplay, match=message):
            await prepare_replay(database, run_id)
        code, out, err = await command("replay", str(run_id), DATABASE_URL=database._url)
        assert (code, out) == (1, "")
        assert message in err.splitlines()[-1]
        assert "Traceback" not in err
    assert await connection.fetchval("SELECT count(*) FROM runs") == 1


async def test_replay_during_a_run_is_rejected(database: Database, simulator: Simulator) -> None:
    run_id = await fetch(database, apis(simulator)[:1])
    async with Run(database, [], "etl"):
        code, out, err = await command("replay", str(run_id), DATABASE_URL=database._url)

    assert (code, out) == (3, "")
    assert "another run is at work" in err


async def test_missing_payload_makes_the_replay_partial(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    run_id = await fetch(database, apis(simulator)[1:])
    await connection.execute(
        "DELETE FROM payloads WHERE id = (SELECT max(id) - 2 FROM payloads WHERE run_id = $1)", run_id
    )

    assert await replay(database, run_id) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["error"] == "1 of the run's calls have no stored payload"
    assert source["fetched"] == 500


async def test_unreadable_payload_makes_the_replay_partial(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Html(api="coingecko", page=2))
    run_id = await fetch(database, apis(simulator)[1:])

    assert await replay(database, run_id) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert "page=2" in source["error"]
    assert source["error"].endswith("sent an HTML page")
    assert source["unchanged"] == source["valid"] > 0


async def test_source_without_usable_payload_is_skipped(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=503))
    run_id = await fetch(database, apis(simulator))

    assert await replay(database, run_id) == "succeeded"

    sources = await source_outcomes(connection)
    assert sources["coinpaprika"]["status"] == "succeeded"
    assert (sources["coingecko"]["status"], sources["coingecko"]["error"]) == (
        "skipped",
        "no usable payload of this run is stored",
    )


async def test_unstored_payloads_do_not_fail_the_run(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    await connection.execute("ALTER TABLE payloads ADD CHECK (false)")

    await fetch(database, apis(simulator))

    for source in (await source_outcomes(connection)).values():
        assert (source["status"], source["inserted"]) == ("succeeded", source["fetched"])
    warned = await logged.reached(1, "payloads_not_stored", source="coingecko")
    assert len(warned) == 1
    assert "check constraint" in warned[0]["reason"]


async def test_failed_trim_does_not_fail_the_run(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    await connection.execute("ALTER TABLE payloads RENAME TO hidden")

    run_id = await fetch(database, apis(simulator)[1:])

    assert await connection.fetchval("SELECT status FROM runs WHERE id = $1", run_id) == "succeeded"
    assert 'relation "payloads"' in (await logged.reached(1, "trim_failed", run=run_id))[0]["reason"]


async def test_payload_size_zero_stores_none(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    """Payloads of earlier runs are deleted."""
    await fetch(database, apis(simulator))
    assert await connection.fetchval("SELECT count(*) FROM payloads") == 15

    await fetch(database, apis(simulator), retention=Retention(payload_bytes=0))

    assert await connection.fetchval("SELECT count(*) FROM payloads") == 0


async def test_run_stores_at_most_the_configured_size(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    run_id = await fetch(database, apis(simulator)[1:])
    sizes = [
        row["compressed_bytes"]
        for row in await connection.fetch("SELECT compressed_bytes FROM payloads ORDER BY id")
    ]
    await connection.execute("TRUNCATE pages")

    second = await fetch(database, apis(simulator)[1:], retention=Retention(payload_bytes=sum(sizes[:2])))

    left = await connection.fetch("SELECT run_id, compressed_bytes FROM payloads ORDER BY id")
    assert [row["run_id"] for row in left] == [second, second]
    assert [row["compressed_bytes"] for row in left] == sizes[:2]
    await logged.reached(
        1, "payloads_not_stored", reason="this run's payloads exceed KASPARRO_PAYLOAD_MAX_SIZE"
    )
    with pytest.raises(NothingToReplay):
        await prepare_replay(database, run_id)


async def test_replay_does_not_count_as_a_success(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    run_id = await fetch(database, apis(simulator)[:1])
    await connection.execute("UPDATE runs SET started_at = $1, finished_at = $1", then)
    await connection.execute("UPDATE run_sources SET started_at = $1, finished_at = $1", then)

    await replay(database, run_id)

    health = await reports.health(connection, ["coinpaprika"], timedelta(hours=1))
    assert health["coinpaprika"].stale
    assert health["coinpaprika"].last_success_at == then
    assert await last_start(database) == then
