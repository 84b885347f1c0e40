"""The faults that a round may inject. Each is a context manager: entering injects it, leaving repairs it."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from tests.chaos.world import FAKETIME, TOKEN, Process, Service, World
from tests.support.postgres import USER

Injection = Callable[[World, random.Random], AbstractAsyncContextManager[None]]


class Fault(NamedTuple):
    """A kind of fault. A round has at most one fault of a `group`, since two would interfere."""

    name: str
    group: str
    inject: Injection
    lasts: tuple[float, float]
    """Shortest and longest duration, in seconds."""
    impossible: Callable[[World], str | None]
    """The reason why this machine cannot inject it; None if it can."""


FAULTS: list[Fault] = []


def _possible(world: World) -> str | None:
    del world
    return None


def _fault(
    name: str,
    group: str,
    lasts: tuple[float, float] = (0.2, 1.5),
    impossible: Callable[[World], str | None] = _possible,
) -> Callable[[Callable[[World, random.Random], AsyncIterator[None]]], Injection]:
    def register(inject: Callable[[World, random.Random], AsyncIterator[None]]) -> Injection:
        context = asynccontextmanager(inject)
        FAULTS.append(Fault(name, group, context, lasts, impossible))
        return context

    return register


# The service's processes


@_fault("a service killed", "service")
async def _service_killed(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.service_down(chance.choice(world.services)) as (service,):
        await service.kill()
        yield
        await service.start()


@_fault("all services killed", "service")
async def _services_killed(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.service_down(*world.services) as services:
        await asyncio.gather(*(service.kill() for service in services))
        yield
        await asyncio.gather(*(service.start() for service in services))


@_fault("a service stopped by SIGTERM", "service")
async def _service_stopped(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.service_down(chance.choice(world.services)) as (service,):
        if (code := await service.stop()) != 0:
            raise AssertionError(f"{service.name} ended with {code} after SIGTERM")
        yield
        await service.start()


@_fault("a service paused", "service")
async def _service_paused(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.service_down(chance.choice(world.services)) as (service,):
        service.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            service.signal(signal.SIGCONT)


@_fault("a service paused beyond its lease", "service", lasts=(6.5, 7.5))
async def _service_paused_long(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _service_paused(world, chance):
        yield


# PostgreSQL


@asynccontextmanager
async def _server_down(world: World, how: signal.Signals) -> AsyncIterator[None]:
    await world.server.end(how)
    async with world.database_down(*world.services):
        yield
    await world.server.start()


@_fault("PostgreSQL killed", "database")
async def _server_killed(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _server_down(world, signal.SIGKILL):
        yield


@_fault("PostgreSQL shut down immediately", "database")
async def _server_shut_down_immediately(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _server_down(world, signal.SIGQUIT):
        yield


@_fault("PostgreSQL shut down", "database")
async def _server_shut_down(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _server_down(world, signal.SIGINT):
        yield


@_fault("PostgreSQL restarted", "database", lasts=(0, 0))
async def _server_restarted(world: World, chance: random.Random) -> AsyncIterator[None]:
    await world.server.end(chance.choice((signal.SIGQUIT, signal.SIGINT)))
    await world.server.start()
    yield


@_fault("PostgreSQL frozen", "database", lasts=(0.5, 4))
async def _server_frozen(world: World, chance: random.Random) -> AsyncIterator[None]:
    world.server.freeze()
    try:
        async with world.database_down(*world.services):
            yield
    finally:
        world.server.thaw()


@asynccontextmanager
async def _repeated(world: World, statement: str) -> AsyncIterator[None]:
    async def repeat() -> None:
        async with world.server.admin() as connection:
            while True:
                await connection.execute(statement)
                await asyncio.sleep(0.05)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


_OURS = f"FROM pg_stat_activity WHERE usename = '{USER}'"


@_fault("connections terminated", "database")
async def _terminated(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _repeated(world, f"SELECT pg_terminate_backend(pid) {_OURS} AND random() < 0.3"):
        yield


@_fault("statements cancelled", "database")
async def _cancelled(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with _repeated(world, f"SELECT pg_cancel_backend(pid) {_OURS} AND random() < 0.3"):
        yield


@_fault("a table locked by another session", "database", lasts=(0.5, 2.5))
async def _locked(world: World, chance: random.Random) -> AsyncIterator[None]:
    table = chance.choice(("unified_data", "unified_history", "run_sources", "runs", "instance", "api_calls"))
    async with world.server.admin() as connection, connection.transaction():
        await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield


@_fault("no connections left", "database")
async def _no_connections(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.server.admin() as connection:
        await connection.execute(f"ALTER ROLE {USER} CONNECTION LIMIT 0")
        try:
            if chance.random() < 0.7:
                await connection.execute(f"SELECT pg_terminate_backend(pid) {_OURS}")
            yield
        finally:
            await connection.execute(f"ALTER ROLE {USER} CONNECTION LIMIT -1")


@_fault("PostgreSQL read-only", "database")
async def _read_only(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.server.admin() as connection:
        await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await connection.execute("SELECT pg_reload_conf()")


@_fault("batches serializable", "database")
async def _serializable(world: World, chance: random.Random) -> AsyncIterator[None]:
    async with world.server.admin() as connection:
        await connection.execute("ALTER SYSTEM SET default_transaction_isolation = serializable")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            await connection.execute("ALTER SYSTEM RESET default_transaction_isolation")
            await connection.execute("SELECT pg_reload_conf()")


@_fault("a full disk", "database", impossible=lambda world: world.disk.missing)
async def _full_disk(world: World, chance: random.Random) -> AsyncIterator[None]:
    try:
        await asyncio.to_thread(world.disk.fill)
        yield
    finally:
        world.disk.clear()


# Connections


@asynccontextmanager
async def _broken_connections(
    proxies: list[Any], action: Callable[[Any], None], world: World, *without_database: Service
) -> AsyncIterator[None]:
    for proxy in proxies:
        action(proxy)
    try:
        async with world.database_down(*without_database):
            yield
    finally:
        for proxy in proxies:
            proxy.forward()


@_fault("a service disconnected from PostgreSQL", "database connection")
async def _database_disconnected(world: World, chance: random.Random) -> AsyncIterator[None]:
    service = chance.choice(world.services)
    async with _broken_connections([service.database], lambda proxy: proxy.reject(), world, service):
        yield


@_fault("all services disconnected from PostgreSQL", "database connection")
async def _database_disconnected_all(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.database for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.reject(), world, *world.services):
        yield


@_fault("packets to PostgreSQL dropped", "database connection", lasts=(0.5, 3.5))
async def _database_packets_dropped(world: World, chance: random.Random) -> AsyncIterator[None]:
    service = chance.choice(world.services)
    async with _broken_connections([service.database], lambda proxy: proxy.block(), world, service):
        yield


@_fault("all packets to PostgreSQL dropped", "database connection", lasts=(0.5, 3.5))
async def _database_packets_dropped_all(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.database for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.block(), world, *world.services):
        yield


@_fault("slow connections to PostgreSQL", "database connection")
async def _database_slow(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.database for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.delay(0.05), world):
        yield


@_fault("connections to PostgreSQL half closed", "database connection")
async def _database_half(world: World, chance: random.Random) -> AsyncIterator[None]:
    half = chance.choice(("client", "server"))
    proxies = [service.database for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.close_half(half), world):
        yield


@_fault("the upstreams disconnected", "upstream connection")
async def _upstream_disconnected(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.upstream for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.reject(), world):
        yield


@_fault("packets to the upstreams dropped", "upstream connection")
async def _upstream_packets_dropped(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.upstream for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.block(), world):
        yield


@_fault("slow connections to the upstreams", "upstream connection")
async def _upstream_slow(world: World, chance: random.Random) -> AsyncIterator[None]:
    proxies = [service.upstream for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.delay(0.1), world):
        yield


@_fault("connections to the upstreams half closed", "upstream connection")
async def _upstream_half(world: World, chance: random.Random) -> AsyncIterator[None]:
    half = chance.choice(("client", "server"))
    proxies = [service.upstream for service in world.services]
    async with _broken_connections(proxies, lambda proxy: proxy.close_half(half), world):
        yield


@_fault("the upstreams paused", "upstream connection")
async def _upstream_paused(world: World, chance: random.Random) -> AsyncIterator[None]:
    world.simulator.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        world.simulator.signal(signal.SIGCONT)


# Responses of the upstreams

_RESPONSES: dict[str, dict[str, Any]] = {
    "500": {"kind": "status", "code": 500},
    "503 with Retry-After": {"kind": "status", "code": 503, "retry_after": 1},
    "429 with Retry-After": {"kind": "status", "code": 429, "retry_after": 1, "body": "plain"},
    "429 for two minutes": {"kind": "status", "code": 429, "retry_after": 119},
    "401": {"kind": "status", "code": 401},
    "half a response": {"kind": "truncated"},
    "nothing": {"kind": "hang"},
    "a slow response": {"kind": "slow", "bytes_per_second": 2_000_000},
    "a web page": {"kind": "html"},
    "a reset": {"kind": "reset"},
    "an empty body": {"kind": "empty"},
    "an object for a list": {"kind": "not-an-array"},
    "broken gzip": {"kind": "gzip-garbage"},
    "bad records": {
        "kind": "bad-records",
        "records": ["negative-price", "long-number", "null-id", "missing-id", "duplicate", "nul"],
    },
    "no JSON inside": {"kind": "bad-records", "records": ["nan", "lone-surrogate", "not-an-object"]},
}
_SHIFTS = {"pages that repeat coins": 3, "pages that omit coins": -3}


def _register_responses() -> None:
    for api in ("coinpaprika", "coingecko"):
        for name, fault in _RESPONSES.items():
            _fault(f"{api} responds with {name}", "responses")(_responding(api, fault))
    for name, by in _SHIFTS.items():
        _fault(f"coingecko responds with {name}", "responses")(
            _responding("coingecko", {"kind": "page-shift", "by": by})
        )
    for api, field in (("coinpaprika", "quotes.USD.price"), ("coingecko", "current_price")):
        drift = {"kind": "schema-drift", "field": field, "change": "rename"}
        _fault(f"{api} renames the price", "responses")(_responding(api, drift))


def _responding(api: str, fault: dict[str, Any]) -> Callable[[World, random.Random], AsyncIterator[None]]:
    # These faults fail the source within a run, which /health has to report.
    fails = fault["kind"] not in {"hang", "slow", "bad-records", "page-shift"}

    async def inject(world: World, chance: random.Random) -> AsyncIterator[None]:
        settings = dict(fault, api=api)
        if fails and not world.single_fault and chance.random() < 0.5:
            settings["probability"] = 0.5
        await world.control("POST", "faults", settings)
        try:
            yield
            if fails and world.single_fault:
                await world.wait_until_degraded(api)
        finally:
            await world.control("DELETE", "faults")
            # Requests that still hang would delay the recovery.
            for service in world.services:
                service.upstream.reset()

    return inject


_register_responses()


# Clocks, and other runs


def _no_faketime(world: World) -> str | None:
    del world
    return None if FAKETIME else "no libfaketime (Debian's package faketime)"


def _clock(by: str) -> Callable[[World, random.Random], AsyncIterator[None]]:
    async def inject(world: World, chance: random.Random) -> AsyncIterator[None]:
        service = chance.choice(world.services)
        service.clock.write_text(by)
        try:
            yield
        finally:
            service.clock.write_text("+0")

    return inject


for _name, _by in (("a day ahead", "+1d"), ("an hour back", "-1h"), ("40 days back", "-40d")):
    _fault(f"a clock set {_name}", "other", lasts=(0.5, 2.5), impossible=_no_faketime)(_clock(_by))


async def _etl(world: World) -> Process:
    command = (sys.executable, "-m", "tests.chaos.service", "etl", "--json")
    environment = world.environment(world.server.port, world.simulator_port)
    process = Process("etl", command, environment, world.folder / "etl.log")
    await process.start()
    return process


@_fault("kasparro etl next to the service", "other")
async def _etl_next_to_service(world: World, chance: random.Random) -> AsyncIterator[None]:
    process = await _etl(world)
    yield
    async with asyncio.timeout(30):
        if (code := await process.ended()) not in {0, 1, 3}:
            raise AssertionError(f"etl ended with {code}")


@_fault("kasparro etl killed", "other", lasts=(0.8, 2))
async def _etl_killed(world: World, chance: random.Random) -> AsyncIterator[None]:
    process = await _etl(world)
    yield
    await process.kill()


@_fault("runs started by POST", "other")
async def _posted(world: World, chance: random.Random) -> AsyncIterator[None]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with world.client() as session:
        for service in world.services * 3:
            await world.client_log.request(
                session, service.name, f"{service.url}/runs", method="POST", headers=headers
            )
        yield
