"""The commands as processes: their output, exit codes and effects."""

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import stamina

from kasparro.pipeline.run import Run
from kasparro.simulator import Simulator
from kasparro.simulator.faults import SchemaDrift, Status
from kasparro.store.bootstrap import prepare
from kasparro.store.pool import Database
from tests.support.commands import listening_url, run_command, started_command

pytestmark = pytest.mark.slow


async def poll_json(session: aiohttp.ClientSession, url: str, key: str) -> dict[str, Any]:
    """Request a URL until its JSON has a value under this key; returns the JSON."""
    async for attempt in stamina.retry_context(
        on=(KeyError, aiohttp.ClientError), attempts=None, timeout=30, wait_initial=0.05, wait_max=0.2
    ):
        with attempt:
            async with session.get(url) as response:
                body: dict[str, Any] = await response.json()
                if not body[key]:
                    raise KeyError(key)
                return body
    raise AssertionError("unreachable: the last attempt raises")


async def test_etl_json_prints_only_the_report(database_url: str) -> None:
    code, out, _ = await run_command("etl", "--source", "csv", "--json", DATABASE_URL=database_url)

    report = json.loads(out)
    assert (code, report["status"], report["trigger"]) == (0, "succeeded", "etl")
    assert report["records"]["inserted"] > 3
    assert [source["source"] for source in report["sources"]] == ["csv"]


async def test_status_uses_singular_and_plural(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_SOURCES": "csv"}

    first_lines = []
    for _ in range(2):
        await run_command("etl", **environment)
        _, out, _ = await run_command("status", **environment)
        first_lines.append(out.splitlines()[0])

    assert [line.partition(" after ")[2] for line in first_lines] == ["1 run", "2 runs"]
    assert all(line.startswith("idle; ") for line in first_lines)


async def test_etl_exits_with_1_if_a_source_fails(database_url: str) -> None:
    async with Simulator(coins=5, manual=True) as simulator:
        simulator.add_fault(Status(api="coinpaprika", code=403))
        code, out, _ = await run_command(
            *("etl", "--source", "coinpaprika"),
            DATABASE_URL=database_url,
            KASPARRO_COINPAPRIKA_URL=simulator.coinpaprika_url,
        )

    assert code == 1
    assert "coinpaprika: CoinPaprika answered 403 (access denied" in out


async def test_retry_is_logged_with_its_reason(database_url: str) -> None:
    async with Simulator(coins=5, manual=True) as simulator:
        simulator.add_fault(Status(api="coinpaprika", code=503, body="html", times=1))
        code, _, log = await run_command(
            *("etl", "--source", "coinpaprika", "--json"),
            DATABASE_URL=database_url,
            KASPARRO_COINPAPRIKA_URL=simulator.coinpaprika_url,
        )

    (event,) = [line for line in map(json.loads, log.splitlines()) if line["event"] == "retry_scheduled"]
    assert code == 0
    assert (event["level"], event["retry_num"]) == ("warning", 1)
    assert event["reason"] == "CoinPaprika answered 503: 503 from the CDN"
    assert event["wait_s"] > 0


async def test_etl_and_status_show_drift(database_url: str) -> None:
    async with Simulator(coins=60, manual=True) as simulator:
        environment = {
            "DATABASE_URL": database_url,
            "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
            "KASPARRO_SOURCES": "coinpaprika",
        }
        await run_command("etl", **environment)
        simulator.add_fault(SchemaDrift(api="coinpaprika", field="beta_value", change="drop"))
        simulator.add_fault(SchemaDrift(api="coinpaprika", field="first_data_at", change="drop"))
        code, out, _ = await run_command("etl", **environment)
        simulator.add_fault(Status(api="coinpaprika", code=403))
        await run_command("etl", **environment)
        _, after, _ = await run_command("status", **environment)

    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("coinpaprika: drift: ")]
    assert line.startswith("coinpaprika: drift: beta_value vanished: missing in ")
    assert line.endswith(" (and 1 more change)")
    # `status` wraps it at 80 columns.
    assert line in " ".join(after.split())


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["etl", "--source", "binance"], {}, "'binance' is not one of"),
        (["etl"], {"KASPARRO_INTERVAL": "soon"}, "KASPARRO_INTERVAL is 'soon'"),
        (["etl"], {"KASPARRO_ASSET_RULES": "/none.toml"}, "KASPARRO_ASSET_RULES: /none.toml cannot be read"),
        (["serve", "--port", "99999"], {}, "99999 is not in the range"),
        (["etl"], {"DATABASE_URL": "mysql://a:hunter2@b/c"}, "DATABASE_URL has a value that is not allowed"),
    ],
)
async def test_wrong_usage_and_settings_exit_with_2(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    code, out, err = await run_command(*arguments, **environment)

    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert "hunter2" not in err
    assert "Traceback" not in err


async def test_etl_exits_with_3_during_another_run(database_url: str) -> None:
    async with Database(database_url) as database:
        await prepare(database)
        async with Run(database, [], "etl"):
            code, out, err = await run_command("etl", "--source", "csv", DATABASE_URL=database_url)

    assert (code, out) == (3, "")
    assert "another run is at work on this database" in err


@pytest.mark.parametrize("command", [("etl",), ("replay", "1")])
async def test_database_of_the_demo_is_rejected(database_url: str, command: tuple[str, ...]) -> None:
    async with Database(database_url) as database:
        await prepare(database, demo=True)
        async with Run(database, [], "etl"):
            pass
    code, out, err = await run_command(*command, DATABASE_URL=database_url)

    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "kasparro: this database holds the demo's simulated data, and only kasparro demo may use it: set "
        "DATABASE_URL, or KASPARRO_HOME if DATABASE_URL is unset, to another database"
    )


