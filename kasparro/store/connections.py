"""Divides the connections that PostgreSQL allows among processes, and among the pools of a process."""

import msgspec

from kasparro.store.pool import CONNECTION_IDLE_S, Connection
from kasparro.store.sql import statements

_SQL = statements("operations/connections.sql")

# One each for health checks, the data version, the leader's lease and the run lock. The upkeep of the history
# opens one now and then, and waits if the server has none free.
RESERVED = 4
# The limits for one process. With fewer connections it cannot do all its work at the same time. With more,
# queries would only wait for the processors.
LEAST, MOST = 8, 24
# The connections that PostgreSQL allows by default; assumed if the server does not answer.
DEFAULT_ALLOWED = 97
# The size of a pool of PgBouncer by default; nothing tells a client the real one.
POOLER_ALLOWED = 20
# If each process has only LEAST connections, all processes together may need more than the server allows. So
# they close idle connections soon, because another process may wait for one.
SCARCE_IDLE_S = 0.5
# A service uses 1 / PART of the allowed connections. The rest is for a second service, commands and backups.
PART = 2


class Shares(msgspec.Struct, frozen=True):
    """The size of each pool."""

    read: int
    slow: int
    export: int
    write: int


# The sizes of the pools with MOST connections. With fewer, they have the same proportions.
_FULL = Shares(read=8, slow=2, export=4, write=6)


async def allowed(connection: Connection) -> int:
    """How many connections the server allows for this role in this database."""
    count: int = await connection.fetchval(_SQL["allowed"])
    return count


def per_process(server_allows: int, processes: int) -> int:
    """How many connections each of the `processes` of a service may use."""
    return min(max(server_allows // PART // processes, LEAST), MOST)


def shares(connections: int) -> Shares:
    """Divide the connections of a process among its pools: one for each pool, the others in proportion."""
    sizes = dict.fromkeys(Shares.__struct_fields__, 1)
    for _ in range(connections - RESERVED - len(sizes)):
        scarcest = min(sizes, key=lambda pool: sizes[pool] / getattr(_FULL, pool))
        sizes[scarcest] += 1
    return Shares(**sizes)


def idle_limit_s(connections: int) -> float:
    """How long a process with this many connections keeps an idle connection open."""
    return SCARCE_IDLE_S if connections <= LEAST else CONNECTION_IDLE_S
