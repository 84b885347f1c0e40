"""Connecting to one of several hosts, while others are down, silent or of the wrong kind."""

from collections.abc import AsyncIterator

import pytest

from kasparro.store.pool import Database
from tests.support.postgres import USER, Server, free_port, servers
from tests.support.proxy import Proxy

pytestmark = pytest.mark.slow

STANDBY = "SELECT pg_is_in_recovery()"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Server, Server]]:
    """A primary and its standby."""
    async with servers() as made:
        primary = await made.primary()
        yield primary, await made.standby(primary)


def url(*ports: int) -> str:
    return f"postgresql://{USER}@{','.join(f'127.0.0.1:{port}' for port in ports)}/{USER}"


async def test_writes_go_to_the_primary_and_reads_to_a_standby(pair: tuple[Server, Server]) -> None:
    primary, standby = pair
    both = url(standby.port, free_port(), primary.port)

    async with Database(both, both) as database:
        async with database.writing() as connection:
            assert await connection.fetchval(STANDBY) is False
        async with database.reading() as connection:
            assert await connection.fetchval(STANDBY) is True


async def test_silent_host_does_not_delay_the_others(pair: tuple[Server, Server]) -> None:
    primary, _ = pair
    async with Proxy(primary.port) as silent:
        silent.block()
        both = url(silent.port, primary.port)

        async with Database(both, both) as database:
            async with database.writing() as connection:
                assert await connection.fetchval(STANDBY) is False
            async with database.reading() as connection:
                assert await connection.fetchval(STANDBY) is False
