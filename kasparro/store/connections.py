"""How many connections to PostgreSQL a process may have, and which pool gets how many of them."""

import msgspec

from kasparro.store.pool import CONNECTION_IDLE_S, Connection
from kasparro.store.sql import statements

_SQL = statements("operations/connections.sql")

# One each for health checks, for following the data version, for leading the loop and for a run.
RESERVED = 4
# With fewer a process could not do all its work at once; more would only wait for the processors.
LEAST, MOST = 8, 24
# What PostgreSQL allows by default, where it cannot be asked.
USUALLY_ALLOWED = 97
# With the fewest connections each, several processes may want more than the server allows. An idle
# connection of one process must then soon make room for another process that waits.
SCARCE_IDLE_S = 0.5
# A service takes this part of what PostgreSQL allows. The rest is for a second one, commands and backups.
PART = 2


class Shares(msgspec.Struct, frozen=True):
    """The most connections of each pool."""

    read: int
    slow: int
    export: int
    write: int


# The proportions of the pools, which are also their sizes with MOST connections.
_FULL = Shares(read=8, slow=2, export=4, write=6)


async def allowed(connection: Connection) -> int:
    """How many connections the server allows to this role in this database."""
    count: int = await connection.fetchval(_SQL["allowed"])
    return count


def per_process(server_allows: int, processes: int) -> int:
    """How many connections each of a service's processes may have of those that the server allows."""
    return min(max(server_allows // PART // processes, LEAST), MOST)


def shares(connections: int) -> Shares:
    """The pools of a process with so many connections: one each, the others in proportion."""
    sizes = dict.fromkeys(Shares.__struct_fields__, 1)
    for _ in range(connections - RESERVED - len(sizes)):
        scarcest = min(sizes, key=lambda pool: sizes[pool] / getattr(_FULL, pool))
        sizes[scarcest] += 1
    return Shares(**sizes)


def idle_limit_s(connections: int) -> float:
    """How long a process with so many connections keeps an idle one open."""
    return SCARCE_IDLE_S if connections <= LEAST else CONNECTION_IDLE_S
