"""The size of a database and the lag of a standby, as an ordinary role sees them."""

import asyncio
import signal
import sys

import asyncpg
import pytest

from kasparro.store.pool import Database
from kasparro.store.server_state import ServerState, server_state
from tests.support.postgres import Server, servers


async def state_of(server: Server) -> ServerState:
    connection = await asyncpg.connect(server.url())
    try:
        return await server_state(connection)
    finally:
        await connection.close()


async def test_a_primary_has_a_size_and_no_lag(database: Database) -> None:
    async with database.reading() as connection:
        state = await server_state(connection)
    assert state.database_bytes > 1_000_000
    assert state.lag_s is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux")
async def test_a_standby_lags_while_it_replays_nothing_or_has_no_primary() -> None:
    async with servers() as installation, asyncio.timeout(60):
        primary = await installation.primary()
        standby = await installation.standby(primary)
        async with primary.admin() as connection, standby.admin() as replica:
            while (await state_of(standby)).lag_s != 0:
                pass
            await replica.execute("SELECT pg_wal_replay_pause()")
            await connection.execute("CREATE TABLE moments AS SELECT now() AS moment")
            while (await state_of(standby)).lag_s == 0:
                pass
            # It has not replayed a transaction since it started, so its lag is unknown.
            assert (await state_of(standby)).lag_s is None
            await replica.execute("SELECT pg_wal_replay_resume()")
            while await replica.fetchval("SELECT to_regclass('moments')") is None:
                pass
            await replica.execute("SELECT pg_wal_replay_pause()")
            await connection.execute("INSERT INTO moments SELECT now()")
            while not (await state_of(standby)).lag_s:
                pass
            await replica.execute("SELECT pg_wal_replay_resume()")
            while (await state_of(standby)).lag_s != 0:
                pass
        await primary.end(signal.SIGINT)
        while not (await state_of(standby)).lag_s:
            pass
