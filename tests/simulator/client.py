"""An HTTP client for a simulator; it reads numbers as text, exactly as sent."""

import json
from typing import Any

import aiohttp
import msgspec

from kasparro.simulator import Simulator


class Reply(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body, parse_float=str, parse_int=str)

    @property
    def ids(self) -> list[str]:
        return [record["id"] for record in self.json()]


class Client:
    """Sends requests to one simulator."""

    def __init__(self, simulator: Simulator, session: aiohttp.ClientSession) -> None:
        self._simulator = simulator
        self._session = session

    async def request(self, method: str, url: str, **options: Any) -> Reply:
        async with self._session.request(method, url, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, headers, await response.read())

    async def tickers(self, **options: Any) -> Reply:
        return await self.request("GET", f"{self._simulator.coinpaprika_url}/tickers", **options)

    async def markets(self, *, headers: dict[str, str] | None = None, **parameters: str | int) -> Reply:
        query: dict[str, str | int] = {
            "vs_currency": "usd",
            "per_page": 250,
            "precision": "full",
            **parameters,
        }
        url = f"{self._simulator.coingecko_url}/coins/markets"
        return await self.request("GET", url, params=query, headers=headers)

    async def control(self, method: str, path: str, **options: Any) -> Reply:
        return await self.request(method, f"{self._simulator.url}/control/{path}", **options)
