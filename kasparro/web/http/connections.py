"""Shares connections, and memory for unsent responses, between clients."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from kasparro.log_rate import RateLimitedLog

client_log = RateLimitedLog(structlog.get_logger())


class Connection(Protocol):
    """An HTTP connection, as the application and the limits see it.

    The application finds it as `scope["kasparro.connection"]`, under our own server only.
    """

    @property
    def pipelining(self) -> bool:
        """Whether another request waits behind the one that is being answered."""

    @property
    def connection_limit(self) -> int:
        """How many connections the server serves at once."""

    @property
    def aborted(self) -> bool:
        """Whether the connection was closed by `abort`."""

    on_shutdown: Callable[[], None] | None
    """Is called when the server begins to stop, if the application sets it."""

    def abort(self) -> None:
        """Close the connection at once, so that its client sees that the response is incomplete."""


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many connections and unsent bytes are allowed.

    `total` connections are served, `per_client` of one client. Beyond these, `reserve` more connections,
    `reserve_per_client` of one client, can only request the service's health. All clients together may leave
    `unsent_bytes` of responses unread.
    """

    total: int
    per_client: int
    reserve: int
    reserve_per_client: int
    unsent_bytes: int = 64 * 2**20

    @classmethod
    def of(cls, total: int) -> "ConnectionLimits":
        """The limits for `total` connections: a quarter for each client, and a sixteenth more as reserve."""
        reserve = max(8, total // 16)
        return cls(
            total=total,
            per_client=max(1, total // 4),
            reserve=reserve,
            reserve_per_client=max(2, reserve // 8),
        )


class Connections:
    """The connections of one server by client, and the bytes that wait for each client to read.

    A trusted proxy connects for many clients, so `per_client` does not apply to it.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self.total = limits.total
        self._served: dict[Connection, str] = {}
        self._served_by: Counter[str] = Counter()
        # Oldest first.
        self._reserve: dict[Connection, str] = {}
        self._unsent: dict[Connection, tuple[str, int]] = {}
        self._unsent_by: Counter[str] = Counter()
        self.unsent_bytes = 0
        self._pipelined: dict[str, deque[Callable[[], None]]] = {}

    def open(self, connection: Connection, client: str, *, is_proxy: bool) -> bool:
        """Add a connection. Returns True if it is served, False if it is in the reserve.

        A full reserve closes its oldest connection: a health check needs only a moment, and clients that hold
        connections must not shut it out.
        """
        limits = self._limits
        if len(self._served) >= limits.total:
            client_log.warning("connection_limit_reached", limit=limits.total, address=client)
        elif not is_proxy and self._served_by[client] >= limits.per_client:
            client_log.warning("connection_share_reached", limit=limits.per_client, address=client)
        else:
            self._served[connection] = client
            self._served_by[client] += 1
            return True
        own = [other for other, holder in self._reserve.items() if holder == client]
        if len(own) >= limits.reserve_per_client and not is_proxy:
            self._evict(own[0])
        elif len(self._reserve) >= limits.reserve:
            self._evict(next(iter(self._reserve)))
        self._reserve[connection] = client
        return False

    def _evict(self, connection: Connection) -> None:
        del self._reserve[connection]
        connection.abort()

    def close(self, connection: Connection) -> None:
        """Remove a connection that was closed."""
        client = self._served.pop(connection, None)
        if client is not None:
            self._served_by[client] -= 1
            if not self._served_by[client]:
                del self._served_by[client]
        self._reserve.pop(connection, None)
        self.clear_unsent(connection)

    def set_unsent(self, connection: Connection, client: str, size: int) -> None:
        """Record how many bytes wait for the client to read them.

        Beyond the limit of all clients, the client with the most bytes loses its oldest connections.
        """
        _, before = self._unsent.get(connection, (client, 0))
        self._unsent[connection] = client, size
        self._add_unsent(client, size - before)
        while self.unsent_bytes > self._limits.unsent_bytes:
            largest, _ = self._unsent_by.most_common(1)[0]
            oldest = next(other for other, (holder, _) in self._unsent.items() if holder == largest)
            client_log.info(
                "unread_responses_aborted", address=largest, limit_bytes=self._limits.unsent_bytes
            )
            self.clear_unsent(oldest)
            oldest.abort()

    def clear_unsent(self, connection: Connection) -> None:
        """Record that nothing waits for the client of this connection."""
        if connection in self._unsent:
            client, size = self._unsent.pop(connection)
            self._add_unsent(client, -size)

    def _add_unsent(self, client: str, size: int) -> None:
        self.unsent_bytes += size
        self._unsent_by[client] += size
        if not self._unsent_by[client]:
            del self._unsent_by[client]

    def schedule(self, client: str, start: Callable[[], None]) -> None:
        """Call `start`, which begins a pipelined request of this client, in fair order between clients.

        One pipelined request begins in each iteration of the event loop, client by client. Other requests and
        new connections never wait for them.
        """
        if not self._pipelined:
            asyncio.get_running_loop().call_soon(self._start_next)
        self._pipelined.setdefault(client, deque()).append(start)

    def _start_next(self) -> None:
        client = next(iter(self._pipelined))
        waiting = self._pipelined.pop(client)
        start = waiting.popleft()
        if waiting:
            self._pipelined[client] = waiting
        if self._pipelined:
            asyncio.get_running_loop().call_soon(self._start_next)
        start()
