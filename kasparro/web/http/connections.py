"""Shares the connections of a process, and the memory for what waits to be sent, between its clients."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from kasparro.log_rate import RateLimitedLog

client_log = RateLimitedLog(structlog.get_logger())


class Connection(Protocol):
    """A connection of an HTTP server, as far as the application and the limits know it.

    The application finds it as `scope["kasparro.connection"]`, and only under our own server.
    """

    @property
    def pipelining(self) -> bool:
        """Whether its client has sent another request before it has the answer to this one."""

    def cut(self) -> None:
        """End it at once, so that an answer in progress is seen to be incomplete."""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How connections and memory are shared.

    `most` connections are served, `each` of one client. Beyond either, `reserve` more may ask for the health
    of the service and nothing else, `reserve_each` of one client. All clients together may leave
    `waiting_bytes` of answers unread.
    """

    total: int
    per_client: int
    reserve: int
    reserve_per_client: int
    unsent_bytes: int = 64 * 2**20

    @classmethod
    def of(cls, most: int) -> "ConnectionLimits":
        """The shares of `most` connections: a quarter for each client, and a sixteenth more in reserve."""
        reserve = max(8, most // 16)
        return cls(
            total=most, per_client=max(1, most // 4), reserve=reserve, reserve_per_client=max(2, reserve // 8)
        )


class Connections:
    """The connections of one server: who holds them, and how many bytes wait for their clients to read.

    Proxies hold connections for many clients, so a client that `is_proxy` has no share of its own.
    """

    def __init__(self, shares: ConnectionLimits) -> None:
        self._shares = shares
        self._served: dict[Connection, str] = {}
        self._served_by: Counter[str] = Counter()
        # In the order of their opening.
        self._reserve: dict[Connection, str] = {}
        self._waiting: dict[Connection, tuple[str, int]] = {}
        self._waiting_by: Counter[str] = Counter()
        self.unsent_bytes = 0
        self._turns: dict[str, deque[Callable[[], None]]] = {}

    def open(self, connection: Connection, client: str, *, is_proxy: bool) -> bool:
        """Add a connection; gives whether it is served, or else in the reserve.

        A full reserve gives the place of its oldest connection to the new one: a health check needs its place
        for a moment only, and clients that hold places must not shut it out.
        """
        shares = self._shares
        if len(self._served) >= shares.total:
            client_log.warning("connection_limit_reached", limit=shares.total, address=client)
        elif not is_proxy and self._served_by[client] >= shares.per_client:
            client_log.warning("connection_share_reached", limit=shares.per_client, address=client)
        else:
            self._served[connection] = client
            self._served_by[client] += 1
            return True
        own = [other for other, holder in self._reserve.items() if holder == client]
        if len(own) >= shares.reserve_per_client and not is_proxy:
            self._drop(own[0])
        elif len(self._reserve) >= shares.reserve:
            self._drop(next(iter(self._reserve)))
        self._reserve[connection] = client
        return False

    def _drop(self, connection: Connection) -> None:
        del self._reserve[connection]
        connection.cut()

    def close(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        client = self._served.pop(connection, None)
        if client is not None:
            self._served_by[client] -= 1
            if not self._served_by[client]:
                del self._served_by[client]
        self._reserve.pop(connection, None)
        self.read(connection)

    def wait(self, connection: Connection, client: str, size: int) -> None:
        """Note that so many bytes wait for the client to read them.

        Where all clients together leave too much unread, the one with the most loses its oldest connections.
        """
        _, before = self._waiting.get(connection, (client, 0))
        self._waiting[connection] = client, size
        self._add(client, size - before)
        while self.unsent_bytes > self._shares.unsent_bytes:
            greediest, _ = self._waiting_by.most_common(1)[0]
            oldest = next(other for other, (holder, _) in self._waiting.items() if holder == greediest)
            client_log.info(
                "unread_responses_aborted", address=greediest, limit_bytes=self._shares.unsent_bytes
            )
            self.read(oldest)
            oldest.cut()

    def read(self, connection: Connection) -> None:
        """Note that nothing waits for the client of this connection any more."""
        if connection in self._waiting:
            client, size = self._waiting.pop(connection)
            self._add(client, -size)

    def _add(self, client: str, size: int) -> None:
        self.unsent_bytes += size
        self._waiting_by[client] += size
        if not self._waiting_by[client]:
            del self._waiting_by[client]

    def take_turn(self, client: str, begin: Callable[[], None]) -> None:
        """Call `begin`, which starts work that a client has sent ahead, when the client has its turn.

        One such start is made in each round of the event loop, by turns of the clients. Requests that nobody
        sent ahead, and new connections, never wait for those that were.
        """
        if not self._turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._turns.setdefault(client, deque()).append(begin)

    def _next_turn(self) -> None:
        client = next(iter(self._turns))
        waiting = self._turns.pop(client)
        begin = waiting.popleft()
        if waiting:
            self._turns[client] = waiting
        if self._turns:
            asyncio.get_running_loop().call_soon(self._next_turn)
        begin()
