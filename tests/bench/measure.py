"""What the benchmarks share: a server of their own, commands, and medians with their spread."""

import asyncio
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from kasparro.store.embedded import EmbeddedPostgres
from tests.conftest import on_server


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """An embedded PostgreSQL with nothing else on it; gives its URL."""
    with tempfile.TemporaryDirectory() as home:
        async with EmbeddedPostgres(Path(home)) as running:
            yield running.dsn


async def fresh(server_url: str, name: str) -> str:
    """An empty database of this name, made anew; gives its URL."""
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.execute("CHECKPOINT")
    await connection.close()
    return on_server(server_url, name)


async def process(*command: str, **environment: str) -> bytes:
    """Run a command to its end; gives its output. Raises RuntimeError with its errors where it fails."""
    running = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    output, errors = await running.communicate()
    if running.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode()[-2000:]}")
    return output


def spread(values: list[float], unit: str) -> str:
    """The median, and the smallest and largest around it."""
    return f"{statistics.median(values):,.0f} {unit} ({min(values):,.0f}..{max(values):,.0f})"
