"""What every test may ask for: a real PostgreSQL, and a migrated database of its own on it."""

import asyncio
import os
import resource
import shutil
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import structlog

from kasparro.embedded.server import EmbeddedPostgres
from kasparro.sources import registry
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# A login on Debian has as many; some systems start with fewer and allow more.
OPEN_FILES = 1_024

# Of a test's log and output, a failure report shows so many characters from the end.
REPORTED_CHARACTERS = 20_000

# A test server's machine never crashes, and its write-ahead log need not grow: less to wait for and to store.
SERVER_SETTINGS = ("fsync = off", "full_page_writes = off", "max_wal_size = '64MB'")


def pytest_configure() -> None:
    """Allow as many open files as the tests need, or say that the system does not."""
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
    """Keep a failure readable when an error repeats endlessly in the log."""
    report = yield
    report.sections = [(title, _shortened(text)) for title, text in report.sections]
    return report


def _shortened(text: str) -> str:
    if len(text) <= REPORTED_CHARACTERS:
        return text
    return f"[{len(text) - REPORTED_CHARACTERS} characters left out]\n{text[-REPORTED_CHARACTERS:]}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine's reaches a test."""
    for variable in registry.variables():
        monkeypatch.delenv(variable.name, raising=False)


@pytest.fixture
def shared_data() -> Path:
    """The recorded samples beside the repository, read in place."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the recorded samples (../shared/data) are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running PostgreSQL where databases may be made.

    KASPARRO_TEST_SERVER names one (its maintenance database); unset, an embedded one serves, one a test
    process.
    """
    if told := os.environ.get("KASPARRO_TEST_SERVER"):
        yield told
        return
    home = tmp_path_factory.mktemp("postgres")
    with asyncio.Runner() as runner:
        server = EmbeddedPostgres(home)
        runner.run(server.__aenter__())
        runner.run(_configure(server.dsn))
        yield server.dsn
        runner.run(server.__aexit__(None, None, None))
    _remove_socket_folder(home)
    # pytest removes folders of single tests alone.
    shutil.rmtree(home)


async def _configure(url: str) -> None:
    connection = await asyncpg.connect(url)
    for setting in SERVER_SETTINGS:
        await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The home of an embedded server of the test's own, or of the demo's."""
    home = tmp_path / "home"
    yield home
    _remove_socket_folder(home)
    _remove_socket_folder(home / "demo")


def _remove_socket_folder(home: Path) -> None:
    """Remove the folder that holds the socket of an embedded server whose home has a long path."""
    record = home / "socket"
    if record.exists() and (folder := Path(record.read_text())) != home / "data":
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """The name of a migrated database that others are copied from, which takes milliseconds."""

    async def make() -> str:
        name = f"template_{uuid.uuid4().hex[:12]}"
        connection = await asyncpg.connect(server_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        async with Database(url_of_database(server_url, name)) as database:
            await migrate(database)
        return name

    return asyncio.run(make())


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """A database of the test's own with nothing in it."""
    async with copied_database(server_url, "template1") as url:
        yield url


@pytest.fixture
async def database_url(server_url: str, template: str) -> AsyncIterator[str]:
    """A migrated database of the test's own."""
    async with copied_database(server_url, template) as url:
        yield url


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The pools of a migrated database of the test's own."""
    async with Database(database_url) as opened:
        yield opened


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A plain connection to the test's database, to look at its tables."""
    opened = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    yield opened
    await opened.close()


class LogEvents:
    """What the program logs, as events to wait for."""

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
        """Wait until so many of these events, with these fields, were logged; gives them."""

        def matching() -> list[dict[str, Any]]:
            wanted = {"event": event, **fields}
            return [one for one in self.seen if wanted.items() <= one.items()]

        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: len(matching()) >= count)
        return matching()


@pytest.fixture
async def logged() -> AsyncIterator[LogEvents]:
    """The program's log in this test."""
    events = LogEvents()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, events])
    yield events
    structlog.reset_defaults()


def url_of_database(server_url: str, name: str) -> str:
    """The URL of another database on the same server."""
    parts = urlsplit(server_url)
    return urlunsplit(parts._replace(path=f"/{name}", netloc=parts.netloc))


@asynccontextmanager
async def copied_database(server_url: str, template: str) -> AsyncIterator[str]:
    """A database of one's own, copied from another; gives its URL and drops it afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    server = await asyncpg.connect(server_url)
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield url_of_database(server_url, name)
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()
