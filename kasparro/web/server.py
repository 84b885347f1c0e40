"""Runs the service: its socket, its processes, and how they end."""

import asyncio
import multiprocessing.connection
import os
import signal
import socket
import threading
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import msgspec
import structlog
import uvicorn
from starlette.types import ASGIApp

from kasparro import logs, settings
from kasparro.errors import DatabaseUnavailable, KasparroError
from kasparro.pipeline.scheduler import Scheduler
from kasparro.settings import Settings
from kasparro.signals import stop_signals
from kasparro.simulator import Simulator
from kasparro.store.bootstrap import database_url, pools, prepare, with_connections
from kasparro.supervision import Supervisor
from kasparro.web.app import create_app
from kasparro.web.http.protocol import LimitedProtocol
from kasparro.web.workers import REPLACES, Workers

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

log = structlog.get_logger()

DEMO_INTERVAL = timedelta(seconds=20)
# With the scheduler's own grace this keeps a stop within 10 s.
DRAIN_S = 3
# The most connections that a process serves at once, and the file descriptors that are plenty for them.
CONNECTIONS = 4_096
DESCRIPTORS = 16_384


# Where the workers of one service leave their figures for each other.
METRICS_FOLDER = "_KASPARRO_METRICS_FOLDER"


class ListenError(KasparroError):
    """The listen address cannot be had."""


def application(told: Settings, url: str, supervisor: Supervisor, *, demo: bool = False) -> ASGIApp:
    """The service over the database at `url`: its lifespan opens the pools and starts the loop."""
    database = pools(told, url)
    scheduler = Scheduler(
        told,
        database,
        prepare=partial(prepare, database, demo=demo),
        supervisor=supervisor,
        runs_at_start=REPLACES not in os.environ,
    )
    folder = os.environ.get(METRICS_FOLDER)
    return create_app(
        told,
        database=database,
        scheduler=scheduler,
        metrics_folder=Path(folder) if folder else None,
        supervisor=supervisor,
    )


