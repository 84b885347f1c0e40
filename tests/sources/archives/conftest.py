"""Fixtures of the archive tests."""

from pathlib import Path

import pytest

from kasparro.sources.archives import source as source_module
from kasparro.sources.archives.worker_client import Worker
from tests.support.archives import Outcome, Read, overrides_for, read


@pytest.fixture
def load(tmp_path: Path) -> Read:
    """Write a file and read it: `await load(content, "btc-usd.csv")`."""

    async def load(content: str | bytes, name: str = "bitcoin-usd.csv", **options: object) -> Outcome:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return await read(path, **options)  # type: ignore[arg-type]

    return load


@pytest.fixture
def load_with(tmp_path: Path, load: Read) -> Read:
    """Write a file and its overrides, and read it: `await load_with(content, overrides, "btc-usd.csv")`."""

    async def load_with(content: str | bytes, overrides: str, name: str = "prices.csv") -> Outcome:
        path = tmp_path / name
        path.with_name(f"{name}.toml").write_text(overrides, encoding="utf-8")
        return await load(content, name, overrides=overrides_for(path))

    return load_with


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the worker processes that the source starts."""
    started: list[int] = []

    class ObservedWorker(Worker):
        async def __aenter__(self) -> "ObservedWorker":
            await super().__aenter__()
            started.append(self.pid)
            return self

    monkeypatch.setattr(source_module, "Worker", ObservedWorker)
    return started
