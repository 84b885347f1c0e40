"""Runs the service: its socket, its server or worker processes, and their shutdown."""

import asyncio
import gc
import multiprocessing.connection
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import msgspec
import structlog
import uvicorn
from starlette.types import ASGIApp

from kasparro import logs, tracing
from kasparro.errors import DatabaseUnavailable, KasparroError, SettingsError
from kasparro.pipeline.history_upkeep import HistoryUpkeep
from kasparro.pipeline.scheduler import Scheduler
from kasparro.settings import Settings, SourceSettings
from kasparro.signals import stop_signals
from kasparro.sources import registry
from kasparro.store.bootstrap import database_url, pools, prepare, with_connections
from kasparro.supervision import Supervisor
from kasparro.web.app import create_app
from kasparro.web.http.protocol import LimitedProtocol
from kasparro.web.service_manager import READY, STOPPING, ServiceManager
from kasparro.web.workers import REPLACES, Workers, accept_stop_signals

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

log = structlog.get_logger()

# Together with the scheduler's own grace period, this keeps a stop within 10 s.
DRAIN_S = 3
# Connections that a process serves at once, and file descriptors that are enough for them.
CONNECTIONS = 4_096
DESCRIPTORS = 16_384
# Name lookups that a process makes at once. While a name server is silent, the lookups of the upstreams last
# for many seconds, and connections to the database need lookups too. By default uvloop makes only 2 at once.
NAME_LOOKUPS = 16

# Environment variable that names the folder in which the processes of one service share their metrics.
METRICS_FOLDER = "_KASPARRO_METRICS_FOLDER"


class ListenError(KasparroError):
    """The service cannot listen on its address."""


def application(settings: Settings, url: str, supervisor: Supervisor, *, demo: bool = False) -> ASGIApp:
    """The application over the database at `url`. Its lifespan opens the pools, and runs the scheduler and
    the upkeep of the history."""
    database = pools(settings, url)
    scheduler = Scheduler(
        settings,
        database,
        prepare=partial(prepare, database, demo=demo),
        supervisor=supervisor,
        runs_at_start=REPLACES not in os.environ,
    )
    folder = os.environ.get(METRICS_FOLDER)
    return create_app(
        settings,
        database=database,
        scheduler=scheduler,
        metrics_folder=Path(folder) if folder else None,
        supervisor=supervisor,
        upkeep=HistoryUpkeep(database, settings.history_retention, supervisor=supervisor),
    )


