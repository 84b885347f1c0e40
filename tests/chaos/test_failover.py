"""A short version of the rounds of failovers, and of a rolling upgrade."""

import asyncio
import sys

import pytest

from tests.chaos.world import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
]


async def run(module: str, *arguments: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.chaos.{module}", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_killed_leader_and_primary_cost_no_wrong_response() -> None:
    code, output = await run("failover", "--rounds", "1")

    assert code == 0, output


async def test_services_are_replaced_under_load() -> None:
    code, output = await run("upgrade", "--old", str(ROOT), "--rate", "40", "--between", "1")

    assert code == 0, output
