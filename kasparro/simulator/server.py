"""Runs both stand-ins and their control API on one port, within the caller's event loop."""

import asyncio
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kasparro.simulator.answers import Answers
from kasparro.simulator.calls import Calls
from kasparro.simulator.clock import Clock
from kasparro.simulator.coingecko import CoinGecko
from kasparro.simulator.coinpaprika import CoinPaprika
from kasparro.simulator.control import routes
from kasparro.simulator.endpoint import Endpoint
from kasparro.simulator.faults import AnyFault, Armed, Faults
from kasparro.simulator.market import Api, Market
from kasparro.simulator.payloads import Payloads
from kasparro.simulator.quota import Quota
from kasparro.simulator.upstream import Account


class Simulator:
    """Both market APIs at ``coinpaprika_url`` and ``coingecko_url`` while the context lasts.

    The same seed, number of coins, base time and tick give the same market. ``manual`` time stands still
    until ``advance``; otherwise a tick passes every ``tick`` seconds. ``answers``
    holds what callers got whole where ``keep_answers`` is set.
    """

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
        keep_answers: bool = False,
    ) -> None:
        base = datetime.now(UTC).replace(microsecond=0) if base is None else base.astimezone(UTC)
        self.clock = Clock(base, round(tick * 1000), manual=manual)
        self.market = Market(self.clock, seed=seed, coins=coins)
        self.calls = Calls()
        self.answers = Answers(keep=keep_answers)
        self._faults = Faults(seed)
        self._payloads = Payloads()
        upstreams = (
            CoinPaprika(self.market, coinpaprika or Account()),
            CoinGecko(self.market, coingecko or Account()),
        )
        self._meters = [Quota(upstream.account, self.clock) for upstream in upstreams]
        mounts = [
            Mount(
                upstream.base,
                app=Endpoint(
                    upstream,
                    clock=self.clock,
                    meter=meter,
                    faults=self._faults,
                    payloads=self._payloads,
                    calls=self.calls,
                    answers=self.answers,
                ),
            )
            for upstream, meter in zip(upstreams, self._meters, strict=True)
        ]
        self._listener = _Listener(
            Starlette(routes=[*mounts, Mount("/control", routes=routes(self))]), host, port
        )

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

    @property
    def faults(self) -> list[Armed]:
        """The faults that are on."""
        return self._faults.armed()

    def add_fault(self, fault: AnyFault) -> Armed:
        return self._faults.add(fault)

    def remove_fault(self, fault_id: int) -> bool:
        """Switch one fault off; false if it was not on."""
        return self._faults.remove(fault_id)

    def clear_faults(self) -> None:
        self._faults.clear()

    def put_payload(self, api: Api, body: bytes, *, page: int = 1) -> None:
        """Serve these bytes as that page; other pages stay what they were."""
        self._payloads.put(api, page, body)

    def replay(self, api: Api, bodies: Sequence[bytes]) -> None:
        """Serve these bodies as the API's pages in order, and empty pages after them."""
        self._payloads.replay(api, bodies)

    def clear_payloads(self) -> None:
        """Serve the market again."""
        self._payloads.clear()

    def advance(self, ticks: int = 1) -> None:
        """Move time, and with it the market and the quotas, on."""
        self.clock.advance(ticks)

    def reset(self) -> None:
        """Back to the start: no faults, payloads, calls or counts, and the first tick."""
        self._faults.clear()
        self._payloads.clear()
        self.calls.clear()
        self.answers.clear()
        self.clock.reset()
        for meter in self._meters:
            meter.reset()


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also hands the connection to the application, to be cut."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class _Listener:
    """uvicorn's protocol behind a listening socket.

    ``uvicorn.Server`` is left out: it takes the process's signals, polls for its end, and waits for
    connections that a fault holds for good.
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
            raise RuntimeError("The simulator has an address while it runs: enter its context first.")
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
        """Stop listening, drop every connection and wait for the calls on them to end."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        self._server = None