async def test_unreachable_database_is_one_line(tmp_path: Path) -> None:
    code, _, err = await run_command("etl", DATABASE_URL=f"postgresql://me:hunter2@/x?host={tmp_path}")

    assert code == 1
    # The archive worker, which has been started by then, ends without a word.
    (line,) = err.splitlines()
    assert line.startswith("kasparro: PostgreSQL is unreachable: ")
    assert "hunter2" not in err
    assert "Traceback" not in err


async def test_status_and_migrate_report_pending_migrations(empty_database_url: str) -> None:
    environment = {"DATABASE_URL": empty_database_url}

    before = await run_command("status", **environment)
    migrated = await run_command("migrate", **environment)
    again = await run_command("migrate", **environment)
    after = await run_command("status", "--json", **environment)

    assert before[0] == 1
    assert "run kasparro migrate" in before[2]
    assert "applied 0001_initial.sql" in migrated[1]
    assert again[1] == "the schema is up to date\n"
    assert json.loads(after[1])["totals"]["records"] == 0


async def test_status_fits_80_columns(database_url: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name * 90}.csv").write_text("id,symbol,name\nbitcoin,btc,Bitcoin\n")
    environment = {
        "KASPARRO_ARCHIVES": str(tmp_path),
        "DATABASE_URL": database_url,
        "KASPARRO_COINPAPRIKA_URL": f"http://127.0.0.1:1/{'long/' * 20}",
        "KASPARRO_SOURCES": "coinpaprika,csv",
    }
    before = await run_command("status", **environment)
    await run_command("etl", **environment)
    code, out, _ = await run_command("status", **environment)
    off = await run_command("status", KASPARRO_INTERVAL="off", **environment)
    service = started_command(
        *("serve",), PORT="0", KASPARRO_LOG="json", KASPARRO_INTERVAL="24h", **environment
    )
    async with service as process, aiohttp.ClientSession() as session:
        await poll_json(session, f"{await listening_url(process)}/stats", "last_run")
        due = await run_command("status", KASPARRO_INTERVAL="24h", **environment)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "UPDATE run_sources SET status = 'interrupted', fetched = 1234567, valid = 1234567"
    )
    await connection.close()
    interrupted = await run_command("status", **environment)

    assert code == 0
    assert "coinpaprika interrupted 1,234,567 1,234,567" in interrupted[1]
    assert "last run: none so far\nnext run: when kasparro serve starts\n" in before[1]
    assert re.search(
        r"^last run: 1 by etl, failed\n {10}started \S+ \S+ UTC, 0:00:\d\d ago$", out, re.MULTILINE
    )
    # The time of a run would be a guess while no service runs.
    assert "next run: when kasparro serve starts\n" in out
    assert "next run: none, because KASPARRO_INTERVAL is off\n" in off[1]
    assert re.search(r"^next run: due \S+ \S+ UTC, in (1 day, 0:00:00|23:59:\d\d)$", due[1], re.MULTILINE)
    for shown in (before[1], out, off[1], due[1], interrupted[1]):
        assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_serve_runs_at_the_start_and_stops_cleanly(database_url: str, workers: str) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_SOURCES": "csv", "KASPARRO_LOG": "json"}
    async with started_command("serve", "--workers", workers, PORT="0", **environment) as process:
        async with aiohttp.ClientSession() as session:
            url = await listening_url(process)
            data = await poll_json(session, f"{url}/data", "data")
            stats = await poll_json(session, f"{url}/stats", "last_run")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, err = await process.communicate()

    assert process.returncode == 0
    assert {row["source"] for row in data["data"]} == {"csv"}
    assert stats["last_run"]["trigger"] == "startup"
    assert [json.loads(line)["event"] for line in err.decode().splitlines()][-1] == "stopped"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_stop_right_after_listening(database_url: str, workers: str) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json"}
    async with started_command("serve", "--workers", workers, PORT="0", **environment) as process:
        await listening_url(process)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            _, err = await process.communicate()

    assert process.returncode == 0
    assert json.loads(err.splitlines()[-1])["event"] == "stopped"


