"""Connects to the one of several hosts that will do, also while another of them is silent."""

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from kasparro.concurrency import failure, timeout

if TYPE_CHECKING:
    from collections.abc import Sequence

# So much sooner a host is asked than the next one, as long as it says nothing.
HEAD_START_S = 0.25


async def connect(dsn: str | None = None, **options: Any) -> "asyncpg.Connection[asyncpg.Record]":
    """As `asyncpg.connect`, which waits for each host of a URL in turn within one time limit: a host that is
    gone without a word, as one is from which others fail over, would leave no time for the next.

    Takes a URL, and with several hosts `timeout` and `target_session_attrs`. Raises what the last host that
    failed did, or TimeoutError.
    """
    hosts = _one_by_one(dsn or "")
    if len(hosts) == 1:
        return await asyncpg.connect(dsn, **options)
    timeout_s, wanted = options.pop("timeout"), options.pop("target_session_attrs")
    if wanted is SessionAttribute.prefer_standby:
        try:
            return await _race(hosts, timeout_s / 2, SessionAttribute.standby, options)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return await _race(hosts, timeout_s / 2, SessionAttribute.any, options)
    return await _race(hosts, timeout_s, wanted, options)


async def _race(
    hosts: "Sequence[str]", timeout_s: float, wanted: SessionAttribute, options: dict[str, Any]
) -> "asyncpg.Connection[asyncpg.Record]":
    left = list(hosts)
    asked: set[asyncio.Task[Any]] = set()
    try:
        async with timeout(timeout_s):
            while True:
                if left:
                    coming = asyncpg.connect(left.pop(0), target_session_attrs=wanted, **options)
                    asked.add(asyncio.create_task(coming))
                done, _ = await asyncio.wait(
                    asked, timeout=HEAD_START_S if left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    asked.discard(task)
                    error = failure(task)
                    if error is None:
                        connection: asyncpg.Connection[asyncpg.Record] = task.result()
                        return connection
                    if not (left or asked):
                        raise error
    finally:
        for task in asked:
            task.cancel()
        for late in await asyncio.gather(*asked, return_exceptions=True):
            if not isinstance(late, BaseException):
                late.terminate()


def _one_by_one(dsn: str) -> list[str]:
    """The URLs of each of a URL's hosts."""
    parts = urlsplit(dsn)
    user, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")]
