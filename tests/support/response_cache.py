"""Requests that see whether a response came from the cache, and statements that move the data version."""

import asyncio

import aiohttp

from kasparro.store.data_version import CHANNEL

MOVE = "UPDATE instance SET data_version = data_version + 1"
NOTIFY = f"SELECT pg_notify('{CHANNEL}', data_version::text) FROM instance"


def hit(response: aiohttp.ClientResponse) -> bool:
    return "cache;desc=hit" in response.headers["Server-Timing"]


async def cached(
    client: aiohttp.ClientSession, path: str = "/data", **headers: str
) -> aiohttp.ClientResponse:
    """Request until the response comes from the cache; returns it, read."""
    async with asyncio.timeout(10):
        while True:
            async with client.get(path, headers=headers) as response:
                await response.read()
                if hit(response):
                    return response


async def prices(client: aiohttp.ClientSession) -> list[float]:
    async with client.get("/data?sort=source_id") as response:
        return [row["price_usd"] for row in (await response.json())["data"]]


async def wait_for_prices(client: aiohttp.ClientSession, wanted: list[float], seconds: float) -> None:
    """Request until these are the prices."""
    async with asyncio.timeout(seconds):
        while await prices(client) != wanted:
            pass
