"""The server's process: file descriptors, the connection limit, and the settings of the demo."""

import resource
import sys
from pathlib import Path

import msgspec
import pytest

from kasparro.errors import SettingsError
from kasparro.settings import SourceSettings
from kasparro.sources import registry
from kasparro.sources.base import SourceDefinition
from kasparro.sources.replay import SkippedSource
from kasparro.web import server
from tests.support.commands import listening_url, started_command


@pytest.mark.parametrize(
    ("limits", "raised", "connections"),
    [
        ((1_024, 4_096), (4_096, 4_096), 512),
        ((1_024, 1_000_000), (16_384, 1_000_000), 512),
        ((1_024, resource.RLIM_INFINITY), (16_384, resource.RLIM_INFINITY), 512),
        ((128, 128), None, 64),
        ((100_000, 1_000_000), None, 4_096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 4_096),
    ],
)
def test_connection_limit_follows_descriptors(
    limits: tuple[int, int], raised: tuple[int, int] | None, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: changes.append(new))
    server._raise_descriptors()
    assert changes == ([] if raised is None else [raised])
    assert server._connection_limit() == connections


@pytest.mark.skipif(sys.platform != "linux", reason="Linux shows the names of threads")
async def test_slow_lookups_of_upstreams_leave_threads_for_the_database() -> None:
    """The service looks the name of its database up before it listens."""
    nobody = "postgresql://x@localhost:1/x"
    async with started_command("serve", PORT="0", DATABASE_URL=nobody, KASPARRO_INTERVAL="off") as process:
        await listening_url(process)
        threads = [name.read_text() for name in Path(f"/proc/{process.pid}/task").glob("*/comm")]
    assert threads.count("libuv-worker\n") == 2 * server.NAME_LOOKUPS


async def test_demo_leaves_out_apis_without_a_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = msgspec.structs.replace(
        registry.load_settings({}), sources=("coinpaprika", "coingecko", "csv", "tide", "folder")
    )
    others = {
        name: SourceDefinition(
            name=name, settings=SourceSettings, build=lambda _: SkippedSource("x", "x"), is_api=is_api
        )
        for name, is_api in (("tide", True), ("folder", False))
    }
    installed = registry.definitions() | others
    monkeypatch.setattr(registry, "definitions", lambda: installed)

    async with server._simulated(settings, 1) as simulated:
        assert simulated.sources == ("coinpaprika", "coingecko", "csv", "folder")
    with pytest.raises(SettingsError, match="KASPARRO_SOURCES names no source"):
        async with server._simulated(msgspec.structs.replace(settings, sources=("tide",)), 1):
            pass
