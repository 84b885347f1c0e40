"""A few rounds of `just chaos`, with a seed that has faults of every group."""

import asyncio
import sys

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import plans
from tests.chaos.world import ROOT

ROUNDS = 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's signals")
async def test_a_few_rounds_pass() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", "--seed", "ci-98", "--rounds", str(ROUNDS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
    assert f"{ROUNDS} rounds passed" in output.decode()


def test_plans_repeat_by_seed_and_include_every_fault() -> None:
    def planned(seed: str) -> list[list[tuple[str, float, float]]]:
        return [
            [(fault.fault.name, fault.starts_after_s, fault.lasts_s) for fault in plan]
            for plan in plans(seed, 200)
        ]

    assert planned("a") == planned("a") != planned("b")
    assert {name for plan in planned("a") for name, _, _ in plan} == {fault.name for fault in FAULTS}
    for plan in plans("a", 200):
        groups = [planned_fault.fault.group for planned_fault in plan]
        assert len(groups) == len(set(groups))
