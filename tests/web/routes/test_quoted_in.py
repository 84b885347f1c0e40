"""`quoted_in`: whether a price is in US dollars, or in a coin that an override counts as US dollars."""

import json
from pathlib import Path

import aiohttp
import pytest

from kasparro.sources.archives.forget import ForgottenArchive
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Connection, Database
from tests.support.archives import NOW
from tests.support.commands import run_command
from tests.support.json_responses import get_exact
from tests.support.runs import ManualClock, run_sources
from tests.web.conftest import Insert

pytestmark = pytest.mark.slow

CLOCK = ManualClock(NOW)
PEGGED = "pegged_as_usd = true\n"


def closes(path: Path, *prices: object, overrides: str = "") -> None:
    """Write a file of daily closes from 1 January 2024 on, with its overrides."""
    rows = "".join(f"2024-01-{day:02},{price}\n" for day, price in enumerate(prices, 1))
    path.write_text(f"date,close\n{rows}")
    path.with_name(f"{path.name}.toml").write_text(overrides)


async def run(database: Database, folder: Path) -> None:
    """Run the source csv."""
    assert await run_sources(database, [Archives(str(folder))], clock=CLOCK) == "succeeded"


async def quoted_in(client: aiohttp.ClientSession, query: str = "") -> dict[str, object]:
    """The currency of each row's price, by source_id."""
    rows = (await get_exact(client, f"/data?fields=source_id,quoted_in{query}"))["data"]
    return {row["source_id"]: row["quoted_in"] for row in rows}


async def test_a_row_of_a_pair_in_usdt_says_so(
    client: aiohttp.ClientSession, database: Database, insert: Insert, tmp_path: Path
) -> None:
    closes(tmp_path / "BTCUSDT_1d.csv", 5, 6, overrides=PEGGED)
    closes(tmp_path / "ETHUSD_1d.csv", 7, 8, overrides=PEGGED)
    await run(database, tmp_path)
    await insert({"source": "coingecko", "source_id": "bitcoin"})

    assert await quoted_in(client) == {"bitcoin": "USD", "btc": "USDT", "eth": "USD"}
    assert await quoted_in(client, "&as_of=2024-01-01") == {"btc": "USDT", "eth": "USD"}
    assert await get_exact(client, "/data/csv/btc?fields=price_usd,quoted_in&as_of=2024-01-01") == {
        "price_usd": 5,
        "quoted_in": "USDT",
    }
    async with client.get("/data.csv?fields=source_id,quoted_in&source=csv") as response:
        assert (await response.text()).split() == ["source_id,quoted_in", '"btc","USDT"', '"eth","USD"']
    async with client.get("/data.ndjson?fields=source_id,quoted_in&id=btc") as response:
        assert json.loads(await response.text()) == {"source_id": "btc", "quoted_in": "USDT"}
    assert "quoted_in" not in await get_exact(client, "/data/csv/btc")


async def test_a_cursor_continues_with_it(
    client: aiohttp.ClientSession, database: Database, tmp_path: Path
) -> None:
    closes(tmp_path / "BTCUSDT_1d.csv", 5, overrides=PEGGED)
    closes(tmp_path / "ETHUSDC_1d.csv", 7, overrides=PEGGED)
    await run(database, tmp_path)
    query = "/data?fields=source_id,quoted_in&limit=1"
    first = await get_exact(client, query)
    closes(tmp_path / "ETHUSDC_1d.csv", 7, 8, overrides=PEGGED)
    await run(database, tmp_path)

    second = await get_exact(client, f"{query}&cursor={first['pagination']['next_cursor']}")

    assert first["data"] == [{"source_id": "btc", "quoted_in": "USDT"}]
    assert second["data"] == [{"source_id": "eth", "quoted_in": "USDC"}]


async def test_a_file_in_several_currencies_names_all_of_them(
    client: aiohttp.ClientSession, database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("date,symbol,close\n2024-01-01,BTC/USDT,5\n2024-01-01,ETH/USDC,6\n2024-01-01,LTC/USD,7\n")
    (tmp_path / "pairs.csv.toml").write_text(PEGGED)
    await run(database, tmp_path)

    assert set((await quoted_in(client)).values()) == {"USD,USDC,USDT"}


async def test_of_files_that_overlap_the_one_whose_values_stand_counts(
    client: aiohttp.ClientSession, database: Database, tmp_path: Path
) -> None:
    closes(tmp_path / "a BTCUSD_1d.csv", 5, 6)
    closes(tmp_path / "b BTCUSDT_1d.csv", 5.1, 6.1, overrides=PEGGED)
    await run(database, tmp_path)
    assert await quoted_in(client) == {"btc": "USDT"}

    assert (
        await run_sources(database, [ForgottenArchive("b BTCUSDT_1d.csv")], "forget", clock=CLOCK)
        == "succeeded"
    )

    assert await quoted_in(client) == {"btc": "USD"}


async def test_an_override_that_changes_only_the_currency_shows_at_once(
    client: aiohttp.ClientSession, database: Database, tmp_path: Path
) -> None:
    closes(tmp_path / "btc.csv", 5, 6, overrides='currency = "USD"\n')
    await run(database, tmp_path)
    assert await quoted_in(client) == {"btc": "USD"}
    (tmp_path / "btc.csv").rename(tmp_path / "BTCUSDT_1d.csv")
    (tmp_path / "btc.csv.toml").unlink()
    (tmp_path / "kasparro.toml").write_text(PEGGED)

    await run(database, tmp_path)

    assert await quoted_in(client) == {"btc": "USDT"}


async def test_a_file_of_an_earlier_version_is_unknown_until_it_is_read_again(
    client: aiohttp.ClientSession, database: Database, connection: Connection, tmp_path: Path
) -> None:
    closes(tmp_path / "BTCUSDT_1d.csv", 5, 6, overrides=PEGGED)
    await run(database, tmp_path)
    await connection.execute("UPDATE archive_files SET quoted_in = NULL, key = '6' || substr(key, 2)")
    assert await quoted_in(client) == {"btc": None}

    await run(database, tmp_path)

    assert await quoted_in(client) == {"btc": "USDT"}


async def test_the_list_of_archives_shows_it(database_url: str, database: Database, tmp_path: Path) -> None:
    closes(tmp_path / "BTCUSDT_1d.csv", 5, 6, overrides=PEGGED)
    closes(tmp_path / "ETHUSD_1d.csv", 7, 8)
    await run(database, tmp_path)
    environment = {"DATABASE_URL": database_url, "KASPARRO_ARCHIVES": str(tmp_path)}

    _, out, _ = await run_command("archives", "--json", **environment)
    _, table, _ = await run_command("archives", **environment)

    files = {file["file"]: file["quoted_in"] for file in json.loads(out)["archives"]}
    assert files == {"BTCUSDT_1d.csv": ["USDT"], "ETHUSD_1d.csv": ["USD"]}
    assert "btc in USDT" in table
    assert "eth in" not in table
