"""Fixtures for all tests: a real PostgreSQL server, databases on it, and the log."""

import asyncio
import os
import resource
import shutil
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest
import structlog

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.sources import registry
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support import citus
from tests.support.memory import server_folder

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# The soft limit of a login on Debian. Some systems have a lower soft limit, which a process may raise.
OPEN_FILES = 1_024

# A failure report shows this many characters from the end of a test's log and output.
REPORTED_CHARACTERS = 20_000

# Faster and smaller: the data of a test server need not survive a crash of the machine.
SERVER_SETTINGS = ("fsync = off", "full_page_writes = off", "max_wal_size = '64MB'")

# A limit on the time of an example would fail on a busy machine.
hypothesis.settings.register_profile("kasparro", deadline=None)


def pytest_configure() -> None:
    """Raise the limit of open files to what the tests need. Raises UsageError if the system allows fewer."""
    hypothesis.settings.load_profile("kasparro")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        raise pytest.UsageError(
            f"the tests need {OPEN_FILES} open files, but the hard limit is {hard}: raise it"
            f" (as root: ulimit -n {OPEN_FILES}, or nofile in /etc/security/limits.conf)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Truncate long logs and output in failure reports."""
    report = yield
    report.sections = [(title, _truncated(text)) for title, text in report.sections]
    return report


def _truncated(text: str) -> str:
    if len(text) <= REPORTED_CHARACTERS:
        return text
    return f"[{len(text) - REPORTED_CHARACTERS} characters left out]\n{text[-REPORTED_CHARACTERS:]}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of the machine from the environment of each test."""
    for variable in registry.variables():
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def shared_data() -> Path:
    """The folder with recorded samples next to the repository; the test is skipped if it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the recorded samples (../shared/data) are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a running PostgreSQL server on which databases can be created.

    KASPARRO_TEST_CITUS or KASPARRO_TEST_SERVER is the URL of its maintenance database. If both are unset,
    each test process starts an embedded server.
    """
    if url := citus.COORDINATOR or os.environ.get("KASPARRO_TEST_SERVER"):
        yield url
        return
    folder = server_folder()
    home = folder / "postgres"
    with asyncio.Runner() as runner:
        server = EmbeddedPostgres(home)
        runner.run(server.__aenter__())
        runner.run(_configure(server.dsn))
        yield server.dsn
        runner.run(server.__aexit__(None, None, None))
    _remove_socket_folder(home)
    shutil.rmtree(folder)


async def _configure(url: str) -> None:
    connection = await asyncpg.connect(url)
    for setting in SERVER_SETTINGS:
        await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home for an embedded server of this test, or of the demo."""
    home = tmp_path / "home"
    yield home
    _remove_socket_folder(home)
    _remove_socket_folder(home / "demo")


def _remove_socket_folder(home: Path) -> None:
    """Remove the folder in /tmp in which a server with a long home path has its socket."""
    record = home / "socket"
    if record.exists() and (folder := Path(record.read_text())) != home / "data":
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """The name of a migrated database. Other databases are copied from it, which takes milliseconds."""

    async def create() -> str:
        name = f"template_{uuid.uuid4().hex[:12]}"
        connection = await asyncpg.connect(server_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        async with Database(url_of_database(server_url, name)) as database:
            await migrate(database)
        return name

    return asyncio.run(create())


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of an empty database of this test."""
    async with copied_database(server_url, "template1") as url:
        yield url


@pytest.fixture
def copied(request: pytest.FixtureRequest) -> tuple[str, str] | None:
    """The server and the template of the migrated databases; none if they are distributed."""
    if citus.COORDINATOR is not None:
        return None
    return request.getfixturevalue("server_url"), request.getfixturevalue("template")


def new_database(copied: tuple[str, str] | None) -> AbstractAsyncContextManager[str]:
    """The URL of a migrated database, for as long as the block lasts."""
    return citus.distributed_database() if copied is None else copied_database(*copied)


@pytest.fixture
async def database_url(copied: tuple[str, str] | None) -> AsyncIterator[str]:
    """The URL of a migrated database of this test; a distributed one if KASPARRO_TEST_CITUS is set."""
    async with new_database(copied) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The connection pools of the migrated database of this test."""
    async with Database(database_url) as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection to the database of this test, for queries of its tables."""
    opened = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    yield opened
    await opened.close()


class LogEvents:
    """The log events of the program, and a way to wait for them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._changed = asyncio.Condition()

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        self.seen.append({"level": method, **event})
        self._wake = asyncio.ensure_future(self._notify())
        raise structlog.DropEvent

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def reached(self, count: int, event: str, **fields: object) -> list[dict[str, Any]]:
        """Wait until at least `count` events with this name and these fields are logged; returns them."""

        def matching() -> list[dict[str, Any]]:
            wanted = {"event": event, **fields}
            return [event for event in self.seen if wanted.items() <= event.items()]

        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(matching()) >= count)
        return matching()


@pytest.fixture
async def logged() -> AsyncIterator[LogEvents]:
    """The log events of this test."""
    events = LogEvents()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, events])
    yield events
    structlog.reset_defaults()


def url_of_database(server_url: str, name: str) -> str:
    """The URL of the database `name` on the same server."""
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/{name}", netloc=parts.netloc))


@asynccontextmanager
async def copied_database(server_url: str, template: str) -> AsyncIterator[str]:
    """The URL of a copy of the database `template`. The copy is dropped at the end of the block."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = await asyncpg.connect(server_url)
    # The other strategy writes all pages to the log, too.
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield url_of_database(server_url, name)
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()
