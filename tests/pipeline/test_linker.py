"""What is decided while the last batches are merged is what would be decided after them."""

import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from kasparro.assets.process_client import Resolver, ResolverFailed
from kasparro.model.record import Record
from kasparro.pipeline.identity import AssetOptions, Linker
from kasparro.sources.archives.source import Archives
from kasparro.store.loader import Loader
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.conftest import copied_database
from tests.support.batches import T0, load_records, make_batch, make_record
from tests.support.runs import run_sources

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MINUTE = timedelta(minutes=1)


async def decide_early(linker: Linker) -> Resolver:
    """Let the linker decide early, and wait until it has; returns the process."""
    linker.decide_early()
    assert linker._early is not None
    assert await linker._early is not None
    assert linker._resolver is not None
    return linker._resolver


async def end(resolver: Resolver) -> None:
    """Kill the process, as a system short of memory does."""
    resolver._process.kill()
    await resolver._process.wait()


async def start(database: Database) -> Linker:
    """A linker of a run of archives."""
    run = await RunRecord.start(database, "etl", ("csv",), T0)
    return Linker(database, run.id, AssetOptions(), (), lambda: T0)


async def load_meanwhile(database: Database, linker: Linker, *records: Record) -> None:
    """Load another batch in the linker's run."""
    await Loader(database, linker._run_id, "csv").load(make_batch(*records), T0 + MINUTE)


async def linked(connection: Any) -> dict[str, tuple[Any, ...]]:
    """The asset, symbol and price of each row that has an asset, by its id."""
    rows = await connection.fetch(
        "SELECT coin.source_id, asset, link.symbol, consensus.price_usd FROM unified_data AS coin "
        "INNER JOIN asset_links AS link USING (source, source_id, asset) "
        "INNER JOIN unified_assets AS consensus USING (asset)"
    )
    return {row[0]: tuple(row)[1:] for row in rows}


async def test_what_no_figure_changes_is_not_decided_again(
    database: Database, connection: Connection
) -> None:
    await load_records(database, "csv", make_record(price_usd=Decimal(1)))
    async with await start(database) as linker:
        resolver = await decide_early(linker)
        later = make_record(at=T0 + MINUTE, price_usd=Decimal(2), rank=7)
        await load_meanwhile(database, linker, later)
        await end(resolver)
        await linker.link_rows()

    assert await linked(connection) == {"btc-bitcoin": ("btc-bitcoin", "BTC", 2)}


async def test_rows_whose_labels_changed_are_decided_again(
    database: Database, connection: Connection
) -> None:
    await load_records(database, "csv", make_record(price_usd=Decimal(1)))
    async with await start(database) as linker:
        await decide_early(linker)
        await load_meanwhile(
            database,
            linker,
            make_record(at=T0 + MINUTE, price_usd=Decimal(1), symbol="XBT"),
            make_record("eth", price_usd=Decimal(3), symbol="ETH", name="Ethereum"),
        )
        await linker.link_rows()

    assert await linked(connection) == {
        "btc-bitcoin": ("xbt-bitcoin", "XBT", 1),
        "eth": ("eth-ethereum", "ETH", 3),
    }


async def test_a_row_that_was_deleted_meanwhile_gets_no_asset(
    database: Database, connection: Connection
) -> None:
    await load_records(database, "csv", make_record(price_usd=Decimal(1)))
    async with await start(database) as linker:
        await decide_early(linker)
        await connection.execute("DELETE FROM unified_data")
        await linker.link_rows()

    assert await connection.fetchval("SELECT count(*) FROM assets") == 0


async def test_another_process_decides_if_the_first_one_was_killed(
    database: Database, connection: Connection
) -> None:
    """Prices decide about two rows of one name, so that nothing was decided early."""
    await load_records(database, "coingecko", make_record("bitcoin", price_usd=Decimal(1)))
    await load_records(database, "csv", make_record(price_usd=Decimal(1)))
    async with await start(database) as linker:
        await end(await decide_early(linker))
        await linker.link_rows()

    assert {asset for asset, *_ in (await linked(connection)).values()} == {"btc-bitcoin"}


async def test_an_early_decision_that_fails_is_made_later(
    database: Database, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load_records(database, "csv", make_record(price_usd=Decimal(1)))
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nread _\nkill -9 $$\n")
    program.chmod(0o755)
    async with await start(database) as linker:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(program))
            with pytest.raises(ResolverFailed):
                await decide_early(linker)
        await linker.link_rows()

    assert (await linked(connection)).keys() == {"btc-bitcoin"}


def write_archive(path: Path, numbers: range, moment: int) -> None:
    """Write the prices of these coins at a moment. Some names are those of two coins."""
    rows = "".join(f"c-{n},C{n},Coin {n % 55},{n + 1},{1_515_230_661 + moment}\n" for n in numbers)
    path.write_text(f"id,symbol,name,price_usd,last_updated\n{rows}")


async def test_a_run_decides_while_its_last_batch_is_merged(
    database: Database, connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(tmp_path / "0.csv", range(20), 0)
    await run_sources(database, [Archives(str(tmp_path))])
    write_archive(tmp_path / "1.csv", range(20), 1)
    monkeypatch.delattr(Resolver, "decide")

    await run_sources(database, [Archives(str(tmp_path))], assets=AssetOptions())

    assert len(await linked(connection)) == 20


async def test_a_run_links_as_one_decision_after_its_end_does(
    database: Database, connection: Connection, tmp_path: Path, server_url: str, template: str
) -> None:
    """With coins that only the last batch has."""
    for moment, numbers in enumerate((range(40), range(20, 60))):
        write_archive(tmp_path / f"{moment}.csv", numbers, moment)

    await run_sources(database, [Archives(str(tmp_path))], assets=AssetOptions())

    async with copied_database(server_url, template) as url, Database(url) as other:
        await run_sources(other, [Archives(str(tmp_path))])
        async with await start(other) as linker:
            await linker.link_rows()
        async with other.reading() as reader:
            assert await linked(connection) == await linked(reader)
    assert len(await linked(connection)) == 60