def serve(
    settings: Settings,
    *,
    workers: int = 1,
    demo_seed: int | None = None,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. With `demo_seed`, the upstreams are simulated.

    `announce` is called with the URL of the service as soon as the port is ours, before it answers.
    Raises KasparroError if the service cannot start.
    """
    _raise_descriptors()
    # uvloop reads this before its first lookup, and uses half of these threads for lookups.
    os.environ.setdefault("UV_THREADPOOL_SIZE", str(2 * NAME_LOOKUPS))
    stop = _Stop()
    # uvicorn replaces these handlers while it serves, and raises the signal again afterwards. The default
    # handlers would then end the process before the embedded server is stopped.
    for number in stop_signals():
        signal.signal(number, stop)
    with (
        _listening(settings) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        announce(_url(listener))
        runner.run(_serve(settings, listener, stop, workers, demo_seed))


class _Server(uvicorn.Server):
    # Reports to the service manager. uvicorn calls on_tick ten times a second, on the event loop.

    def __init__(self, config: uvicorn.Config, manager: ServiceManager) -> None:
        super().__init__(config)
        self._manager = manager

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # A full collection visits all objects, which takes 40 ms, and requests wait meanwhile. From here on,
        # it leaves out the modules and all else that stays.
        gc.collect()
        gc.freeze()
        if self.started:
            self._manager.notify(READY)

    async def on_tick(self, counter: int) -> bool:
        self._manager.alive()
        return await super().on_tick(counter)


class _Stop:
    # The signal handler before uvicorn installs its own.

    def __init__(self) -> None:
        self.requested = False
        self.server: uvicorn.Server | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.server is not None:
            self.server.should_exit = True


async def _serve(
    settings: Settings, listener: socket.socket, stop: _Stop, workers: int, demo_seed: int | None
) -> None:
    supervisor, manager = Supervisor(), ServiceManager()
    demo = demo_seed is not None
    async with AsyncExitStack() as stack:
        if demo_seed is not None:
            settings = await stack.enter_async_context(_simulated(settings, demo_seed))
        url = await stack.enter_async_context(database_url(settings, supervisor))
        async with pools(settings, url) as database:
            try:
                await prepare(database, demo=demo)
            except DatabaseUnavailable as error:
                log.warning("database_unavailable_at_start", reason=str(error))
            settings = await with_connections(settings, database, workers)
        if stop.requested:
            return
        # From here on, new connections wait for the first worker. Before, they were refused.
        listener.listen()
        log.info("listening", url=_url(listener), workers=workers)
        if workers == 1:
            app = application(settings, url, supervisor, demo=demo)
            await _serve_here(app, settings, listener, stop, manager)
        else:
            await _serve_by_workers(
                *(settings, url, listener, stop, manager), workers=workers, supervisor=supervisor
            )
        # The embedded PostgreSQL stops after this.
        manager.notify(STOPPING)
        log.info("stopped")


async def _serve_here(
    app: ASGIApp, settings: Settings, listener: socket.socket, stop: _Stop, manager: ServiceManager
) -> None:
    server = stop.server = _Server(uvicorn_config(app, 1, settings.trusted_proxies), manager)
    if stop.requested:
        return
    await server.serve([listener])
    if not server.started:
        raise KasparroError("the service could not start; the log says why")


async def _serve_by_workers(
    settings: Settings,
    url: str,
    listener: socket.socket,
    stop: _Stop,
    manager: ServiceManager,
    *,
    workers: int,
    supervisor: Supervisor,
) -> None:
    with TemporaryDirectory(prefix="kasparro-") as folder:
        # Workers are new processes, which read the environment again.
        os.environ["DATABASE_URL"] = url
        os.environ["KASPARRO_DATABASE_CONNECTIONS"] = str(settings.database_connections)
        os.environ[METRICS_FOLDER] = folder
        config = uvicorn_config("kasparro.web.server:worker", workers, settings.trusted_proxies)
        hangup = signal.getsignal(signal.SIGHUP)
        processes = Workers(config, listener, Path(folder), supervisor, manager)
        if hangup is signal.SIG_IGN:
            # `nohup` asked to ignore SIGHUP, but uvicorn has installed its handler.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if stop.requested:
            return
        await asyncio.to_thread(processes.run)


@asynccontextmanager
async def _simulated(settings: Settings, seed: int) -> AsyncIterator[Settings]:
    # Simulated upstreams, an embedded database for the demo alone, and runs often enough to watch.
    from kasparro.simulator import Simulator, write_archives  # noqa: PLC0415 - only the demo needs it

    def simulated(name: str, **changes: Any) -> SourceSettings:
        source = settings.source_settings[name]
        return msgspec.structs.replace(source, key=None, monthly_calls=None, **changes)

    async with Simulator(seed=seed) as simulator:
        upstreams = {
            "coinpaprika": simulated("coinpaprika", url=simulator.coinpaprika_url),
            "coingecko": simulated("coingecko", url=simulator.coingecko_url, plan=None),
        }
        home = settings.demo_home
        csv = registry.settings_of(settings, "csv")
        if csv.archives is None:
            # Without a past there would be nothing to draw.
            try:
                await asyncio.to_thread(write_archives, simulator.market, home / "archives")
                upstreams["csv"] = msgspec.structs.replace(csv, archives=str(home / "archives"))
            except OSError as error:
                log.warning("demo_without_past", folder=str(home), reason=error.strerror)
        # The APIs of other packages are not simulated: they need a network, and their data is real.
        apis = registry.api_names()
        sources = tuple(name for name in settings.sources if name in upstreams or name not in apis)
        if omitted := [name for name in settings.sources if name not in sources]:
            log.warning("sources_not_simulated", sources=omitted)
        if not sources:
            raise SettingsError("KASPARRO_SOURCES names no source that the demo can run without a network")
        yield msgspec.structs.replace(
            settings,
            home=home,
            sources=sources,
            source_settings={**settings.source_settings, **upstreams},
            interval=settings.demo_interval,
        )


def worker() -> ASGIApp:
    """The application of one worker process, with settings from the environment."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_stop_with, args=(parent.sentinel,), daemon=True).start()
    if signal.SIGHUP in stop_signals():
        # A terminal that closes sends it to every process of its session.
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    accept_stop_signals()
    settings = registry.load_settings(os.environ)
    logs.configure(settings)
    logs.capture_crashes()
    tracing.configure()
    url = settings.database_url.reveal() if settings.database_url else ""
    return application(settings, url, Supervisor())


def _stop_with(parent: int) -> None:
    # A parent that was killed cannot stop its workers. They would keep the port, but lose the database.
    multiprocessing.connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def uvicorn_config(
    app: ASGIApp | str,
    workers: int,
    trusted_proxies: tuple[str, ...] = (),
    *,
    http: type[LimitedProtocol] = LimitedProtocol,
) -> uvicorn.Config:
    """The uvicorn configuration of the service."""
    connections = _connection_limit()
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=workers,
        lifespan="on",
        # The middleware logs requests, with their ids.
        access_log=False,
        log_config=None,
        server_header=False,
        # The middleware reads X-Forwarded-For. The protocol uses these names to recognize trusted proxies.
        proxy_headers=False,
        forwarded_allow_ips=",".join(trusted_proxies),
        timeout_graceful_shutdown=DRAIN_S,
        http=http,
        ws="none",
        # Otherwise a request would begin with the log context of the request that was pipelined before it.
        reset_contextvars=True,
        limit_concurrency=connections,
        # Many connections that wait to be accepted may arrive at once, and each takes a descriptor.
        backlog=min(2_048, max(1, connections // 2)),
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _raise_descriptors() -> None:
    # Shells and service managers set a low limit by default, though they allow a higher one.
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # Some systems have another limit, which they do not report. Then the old limit stays.
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _connection_limit() -> int:
    # Half of the descriptors. The rest is for the accept backlog, PostgreSQL, sources and files.
    if resource is None:
        return CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 2))


def _listening(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such host"
        raise ListenError(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; "
            "set KASPARRO_HOST or PORT to another address"
        ) from None
    listener.set_inheritable(True)
    return listener