async def test_demo_loads_all_sources(home: Path) -> None:
    async with started_command("demo", KASPARRO_HOME=str(home), PORT="0", KASPARRO_LOG="json") as process:
        async with aiohttp.ClientSession() as session:
            url = await listening_url(process)
            async with asyncio.timeout(60):
                while True:
                    stats = await poll_json(session, f"{url}/stats", "totals")
                    if stats["totals"]["last_success_at"] is not None:
                        break
        assert all(stats["totals"]["by_source"].values())
        assert process.stdout is not None
        first_line = (await process.stdout.readline()).decode()
        _, beside, beside_error = await run_command("status", KASPARRO_HOME=str(home))
        code, shown, _ = await run_command("status", KASPARRO_HOME=str(home / "demo"))
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            await process.communicate()

    assert process.returncode == 0
    assert (home / "demo" / "data").is_dir()
    assert first_line == f"open {url}/ in a browser; it answers in a few seconds, and Ctrl+C ends the demo\n"
    assert beside == ""
    assert f"set KASPARRO_HOME to {home / 'demo'} for it" in beside_error
    assert code == 0
    assert re.search(r"^ +1 +Bitcoin +[\d,]+\.\d\d ", shown, re.MULTILINE)
    assert re.search(r"^coingecko +[\d,]+ +0:\d\d:\d\d ago +0:05:40 +ok *$", shown, re.MULTILINE)
    assert re.search(r"^next run: due ", shown, re.MULTILINE)


async def test_port_in_use_is_reported(database_url: str) -> None:
    environment = {"DATABASE_URL": database_url, "KASPARRO_INTERVAL": "off", "KASPARRO_LOG": "json"}
    async with started_command("serve", PORT="0", **environment) as process:
        port = (await listening_url(process)).rpartition(":")[2]
        code, _, err = await run_command("serve", PORT=port, **environment)

    assert code == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in err
