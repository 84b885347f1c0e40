"""What was fetched, read again: the payloads that a run keeps, and the runs that replay them."""

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
from kasparro.pipeline import report
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
from tests.conftest import LogEvents
from tests.support.runs import QUICK, apis, run_sources, source_outcomes, table_contents

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, manual=True) as running:
        yield running


async def fetched(database: Database, sources: list[Source], **options: Any) -> int:
    """A run that keeps its payloads; gives its number."""
    async with Run(database, sources, "etl", **{"retention": Retention(), **options}) as one:
        await one.work(asyncio.Event())
    return one.id


async def replayed(database: Database, run_id: int, **options: Any) -> str:
    again = await prepare_replay(database, run_id)
    return await run_sources(
        database, again.sources, trigger="replay", fetched_at=again.fetched_at, **options
    )


async def kept(database: Database, connection: Connection, run_id: int) -> list[Payload]:
    """A run's payloads in their order, decompressed."""
    ids = await connection.fetch("SELECT id FROM payloads WHERE run_id = $1 ORDER BY id", run_id)
    found = [await payloads.read(database, row["id"]) for row in ids]
    assert None not in found
    return [one for one in found if one is not None]


async def test_each_call_leaves_what_it_was_answered(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    moment = datetime.now(UTC).replace(microsecond=123_456)

    run_id = await fetched(database, apis(simulator)[1:], clock=lambda: moment)

    pages = await kept(database, connection, run_id)
    assert [(one.path, one.parameters["page"], one.status) for one in pages] == [
        ("/coins/markets", page, 200) for page in ("1", "2", "3")
    ]
    assert all(one.good and one.received_at == moment for one in pages)
    assert all(one.headers["content-type"].startswith("application/json") for one in pages)
    assert all({"date", "etag"} <= one.headers.keys() for one in pages)
    told = [item["id"] for one in pages for item in msgspec.json.decode(one.body)]
    assert told == [quote.id for quote in simulator.market.listing("coingecko")]
    row = await connection.fetchrow(
        "SELECT sum(raw_bytes) AS plain, sum(compressed_bytes) AS packed, sum(octet_length(body)) AS held FROM payloads"
    )
    assert row is not None
    assert row["packed"] == row["held"] < row["plain"] / 3


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
async def test_answers_of_no_use_are_kept_too_and_a_replay_reads_the_good_ones(
    database: Database,
    connection: Connection,
    simulator: Simulator,
    fault: AnyFault,
    status: int | None,
    complete: bool,
    begins: bytes,
) -> None:
    simulator.add_fault(msgspec.structs.replace(fault, page=None if status is None else 2))
    patient = msgspec.structs.replace(QUICK, total_s=30)
    source = CoinGecko(simulator.coingecko_url, "public", None, patient)

    run_id = await fetched(database, [source])

    bad, *_ = [one for one in await kept(database, connection, run_id) if not one.body.endswith(b"}]")]
    assert (bad.status, bad.complete) == (status, complete)
    assert bad.body.startswith(begins)
    before = await table_contents(database._url)
    await connection.execute("TRUNCATE unified_data, unified_history")
    assert await replayed(database, run_id) == "succeeded"
    assert await table_contents(database._url) == before


@asynccontextmanager
async def repeating(key: str) -> AsyncIterator[str]:
    """An upstream that says in body and header which key it refuses."""

    async def refuse(request: web.BaseRequest) -> web.Response:
        sent = request.headers["x-cg-demo-api-key"]
        assert sent == key
        return web.Response(
            status=401, text=f"the key {sent} is not known", headers={"X-Request-Id": f"{sent}-1"}
        )

    runner = web.ServerRunner(web.Server(refuse))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_no_key_stands_in_a_payload(database: Database, connection: Connection) -> None:
    key = "CG-hunter2hunter2"
    async with repeating(key) as url:
        run_id = await fetched(database, [CoinGecko(url, "demo", Secret(key), QUICK)])

    (refusal,) = await kept(database, connection, run_id)
    assert refusal.status == 401
    assert refusal.body == b"the key *** is not known"
    assert refusal.headers["x-request-id"] == "***-1"
    assert key not in await connection.fetchval("SELECT payloads::text FROM payloads")


async def test_an_endless_answer_leaves_a_part_to_look_at(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Huge(api="coinpaprika", megabytes=70))
    source = apis(simulator)[0]

    run_id = await fetched(database, [source])

    for one in await kept(database, connection, run_id):
        assert (one.complete, len(one.body)) == (False, 1 << 20)


async def test_emptied_tables_are_filled_again_from_the_payloads_alone(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    run_id = await fetched(database, apis(simulator))
    told = await source_outcomes(connection)
    before = await table_contents(database._url)
    calls = len(simulator.calls)
    walked = "SELECT api_calls.*, pages.* FROM api_calls JOIN pages USING (source) ORDER BY 1, number"
    booked = await connection.fetch(walked)
    await connection.execute("TRUNCATE unified_data, unified_history")

    assert await replayed(database, run_id) == "succeeded"

    assert await table_contents(database._url) == before
    again = await source_outcomes(connection)
    for name, source in told.items():
        for figure in ("fetched", "valid", "rejected", "inserted", "updated", "unchanged"):
            assert again[name][figure] == source[figure]
        assert again[name]["calls"] == 0
    assert len(simulator.calls) == calls
    assert await connection.fetch(walked) == booked
    assert await connection.fetchval("SELECT trigger FROM runs ORDER BY id DESC LIMIT 1") == "replay"


async def test_an_untouched_run_read_again_changes_nothing(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    run_id = await fetched(database, apis(simulator))
    before = await table_contents(database._url)

    assert await replayed(database, run_id) == "succeeded"

    assert await table_contents(database._url) == before
    for source in (await source_outcomes(connection)).values():
        assert (source["inserted"], source["updated"], source["corrected"]) == (0, 0, 0)
        assert source["unchanged"] == source["valid"] > 500


def answer(*coins: Mapping[str, object]) -> bytes:
    usual = {"current_price": 1, "market_cap": 2, "market_cap_rank": 3, "total_volume": 4}
    return json.dumps([{"symbol": "s", "name": "n", **usual, **coin} for coin in coins]).encode()


async def test_a_run_that_died_between_a_payload_and_its_batch_loses_nothing(
    database: Database, connection: Connection
) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    body = answer({"id": "one"}, {"id": "two", "last_updated": "2026-05-31T23:59:00Z"})
    dead = await RunRecord.start(database, "schedule", ("coingecko",), now)
    page = Payload(path="/x", parameters={}, received_at=now, status=200, complete=True, body=body)
    await payloads.keep(database, dead.id, "coingecko", page, await payloads.compressed(body))

    assert await replayed(database, dead.id) == "succeeded"

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


async def test_calls_that_brought_no_news_are_told_and_have_nothing_to_read(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    await fetched(database, apis(simulator)[1:])
    quiet = await fetched(database, apis(simulator)[1:])
    await connection.execute("UPDATE pages SET etag = NULL WHERE number = 2")
    mixed = await fetched(database, apis(simulator)[1:])

    with pytest.raises(NothingToReplay):
        await prepare_replay(database, quiet)
    assert await replayed(database, mixed) == "succeeded"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["note"] == "2 of the run's calls brought no news; an earlier run has the records"
    assert (source["fetched"], source["unchanged"]) == (250, 250)


@pytest.mark.parametrize("seed", range(5))
async def test_no_older_run_read_again_touches_what_was_told_since(
    database: Database, connection: Connection, simulator: Simulator, seed: int
) -> None:
    # Coins whose times move, stay, go back or are not told; whose values change with them or without.
    chance = random.Random(seed)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    runs = []
    for _ in range(7):
        now += timedelta(hours=1)
        coins = []
        for number in range(12):
            told = now - timedelta(hours=chance.randrange(4))
            last_updated = {} if chance.random() < 0.4 else {"last_updated": told.isoformat()}
            coins.append({"id": f"coin-{number}", "current_price": chance.randrange(2), **last_updated})
        simulator.replay("coingecko", [answer(*coins)])
        # No source tells the very microsecond in which we ask.
        asked = now + timedelta(microseconds=1)
        runs.append(await fetched(database, apis(simulator)[1:], clock=lambda at=asked: at))
    before = await table_contents(database._url)

    for run_id in [*runs, *chance.sample(runs, len(runs))]:
        await replayed(database, run_id, clock=lambda: now + timedelta(minutes=1))

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


async def test_after_a_fix_of_the_reader_a_replay_puts_the_tables_right(
    database: Database, connection: Connection, simulator: Simulator, tmp_path: Path
) -> None:
    # A Kasparro that cuts the decimals off every price, and then one that does not.
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
    csv, paprika, gecko = sorted(report["sources"], key=lambda one: len(one["source"]))[0:1] + [
        next(one for one in report["sources"] if one["source"] == name)
        for name in ("coinpaprika", "coingecko")
    ]
    assert (csv["status"], csv["error"]) == ("skipped", "archives are read again from their files")
    for source in (paprika, gecko):
        assert source["corrected"] == source["records"]["updated"] > 200
    right = await table_contents(database._url)
    await connection.execute(
        "DELETE FROM unified_data WHERE source <> 'csv'; DELETE FROM unified_history WHERE source <> 'csv';"
        "TRUNCATE pages"
    )
    await run_sources(database, apis(simulator))
    assert await table_contents(database._url) == right


async def test_a_run_that_is_not_there_or_kept_nothing_is_one_line(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coinpaprika", code=500))
    barren = await fetched(database, apis(simulator)[:1])

    for run_id, said in ((barren + 7, f"there is no run {barren + 7}"), (barren, "has no payload")):
        with pytest.raises(NothingToReplay, match=said):
            await prepare_replay(database, run_id)
        code, out, err = await command("replay", str(run_id), DATABASE_URL=database._url)
        assert (code, out) == (1, "")
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err
    assert await connection.fetchval("SELECT count(*) FROM runs") == 1


async def test_replay_waits_for_no_other_run(database: Database, simulator: Simulator) -> None:
    run_id = await fetched(database, apis(simulator)[:1])
    async with Run(database, [], "etl"):
        code, out, err = await command("replay", str(run_id), DATABASE_URL=database._url)

    assert (code, out) == (3, "")
    assert "another run is at work" in err


async def test_what_could_not_be_kept_is_told_when_it_is_missed(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    run_id = await fetched(database, apis(simulator)[1:])
    await connection.execute(
        "DELETE FROM payloads WHERE id = (SELECT max(id) FROM payloads WHERE run_id = $1)", run_id
    )

    assert await replayed(database, run_id) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert source["error"] == "1 of the run's calls have no payload kept"
    assert source["fetched"] == 500


async def test_a_payload_that_cannot_be_read_costs_itself(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Html(api="coingecko", page=2))
    run_id = await fetched(database, apis(simulator)[1:])

    assert await replayed(database, run_id) == "partial"

    source = (await source_outcomes(connection))["coingecko"]
    assert "page=2" in source["error"]
    assert source["error"].endswith("answered an HTML page")
    assert source["unchanged"] == source["valid"] > 0


async def test_a_source_that_got_no_good_answer_is_passed_over(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    simulator.add_fault(Status(api="coingecko", code=503))
    run_id = await fetched(database, apis(simulator))

    assert await replayed(database, run_id) == "succeeded"

    sources = await source_outcomes(connection)
    assert sources["coinpaprika"]["status"] == "succeeded"
    assert (sources["coingecko"]["status"], sources["coingecko"]["error"]) == (
        "skipped",
        "no good answer of this run is kept",
    )


async def test_payloads_that_cannot_be_kept_cost_no_record(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    await connection.execute("ALTER TABLE payloads ADD CHECK (false)")

    await fetched(database, apis(simulator))

    for source in (await source_outcomes(connection)).values():
        assert (source["status"], source["inserted"]) == ("succeeded", source["fetched"])
    warned = await logged.reached(1, "payloads_not_stored", source="coingecko")
    assert len(warned) == 1
    assert "check constraint" in warned[0]["reason"]


async def test_what_cannot_be_trimmed_is_told_and_costs_no_run(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    await connection.execute("ALTER TABLE payloads RENAME TO hidden")

    run_id = await fetched(database, apis(simulator)[1:])

    assert await connection.fetchval("SELECT status FROM runs WHERE id = $1", run_id) == "succeeded"
    assert 'relation "payloads"' in (await logged.reached(1, "trim_failed", run=run_id))[0]["reason"]


async def test_payloads_off_keeps_none_and_trims_what_there_was(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    await fetched(database, apis(simulator))
    assert await connection.fetchval("SELECT count(*) FROM payloads") == 4

    await fetched(database, apis(simulator), retention=Retention(payload_bytes=0))

    assert await connection.fetchval("SELECT count(*) FROM payloads") == 0


async def test_a_run_keeps_no_more_than_the_size_allows(
    database: Database, connection: Connection, simulator: Simulator, logged: LogEvents
) -> None:
    run_id = await fetched(database, apis(simulator)[1:])
    sizes = [
        row["compressed_bytes"]
        for row in await connection.fetch("SELECT compressed_bytes FROM payloads ORDER BY id")
    ]
    await connection.execute("TRUNCATE pages")

    second = await fetched(database, apis(simulator)[1:], retention=Retention(payload_bytes=sum(sizes[:2])))

    left = await connection.fetch("SELECT run_id, compressed_bytes FROM payloads ORDER BY id")
    assert [row["run_id"] for row in left] == [second, second]
    assert [row["compressed_bytes"] for row in left] == sizes[:2]
    await logged.reached(
        1, "payloads_not_stored", reason="this run's payloads exceed KASPARRO_PAYLOAD_MAX_SIZE"
    )
    with pytest.raises(NothingToReplay):
        await prepare_replay(database, run_id)


async def test_a_replay_is_no_sign_of_life_from_the_upstream(
    database: Database, connection: Connection, simulator: Simulator
) -> None:
    then = datetime(2026, 1, 1, tzinfo=UTC)
    run_id = await fetched(database, apis(simulator)[:1])
    await connection.execute("UPDATE runs SET started_at = $1, finished_at = $1", then)
    await connection.execute("UPDATE run_sources SET started_at = $1, finished_at = $1", then)

    await replayed(database, run_id)

    health = await report.health(connection, ["coinpaprika"], timedelta(hours=1))
    assert health["coinpaprika"].stale
    assert health["coinpaprika"].last_success_at == then
    assert await last_start(database) == then
