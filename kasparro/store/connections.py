"""Shares out the connections that PostgreSQL allows: among processes, and among the pools of a process."""

import msgspec

from kasparro.store.pool import CONNECTION_IDLE_S, Connection
from kasparro.store.sql import statements

_SQL = statements("operations/connections.sql")

# One each for health checks, for following the data version, for the leader's lease and for the run lock.
RESERVED = 4
# With fewer, a process cannot do all its work at the same time; more would only wait for the processors.
LEAST, MOST = 8, 24
# What PostgreSQL allows by default; used if it does not answer.
DEFAULT_ALLOWED = 97
# With the fewest connections each, several processes may want more than the server allows. An idle
# connection of one process must then soon make room for another process that waits.
SCARCE_IDLE_S = 0.5
# A service uses this part of what PostgreSQL allows. The rest is for a second service, commands and backups.
PART = 2


class Shares(msgspec.Struct, frozen=True):
    """The size of each pool."""

    read: int
    slow: int
    export: int
    write: int


# The proportions of the pools, which are also their sizes with MOST connections.
_FULL = Shares(read=8, slow=2, export=4, write=6)


async def allowed(connection: Connection) -> int:
    """How many connections the server allows for this role in this database."""
    count: int = await connection.fetchval(_SQL["allowed"])
    return count


def per_process(server_allows: int, processes: int) -> int:
    """The connections of each process of a service, of those that the server allows."""
    return min(max(server_allows // PART // processes, LEAST), MOST)


def shares(connections: int) -> Shares:
    """The pools of a process with this many connections: one for each pool, and the others in proportion."""
    sizes = dict.fromkeys(Shares.__struct_fields__, 1)
    for _ in range(connections - RESERVED - len(sizes)):
        scarcest = min(sizes, key=lambda pool: sizes[pool] / getattr(_FULL, pool))
        sizes[scarcest] += 1
    return Shares(**sizes)


def idle_limit_s(connections: int) -> float:
    """How long a process with this many connections keeps an idle one open."""
    return SCARCE_IDLE_S if connections <= LEAST else CONNECTION_IDLE_S
