"""kill -9 during a load: after one more run the tables equal those of an undisturbed load."""

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kasparro.model.batch import MERGED_ROWS
from tests.conftest import copied_database
from tests.support.citus import end_sessions_of_workers, needs_citus
from tests.support.runs import table_contents

pytestmark = pytest.mark.slow

# Number of rounds, each with its own seed: `KASPARRO_TEST_KILLS=20 pytest tests/pipeline/test_kill.py`.
ROUNDS = int(os.environ.get("KASPARRO_TEST_KILLS", "3"))
SMALL_FILES, SMALL_ROWS = 8, 2_000
BEGIN = 1_514_764_800


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small files and one of more than one batch. Some rows differ a little from those of other files, some
    are invalid, and some files have no symbols and names."""
    folder = tmp_path_factory.mktemp("archives")
    chance = random.Random(7)
    for file in range(SMALL_FILES + 1):
        rows = MERGED_ROWS + 10_000 if file == 2 else SMALL_ROWS
        with (folder / f"{file}.csv").open("w") as out:
            labelled = file % 4 != 1
            out.write(f"id,{'symbol,name,' if labelled else ''}price_usd,last_updated\n")
            for row in range(rows):
                coin, day = row % 800, row // 800 + chance.randrange(2) * 100
                price = "none at all" if chance.random() < 0.001 else f"{1 + chance.random() / 1000:.9f}"
                labels = f"C{coin},Coin {coin}," if labelled else ""
                out.write(f"coin-{coin},{labels}{price},{BEGIN + 86_400 * day}\n")
    yield folder
    # pytest does not remove the folders of module fixtures.
    shutil.rmtree(folder)


async def etl(url: str, archives: Path, kill_after: float | None = None) -> int:
    """Run `kasparro etl` and kill it after `kill_after` seconds; returns the exit code."""
    environment = {**os.environ, "DATABASE_URL": url, "KASPARRO_ARCHIVES": str(archives)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kasparro", "etl", "--source", "csv", "--json"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(kill_after):
            return await process.wait()
    except TimeoutError:
        process.send_signal(signal.SIGKILL)
        return await process.wait()


class Undisturbed:
    """The tables after an undisturbed load, and how long it took."""

    def __init__(self, tables: dict[str, list[dict[str, object]]], seconds: float) -> None:
        self.tables = tables
        self.seconds = seconds


@pytest.fixture(scope="module")
def undisturbed(server_url: str, template: str, archives: Path) -> Undisturbed:
    """An undisturbed load, once for all rounds."""

    async def load() -> Undisturbed:
        async with copied_database(server_url, template) as url:
            began = time.monotonic()
            assert await etl(url, archives) == 0
            return Undisturbed(await table_contents(url), time.monotonic() - began)

    return asyncio.run(load())


@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_killed_load_is_completed_by_the_next_run(
    database_url: str, archives: Path, undisturbed: Undisturbed, seed: int
) -> None:
    moment = random.Random(seed).uniform(0.1, 1) * undisturbed.seconds
    code = await etl(database_url, archives, kill_after=moment)
    assert code in {-signal.SIGKILL, 0}
    assert await etl(database_url, archives) == 0
    assert await table_contents(database_url) == undisturbed.tables


@needs_citus
@pytest.mark.citus
async def test_load_is_completed_though_workers_lose_their_sessions(
    database_url: str, archives: Path, undisturbed: Undisturbed
) -> None:
    load = asyncio.create_task(etl(database_url, archives))
    for _ in range(4):
        await asyncio.wait({load}, timeout=undisturbed.seconds / 2)
        await end_sessions_of_workers(database_url)
    assert await load == 0
    # Assets are not tried again within a run.
    assert await etl(database_url, archives) == 0
    assert await table_contents(database_url) == undisturbed.tables
