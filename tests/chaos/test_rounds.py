"""A few rounds of what `just chaos` plays at length; this seed has faults of every group."""

import asyncio
import sys

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.rounds import plans
from tests.chaos.world import ROOT

ROUNDS = 4


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and Linux's signals")
async def test_nothing_is_lost_or_wrong_after_a_few_rounds() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", "--seed", "ci-98", "--rounds", str(ROUNDS)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
    assert f"{ROUNDS} rounds passed" in output.decode()


def test_a_seed_plans_the_same_faults_again_and_the_groups_all_come_up() -> None:
    def told(seed: str) -> list[list[tuple[str, float, float]]]:
        return [[(one.fault.name, one.begins, one.lasts) for one in plan] for plan in plans(seed, 200)]

    assert told("a") == told("a") != told("b")
    assert {name for plan in told("a") for name, _, _ in plan} == {fault.name for fault in FAULTS}
    for plan in plans("a", 200):
        groups = [one.fault.group for one in plan]
        assert len(groups) == len(set(groups))
