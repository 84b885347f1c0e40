"""Reads the state of a database server: the size of the database, and the lag of a standby."""

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import statements

_SQL = statements("read/server.sql")


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """`lag_s` is how far a standby is behind its primary in seconds; None for a primary, and if unknown."""

    database_bytes: int
    lag_s: float | None


async def lag_s(connection: Connection) -> float | None:
    """How far the standby of this connection is behind its primary in seconds; None as in `ServerState`."""
    found: float | None = await connection.fetchval(_SQL["lag"])
    return found


async def server_state(connection: Connection) -> ServerState:
    """The state of the server of this connection."""
    (row,) = await connection.fetch(_SQL["state"])
    return ServerState(**row)
