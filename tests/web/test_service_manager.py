"""A service reports to systemd when it serves, that it is alive, and when it stops."""

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kasparro.web.service_manager import ALIVE, READY, STOPPING, ServiceManager
from tests.support.commands import listening_url, started_command


@asynccontextmanager
async def manager(name: str) -> AsyncIterator[tuple[str, "asyncio.Queue[str]"]]:
    """The NOTIFY_SOCKET of a service manager, and what it hears. The socket is a file, or abstract."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        path = f"@{folder}/{name}" if name == "abstract" else f"{folder}/{name}"
        bound.bind("\0" + path[1:] if path.startswith("@") else path)
        bound.setblocking(False)
        heard: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.add_reader(bound, lambda: heard.put_nowait(bound.recv(1_000).decode()))
        try:
            yield path, heard
        finally:
            loop.remove_reader(bound)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_service_reports_its_states(database_url: str, workers: str) -> None:
    async with manager("socket") as (path, heard), asyncio.timeout(60):
        environment = {
            "DATABASE_URL": database_url,
            "PORT": "0",
            "KASPARRO_INTERVAL": "off",
            "KASPARRO_LOG": "json",
            "NOTIFY_SOCKET": path,
            "WATCHDOG_USEC": "1000000",
        }
        async with started_command("serve", "--workers", workers, **environment) as process:
            await listening_url(process)
            states = list[str]()
            while not {READY, ALIVE} <= set(states):
                states.append(await heard.get())
            process.send_signal(signal.SIGTERM)
            await process.communicate()
        while not heard.empty():
            states.append(heard.get_nowait())
    assert states.count(READY) == 1
    assert states.count(STOPPING) == 1
    assert [state for state in states if state != ALIVE] == [READY, STOPPING]
    assert states[-1] == STOPPING


@pytest.mark.parametrize("name", ["socket", "abstract"])
async def test_both_kinds_of_sockets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with manager(name) as (path, heard), asyncio.timeout(20):
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        ServiceManager().notify(READY)
        assert await heard.get() == READY


@pytest.mark.parametrize("path", ["", "/nosuch/socket", "relative", "x" * 200])
def test_no_manager_is_no_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    ServiceManager().notify(READY)
    ServiceManager().alive()


async def test_without_a_watchdog_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with manager("socket") as (path, heard), asyncio.timeout(20):
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        ServiceManager().alive()
        ServiceManager().notify(READY)
        assert await heard.get() == READY
