"""Connects to the first of several hosts that fits, even if another one does not respond."""

import asyncio
import random
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.concurrency import failure, timeout

if TYPE_CHECKING:
    from collections.abc import Sequence

# Delay before the next host is tried too (as in RFC 8305, Happy Eyeballs).
ATTEMPT_DELAY_S = 0.25


async def connect(dsn: str | None = None, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """Connect as `asyncpg.connect` does, but to all hosts of a URL side by side.

    asyncpg tries one host after the other within one time limit: a host that vanished, as in a failover,
    would leave no time for the next one. Standbys are tried in random order. With several hosts, `timeout`
    and `target_session_attrs` are required. Raises the error of the last host that failed, or TimeoutError.
    """
    hosts = url_per_host(dsn or "")
    if len(hosts) == 1:
        return await asyncpg.connect(dsn, **options)
    timeout_s, attrs = options.pop("timeout"), options.pop("target_session_attrs")
    if attrs is SessionAttribute.prefer_standby:
        # Standbys share the reads.
        random.shuffle(hosts)
        try:
            return await _race(hosts, timeout_s / 2, SessionAttribute.standby, options)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return await _race(hosts, timeout_s / 2, SessionAttribute.any, options)
    return await _race(hosts, timeout_s, attrs, options)


async def _race(
    hosts: "Sequence[str]", timeout_s: float, attrs: SessionAttribute, options: dict[str, Any]
) -> "asyncpg.Connection[asyncpg.Record]":
    untried = list(hosts)
    attempts: set[asyncio.Task[Any]] = set()
    try:
        async with timeout(timeout_s):
            while True:
                if untried:
                    attempt = asyncpg.connect(untried.pop(0), target_session_attrs=attrs, **options)
                    attempts.add(asyncio.create_task(attempt))
                done, _ = await asyncio.wait(
                    attempts,
                    timeout=ATTEMPT_DELAY_S if untried else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    attempts.discard(task)
                    error = failure(task)
                    if error is None:
                        connection: asyncpg.Connection[asyncpg.Record] = task.result()
                        return connection
                    if not (untried or attempts):
                        raise error
    finally:
        for task in attempts:
            task.cancel()
        for late in await asyncio.gather(*attempts, return_exceptions=True):
            if not isinstance(late, BaseException):
                late.terminate()


def url_per_host(dsn: str) -> list[str]:
    """A URL for each host of a URL."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")]
