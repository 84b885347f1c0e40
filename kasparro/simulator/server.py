"""Serves a simulation and its control API on one port, within the caller's event loop."""

import asyncio
import socket
from datetime import datetime
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kasparro.simulator.coingecko import CoinGecko
from kasparro.simulator.coinpaprika import CoinPaprika
from kasparro.simulator.control import routes
from kasparro.simulator.simulation import Simulation
from kasparro.simulator.upstream import Account


class Simulator(Simulation):
    """A simulation that is served at `coinpaprika_url` and `coingecko_url` within its context."""

    def __init__(
        self,
        *,
        seed: int = 1,
        coins: int = 2_500,
        base: datetime | None = None,
        tick: float = 60.0,
        manual: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        coinpaprika: Account | None = None,
        coingecko: Account | None = None,
        record_served: bool = False,
    ) -> None:
        super().__init__(
            seed=seed,
            coins=coins,
            base=base,
            tick=tick,
            manual=manual,
            coinpaprika=coinpaprika,
            coingecko=coingecko,
            record_served=record_served,
        )
        app = Starlette(routes=[*self.mounts, Mount("/control", routes=routes(self))])
        self._listener = _Listener(app, host, port)

    async def __aenter__(self) -> Self:
        await self._listener.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._listener.close()

    @property
    def url(self) -> str:
        return self._listener.url

    @property
    def coinpaprika_url(self) -> str:
        return self.url + CoinPaprika.base

    @property
    def coingecko_url(self) -> str:
        return self.url + CoinGecko.base


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol; it also gives the application the connection, so that a fault can close it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class _Listener:
    """uvicorn's protocol behind a listening socket.

    It does not use `uvicorn.Server`, which handles the process's signals, polls for its end, and waits for
    connections that a fault holds forever.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        self._state = ServerState()
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        if self._server is None:
            raise RuntimeError("The simulator has an address only while it runs: enter its context first.")
        return f"http://{self._host}:{self._port}"

    async def open(self) -> None:
        self._config.load()
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.create_server((self._host, self._port), family=family, backlog=1024)
        self._port = listening.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._protocol, sock=listening, backlog=1024)

    def _protocol(self) -> _Protocol:
        return _Protocol(self._config, self._state, {})

    async def close(self) -> None:
        """Stop listening, close every connection and wait for its calls to end."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        self._server = None