def serve(told: Settings, *, workers: int = 1, demo_seed: int | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; with `demo_seed`, over simulated upstreams.

    Raises KasparroError where the service cannot start.
    """
    _raise_descriptors()
    stop = _Stop()
    # uvicorn takes these over while it serves and raises them again afterwards, where the default would end
    # the process before the embedded server was stopped.
    for number in stop_signals():
        signal.signal(number, stop)
    with (
        _listening(told) as listener,
        asyncio.Runner(loop_factory=uvicorn.Config("", log_config=None).get_loop_factory()) as runner,
    ):
        runner.run(_serve(told, listener, stop, workers, demo_seed))


class _Stop:
    # What a signal asks for until uvicorn has taken them over.

    def __init__(self) -> None:
        self.requested = False
        self.serving: uvicorn.Server | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.serving is not None:
            self.serving.should_exit = True


async def _serve(
    told: Settings, listener: socket.socket, stop: _Stop, workers: int, demo_seed: int | None
) -> None:
    supervisor = Supervisor()
    async with AsyncExitStack() as stack:
        if demo_seed is not None:
            simulator = await stack.enter_async_context(Simulator(seed=demo_seed))
            told = _simulated(told, simulator)
        url = await stack.enter_async_context(database_url(told, supervisor))
        demo = demo_seed is not None
        async with pools(told, url) as database:
            try:
                await prepare(database, demo=demo)
            except DatabaseUnavailable as error:
                log.warning("database_unavailable_at_start", reason=str(error))
            told = await with_connections(told, database, workers)
        if stop.requested:
            return
        # Whoever connects from here on waits for the first worker in place of being refused.
        listener.listen()
        host, port = listener.getsockname()[:2]
        log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}", workers=workers)
        if workers == 1:
            await _serve_here(application(told, url, supervisor, demo=demo), told, listener, stop)
        else:
            await _serve_by_workers(told, url, listener, stop, workers=workers, supervisor=supervisor)
        log.info("stopped")


async def _serve_here(app: ASGIApp, told: Settings, listener: socket.socket, stop: _Stop) -> None:
    serving = stop.serving = uvicorn.Server(uvicorn_config(app, 1, told.trusted_proxies))
    if stop.requested:
        return
    await serving.serve([listener])
    if not serving.started:
        raise KasparroError("the service could not start; the log says why")


async def _serve_by_workers(
    told: Settings,
    url: str,
    listener: socket.socket,
    stop: _Stop,
    *,
    workers: int,
    supervisor: Supervisor,
) -> None:
    with TemporaryDirectory(prefix="kasparro-") as figures:
        # The workers are processes of their own, which read the environment again.
        os.environ["DATABASE_URL"] = url
        os.environ["KASPARRO_DATABASE_CONNECTIONS"] = str(told.database_connections)
        os.environ[METRICS_FOLDER] = figures
        config = uvicorn_config("kasparro.web.server:worker", workers, told.trusted_proxies)
        hangup = signal.getsignal(signal.SIGHUP)
        processes = Workers(config, listener, Path(figures), supervisor)
        if hangup is signal.SIG_IGN:
            # uvicorn has taken it over, and nohup asked to ignore it.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if stop.requested:
            return
        await asyncio.to_thread(processes.run)


def _simulated(told: Settings, simulator: Simulator) -> Settings:
    # An embedded database of the demo's own, and runs often enough to see the market move.
    return msgspec.structs.replace(
        told,
        home=told.home / "demo",
        coinpaprika_url=simulator.coinpaprika_url,
        coinpaprika_key=None,
        coingecko_url=simulator.coingecko_url,
        coingecko_key=None,
        coingecko_plan="public",
        # The simulator has all the time in the world.
        coinpaprika_monthly_calls=None,
        coingecko_monthly_calls=None,
        interval=min(told.interval or DEMO_INTERVAL, DEMO_INTERVAL),
    )


def worker() -> ASGIApp:
    """The application of one worker process, made from the environment that its parent left it."""
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()
    if signal.SIGHUP in stop_signals():
        # A terminal that closes tells each process of its session.
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    told = settings.load(os.environ)
    logs.configure(told)
    logs.capture_crashes()
    url = told.database_url.reveal() if told.database_url else ""
    return application(told, url, Supervisor())


def _follow(parent: int) -> None:
    # A parent that was killed cannot end its workers, which would keep the port without a database.
    multiprocessing.connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def uvicorn_config(
    app: ASGIApp | str,
    workers: int,
    trusted_proxies: tuple[str, ...] = (),
    *,
    http: type[LimitedProtocol] = LimitedProtocol,
) -> uvicorn.Config:
    """uvicorn as the service runs it."""
    connections = _connections()
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=workers,
        lifespan="on",
        # The service logs its requests itself, beside their ids.
        access_log=False,
        log_config=None,
        server_header=False,
        # The application reads X-Forwarded-For itself. Here the names say which clients are proxies.
        proxy_headers=False,
        forwarded_allow_ips=",".join(trusted_proxies),
        timeout_graceful_shutdown=DRAIN_S,
        http=http,
        ws="none",
        limit_concurrency=connections,
        # All that waits to be accepted may come at once.
        backlog=min(2_048, max(1, connections // 2)),
    )


def _raise_descriptors() -> None:
    # Shells and service managers hand out few descriptors, though they allow many.
    if resource is not None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            # Some systems have another bound, which they do not tell; then fewer connections must do.
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _connections() -> int:
    # Half of the descriptors; the rest is for what waits to be accepted, PostgreSQL, sources and files.
    if resource is None:
        return CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(CONNECTIONS, soft // 2))


def _listening(told: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            told.host, told.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such host"
        raise ListenError(
            f"cannot listen on {told.host} port {told.port}: {reason}; "
            "KASPARRO_HOST and PORT choose another address"
        ) from None
    listener.set_inheritable(True)
    return listener
