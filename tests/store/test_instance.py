"""A database holds real or simulated data, never both."""

import pytest

from kasparro.errors import WrongDatabase
from kasparro.pipeline.run import Run
from kasparro.store.instance import claim
from kasparro.store.pool import Connection, Database


async def test_database_without_runs_can_become_either(database: Database) -> None:
    await claim(database, demo=True)
    await claim(database, demo=False)
    await claim(database, demo=True)


@pytest.mark.parametrize("demo", [True, False])
async def test_first_run_fixes_the_kind_of_the_database(database: Database, demo: bool) -> None:
    await claim(database, demo=demo)
    async with Run(database, [], "etl"):
        pass

    await claim(database, demo=demo)
    with pytest.raises(WrongDatabase):
        await claim(database, demo=not demo)


async def test_claim_does_not_wait_for_a_batch(database: Database, connection: Connection) -> None:
    await claim(database, demo=False)
    async with connection.transaction():
        await connection.execute("SELECT FROM instance FOR UPDATE")

        await claim(database, demo=False)
