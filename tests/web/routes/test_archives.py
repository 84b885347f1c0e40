"""GET /archives: what was loaded from which archive, and what was rejected."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from kasparro.sources.archives.forget import ForgottenArchive
from kasparro.sources.archives.source import Archives
from kasparro.store.pool import Connection, Database
from tests.support.archives import table
from tests.support.assets import make_link, resolve
from tests.support.json_responses import get_json
from tests.support.runs import run_sources

HEADER = "date,symbol,name,price_usd"
HOSTILE = "<img src=x onerror=alert(1)>.csv"


def coin(day: int, symbol: str = "BTC", price: str = "1.50") -> str:
    """A row of a table of coins."""
    return f"2024-01-{day:02},{symbol},{symbol.title()},{price}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of one coin, one of two coins, one of which the coin is open, and an empty one."""
    folder = tmp_path / "archives"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.csv").write_text(table(HEADER, coin(1), coin(2)))
    (folder / "deep" / "two.csv").write_text(table(HEADER, coin(2), coin(3), coin(3, "ETH")))
    (folder / "open.csv").write_text(table("date,close", "2024-01-01,1.5", "2024-01-02,1.6"))
    (folder / HOSTILE).write_text("")
    return folder


def by_name(page: Any) -> dict[str, Any]:
    """The archives of a page by their names."""
    return {archive["file"]: archive for archive in page["data"]}


async def test_loaded_archives(client: aiohttp.ClientSession, database: Database, folder: Path) -> None:
    await run_sources(database, [Archives(str(folder))])

    page = await get_json(client, "/archives?problem=false")

    assert list(by_name(page)) == ["deep/two.csv", "one.csv"]
    one, two = by_name(page)["one.csv"], by_name(page)["deep/two.csv"]
    assert (one["state"], one["rows"], one["coins"], one["quoted_in"]) == ("loaded", 2, 1, ["USD"])
    assert (one["first_observed_at"], one["last_observed_at"]) == (
        "2024-01-01T23:59:59Z",
        "2024-01-02T23:59:59Z",
    )
    # Both files give the second of January.
    assert (two["state"], two["rows"], two["coins"], two["coin"]) == ("loaded", 3, 2, None)
    assert page["totals"] == {
        "loaded": 2,
        "incomplete": 0,
        "rejected": 2,
        "forgotten": 0,
        "problems": 2,
        "unlisted": 0,
    }


async def test_the_coin_leads_to_its_asset(
    client: aiohttp.ClientSession, database: Database, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])
    coin = by_name(await get_json(client, "/archives"))["one.csv"]["coin"]
    await resolve(database, make_link("csv", source_id=coin, symbol=None))

    one = by_name(await get_json(client, "/archives"))["one.csv"]

    assert one["asset"] == (await get_json(client, f"/data/csv/{coin}"))["asset"] == "btc-bitcoin"


async def test_rejected_archives_have_their_reason_and_settings(
    client: aiohttp.ClientSession, database: Database, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])

    page = await get_json(client, "/archives?state=rejected")

    assert list(by_name(page)) == [HOSTILE, "open.csv"]
    unclear = by_name(page)["open.csv"]
    assert "coin" in unclear["problem"]
    assert 'currency = "USD"' in unclear["setting"]
    assert (unclear["rows"], unclear["loaded_at"], unclear["rejected_in"]) == (0, None, 1)


async def test_no_path_of_the_host_is_shown(
    client: aiohttp.ClientSession, database: Database, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])

    async with client.get("/archives") as response:
        assert str(folder.parent) not in await response.text()


async def test_a_file_that_went_bad_keeps_its_rows(
    client: aiohttp.ClientSession, database: Database, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])
    (folder / "one.csv").write_text(table("date,close", "2024-01-01,1.5", "2024-01-02,1.6"))
    await run_sources(database, [Archives(str(folder))])

    one = by_name(await get_json(client, "/archives"))["one.csv"]

    assert (one["state"], one["rows"], one["rejected_in"]) == ("loaded", 2, 2)
    assert one["problem"]


