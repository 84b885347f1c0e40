"""What `etl`, `status` and `archives` show on a terminal and in a log file."""

import asyncio
import json
import os
import pty
import re
import sys
import termios
from decimal import Decimal
from pathlib import Path

import pytest

from kasparro.cli.status_output import price
from kasparro.simulator import Simulator
from kasparro.store.pool import Database
from tests.support.batches import load_records, make_record
from tests.support.commands import run_command

pytestmark = pytest.mark.slow

# Control sequences of a terminal, such as colours and movements of the cursor.
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


async def on_terminal(*arguments: str, **environment: str) -> tuple[int | None, list[str]]:
    """Run `kasparro ARGUMENTS` on a terminal of 80 columns; returns its exit code and the lines it drew."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **environment},
    )
    os.close(theirs)
    written = await asyncio.to_thread(_read_all, ours)
    lines = _CONTROL.sub("", written).replace("\r", "\n").split("\n")
    return await process.wait(), [line for line in lines if line.strip()]


def _read_all(terminal: int) -> str:
    # Linux reports an error when the last process has closed its end.
    parts = []
    while True:
        try:
            parts.append(os.read(terminal, 65_536))
        except OSError:
            break
    os.close(terminal)
    return b"".join(parts).decode()


async def test_bars_show_counts_and_rates_within_80_columns(database_url: str) -> None:
    async with Simulator(seed=1, coins=300, manual=True) as simulator:
        environment = {
            "DATABASE_URL": database_url,
            "KASPARRO_COINPAPRIKA_URL": simulator.coinpaprika_url,
            "KASPARRO_COINGECKO_URL": simulator.coingecko_url,
            "NO_COLOR": "1",
        }
        code, lines = await on_terminal("etl", **environment)

    assert code == 0
    for source, records in (("coinpaprika", r"\d+"), ("coingecko", r"\d+"), ("csv", r"[\d,]+")):
        drawn = rf"{source} +\S.* {records} records +[\d,]+/s \d:\d\d:\d\d"
        assert any(re.match(drawn, line) for line in lines), source
    bars = [line for line in lines if "records" in line and "/s " in line]
    assert max(map(len, bars)) <= 80
    table = lines.index(next(line for line in lines if line.startswith("run 1: succeeded")))
    assert re.match(r"source +status +fetched", lines[table + 1])
    assert max(map(len, lines[table:])) <= 80


async def test_log_file_has_one_line_per_event_and_no_bars(database_url: str) -> None:
    code, out, err = await run_command("etl", "--source", "csv", DATABASE_URL=database_url)

    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert code == 0
    assert {"run_started", "source_finished", "run_finished"} <= set(events)
    assert out.startswith("run 1: succeeded")
    assert "\x1b" not in out + err


async def test_long_names_of_archives_are_whole(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    (folder / "BTCUSD_1d.csv").write_text("date,close\n2024-01-01,1.5\n2024-01-02,1.6\n")
    environment = {"DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(tmp_path)}
    await run_command("etl", "--source", "csv", **environment)
    _, out, _ = await run_command("archives", **environment)

    first, second = out.splitlines()
    assert first == f"{folder.name}/BTCUSD_1d.csv"
    assert re.fullmatch(r"  loaded \(\d{4}-\d\d-\d\d\), 2 rows of btc, 2024-01-01 to 2024-01-02", second)


async def test_status_of_a_database_without_assets(database_url: str, database: Database) -> None:
    await load_records(database, "csv", make_record())
    code, out, _ = await run_command("status", DATABASE_URL=database_url)

    assert code == 0
    assert re.search(r"^source +records +last success +late after +state *$", out, re.MULTILINE)
    assert re.search(r"^csv +1 +never +\S+ +no run yet *$", out, re.MULTILINE)
    assert "price in USD" not in out


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("0", "0"),
        ("64210.555", "64,210.56"),
        ("1", "1.00"),
        ("0.99971", "0.9997"),
        ("0.0000000012345678", "0.000000001235"),
        ("1e-30", "0.000000000000000000000000000001000"),
    ],
)
def test_prices_of_any_size(value: str | None, shown: str) -> None:
    assert price(None if value is None else Decimal(value)) == shown
