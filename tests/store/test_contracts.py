"""Contract lists: which one is due, and what a list changes."""

from datetime import UTC, datetime, timedelta

import asyncpg

from kasparro.model.asset import Contract
from kasparro.model.contract_list import ContractList
from kasparro.store import contracts
from kasparro.store.contracts import BELIEVED_AFTER, FEW, Replaced
from kasparro.store.pool import Connection, Database
from tests.support.contracts import stored_contracts

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
MANY = [(f"coin-{number}", "ethereum", f"0x{number}") for number in range(100)]


def listed(
    *found: tuple[str, str, str], at: datetime = NOW, path: str = "/list", platform: str | None = None
) -> ContractList:
    return ContractList(path=path, received_at=at, contracts=list(found), platform=platform)


async def load(database: Database, found: ContractList) -> Replaced:
    return await contracts.replace(database, "coingecko", found, found.received_at)


async def addresses(connection: Connection) -> list[str]:
    return [found.address for found in await stored_contracts(connection)]


async def next_list(
    database: Database, now: datetime, limit: int | None = None, root: str = "/list"
) -> str | None:
    return await contracts.next_list(database, "coingecko", root, now, limit=limit)


async def test_list_writes_only_what_differs(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    a, b, c = ("a", "ethereum", "0xA"), ("b", "ethereum", "0xb"), ("b", "solana", "Bb")
    assert await load(database, listed(a, b)) == Replaced(added=2)
    first = await connection.fetch("SELECT xmin, address FROM contracts WHERE source_id = 'b'")

    assert await load(database, listed(b, c, c, at=NOW + DAY)) == Replaced(added=1, removed=1)

    assert await stored_contracts(connection) == [Contract("coingecko", *b), Contract("coingecko", *c)]
    kept = await connection.fetch("SELECT xmin, address FROM contracts WHERE address = '0xb'")
    assert kept == first


async def test_changed_at_moves_only_with_a_change(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    assert await contracts.changed_at(connection) is None
    await load(database, listed(*MANY))
    await load(database, listed(*MANY, at=NOW + DAY))

    assert await contracts.changed_at(connection) == NOW
    assert await connection.fetchval("SELECT fetched_at FROM contract_lists") == NOW + DAY


async def test_list_of_a_platform_replaces_that_platform(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, listed(("a", "eth", "1"), path="/eth", platform="eth"))
    await load(database, listed(("a", "bnb", "2"), ("b", "bnb", "3"), path="/bnb", platform="bnb"))

    assert await load(
        database, listed(("a", "bnb", "2"), at=NOW + DAY, path="/bnb", platform="bnb")
    ) == Replaced(removed=1)
    assert await addresses(connection) == ["2", "1"]


async def test_older_list_changes_nothing(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, listed(("a", "eth", "new")))
    older = listed(("a", "eth", "old"), at=NOW - HOUR)

    assert await contracts.replace(database, "coingecko", older, NOW) == Replaced()
    assert await addresses(connection) == ["new"]


async def test_list_dated_by_a_wrong_clock_is_replaced(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, listed(("a", "eth", "1"), at=NOW + 400 * DAY))

    assert await next_list(database, NOW) == "/list"
    assert await load(database, listed(("a", "eth", "1"), ("b", "eth", "2"))) == Replaced(added=1)
    assert await next_list(database, NOW) is None


async def test_short_list_removes_nothing_until_it_stays_short(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, listed(*MANY))
    half = [*MANY[:50], ("new", "ethereum", "0xnew")]

    assert await load(database, listed(*half, at=NOW + DAY)) == Replaced(added=1, kept=50)
    assert len(await addresses(connection)) == 101
    assert await load(database, listed(*half, at=NOW + 2 * DAY)) == Replaced(kept=50)
    # A whole list in between starts the wait again.
    assert await load(database, listed(*MANY, *half, at=NOW + 3 * DAY)) == Replaced()
    assert await load(database, listed(*half, at=NOW + 4 * DAY)) == Replaced(kept=50)
    believed = NOW + 4 * DAY + BELIEVED_AFTER
    assert await load(database, listed(*half, at=believed)) == Replaced(removed=50)


async def test_empty_list_removes_nothing(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await load(database, listed(*MANY[:FEW]))

    assert await load(database, listed(at=NOW + DAY)) == Replaced(kept=FEW)
    assert len(await addresses(connection)) == FEW


async def test_few_contracts_of_a_small_list_may_go(database: Database) -> None:
    await load(database, listed(*MANY[: FEW + 1]))

    assert await load(database, listed(MANY[0], at=NOW + DAY)) == Replaced(removed=FEW)


async def test_list_is_requested_once_a_day(database: Database) -> None:
    assert await next_list(database, NOW) == "/list"
    await load(database, listed(at=NOW))

    assert await next_list(database, NOW + 11 * HOUR) is None
    assert await next_list(database, NOW + 12 * HOUR) == "/list"


async def test_source_rests_after_a_failed_request(database: Database) -> None:
    root = ContractList(path="/list", received_at=NOW, lists=("/list/a", "/list/b"))
    await next_list(database, NOW)
    await load(database, root)
    assert await next_list(database, NOW) == "/list/a"

    assert await next_list(database, NOW + HOUR / 2) is None
    # The list that failed comes last.
    assert await next_list(database, NOW + HOUR) == "/list/b"


async def test_limit_counts_the_requests_of_the_day(database: Database) -> None:
    paths = tuple(f"/list/{number}" for number in range(5))
    await next_list(database, NOW)
    await load(database, ContractList(path="/list", received_at=NOW, lists=paths))
    requested = []
    while (path := await next_list(database, NOW, limit=3)) is not None:
        requested.append(path)
        await load(database, listed(path=path, platform=path))

    assert requested == ["/list/0", "/list/1"]
    # On the next day, the lists that are missing come first.
    assert await next_list(database, NOW + DAY, limit=3) == "/list/2"
    assert await next_list(database, NOW, limit=0) is None


async def test_lists_that_the_source_no_longer_names_are_dropped(
    database: Database, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    def root(at: datetime, *lists: str) -> ContractList:
        return ContractList(path="/list", received_at=at, lists=lists)

    await load(database, root(NOW, "/list/a", "/list/b", "/list/c"))
    await load(database, root(NOW + DAY, "/list/a", "/list/b"))
    known = await connection.fetch("SELECT path FROM contract_lists ORDER BY path")
    assert [path for (path,) in known] == ["/list", "/list/a", "/list/b"]

    # A list that lost most of them at once is not believed.
    await load(database, root(NOW + 2 * DAY))
    assert await connection.fetchval("SELECT count(*) FROM contract_lists") == 3