async def test_an_answered_file_has_no_problem_any_more(
    client: aiohttp.ClientSession, database: Database, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])
    overrides = (
        'currency = "USD"\ncoin = { id = "x", symbol = "X", name = "X" }\n[columns]\nclose = "price_usd"\n'
    )
    (folder / "open.csv.toml").write_text(overrides)
    await run_sources(database, [Archives(str(folder))])

    answered = by_name(await get_json(client, "/archives"))["open.csv"]

    assert (answered["state"], answered["coin"], answered["problem"]) == ("loaded", "x", None)


async def test_a_forgotten_archive(client: aiohttp.ClientSession, database: Database, folder: Path) -> None:
    await run_sources(database, [Archives(str(folder))])
    await run_sources(database, [ForgottenArchive("one.csv")], "forget")

    one = by_name(await get_json(client, "/archives"))["one.csv"]

    assert (one["state"], one["rows"], one["coin"]) == ("forgotten", 0, None)
    # What the run before rejected is still rejected.
    assert (await get_json(client, "/archives"))["totals"]["rejected"] == 2


async def test_a_run_at_work_hides_no_rejected_archive(
    client: aiohttp.ClientSession, database: Database, connection: Connection, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])
    await connection.execute(
        "WITH run AS (INSERT INTO runs (trigger, status, started_at) VALUES ('etl', 'running', now()) "
        "RETURNING id) INSERT INTO run_sources (run_id, source, status, started_at) "
        "SELECT id, 'csv', 'running', now() FROM run"
    )

    assert (await get_json(client, "/archives"))["totals"]["rejected"] == 2


async def test_rejected_archives_that_are_not_kept_are_counted(
    client: aiohttp.ClientSession, database: Database, connection: Connection, folder: Path
) -> None:
    await run_sources(database, [Archives(str(folder))])
    await connection.execute("DELETE FROM rejects WHERE location = 'open.csv'")

    totals = (await get_json(client, "/archives"))["totals"]

    assert (totals["rejected"], totals["unlisted"]) == (1, 1)


@pytest.mark.parametrize("by", ["cursor", "page"])
async def test_archives_in_pages(
    client: aiohttp.ClientSession, database: Database, folder: Path, by: str
) -> None:
    await run_sources(database, [Archives(str(folder))])
    everything = await get_json(client, "/archives")

    url, found = f"/archives?limit=3{'&page=1' if by == 'page' else ''}", []
    while url:
        page = await get_json(client, url)
        assert (page["pagination"]["total"], page["pagination"]["pages"]) == (4, 2)
        found += page["data"]
        url = page["pagination"]["next"]

    assert found == everything["data"]
    assert [archive["file"] for archive in found] == [HOSTILE, "deep/two.csv", "one.csv", "open.csv"]


async def test_archives_by_name(client: aiohttp.ClientSession, database: Database, folder: Path) -> None:
    await run_sources(database, [Archives(str(folder))])

    assert list(by_name(await get_json(client, "/archives?q=TWO"))) == ["deep/two.csv"]
    # % and _ are ordinary characters.
    assert not (await get_json(client, "/archives?q=%25"))["data"]
    assert not (await get_json(client, "/archives?q=t_o"))["data"]


async def test_no_archives(client: aiohttp.ClientSession) -> None:
    page = await get_json(client, "/archives")

    assert (page["data"], page["pagination"]["total"]) == ([], 0)
    assert not any(page["totals"].values())


async def test_invalid_parameters(client: aiohttp.ClientSession) -> None:
    for query, parameter in (
        ("state=gone", "state"),
        ("problem=maybe", "problem"),
        ("q=%00", "q"),
        ("file=x", "file"),
    ):
        assert (await get_json(client, f"/archives?{query}", 400))["parameter"] == parameter
