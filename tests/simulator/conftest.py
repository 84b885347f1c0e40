"""A simulator with a stopped clock, and a client for it."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aiohttp
import pytest

from kasparro.simulator import Simulator
from tests.simulator.client import Client

BASE = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(seed=7, coins=600, base=BASE, manual=True) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
def client(simulator: Simulator, session: aiohttp.ClientSession) -> Client:
    return Client(simulator, session)
