"""A background task that ends is logged, shown on /health, and restarted after growing pauses."""

import asyncio

import pytest

from kasparro import supervision
from kasparro.supervision import Supervisor
from tests.conftest import LogEvents
from tests.support.task_endings import TASK_ENDINGS


async def returns() -> None:
    pass


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("ending", TASK_ENDINGS)
async def test_ended_task_is_logged_shown_and_restarted(logged: LogEvents, ending: str) -> None:
    end, shown = TASK_ENDINGS[ending]
    starts = 0
    running = asyncio.Event()

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts < 3:
            await end()
            return
        running.set()
        await asyncio.Event().wait()

    supervisor = Supervisor()
    task = supervisor.start("ticker", work)
    async with asyncio.timeout(10):
        await running.wait()

    events = await logged.reached(2, "background_task_failed", task="ticker", level="error")
    assert [(event["failures"], event["again_in_s"]) for event in events] == [(1, 0.001), (2, 0.002)]
    assert supervisor.problems() == [f"ticker failed and is started again: {shown}"]
    await task.stop()
    assert starts == 3
    assert task.task.cancelled()


async def test_pauses_grow_up_to_the_limit(logged: LogEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LONGEST_PAUSE_S", 0.003)
    task = Supervisor().start("ticker", returns)
    events = await logged.reached(5, "background_task_failed")
    await task.stop()

    assert [event["again_in_s"] for event in events[:5]] == [0.001, 0.002, 0.003, 0.003, 0.003]


async def test_problem_is_forgotten_after_a_while(logged: LogEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("kasparro.supervision.time.monotonic", lambda: now)
    supervisor = Supervisor()

    assert supervisor.record_failure("ticker", ValueError()) == 0.001
    assert supervisor.record_failure("ticker", ValueError()) == 0.002
    now += supervision.HEALTHY_AFTER_S
    assert supervisor.problems()
    now += 0.01
    assert supervisor.problems() == []
    assert supervisor.record_failure("ticker", ValueError()) == 0.001


async def test_allowed_end_is_no_failure(logged: LogEvents) -> None:
    supervisor = Supervisor()
    stop = asyncio.Event()

    async def work() -> None:
        await stop.wait()

    task = supervisor.start("ticker", work)
    await asyncio.sleep(0)
    task.let_end()
    stop.set()
    await task.task
    await task.stop()

    assert supervisor.problems() == []
    assert logged.seen == []


async def test_failure_during_stop_is_logged(logged: LogEvents) -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("no")

    task = Supervisor().start("ticker", work)
    await asyncio.sleep(0)
    await task.stop()

    await logged.reached(1, "background_task_failed", task="ticker")


async def test_no_restart_after_stop(logged: LogEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 60.0)
    task = Supervisor().start("ticker", returns)
    await logged.reached(1, "background_task_failed")
    first = task.task
    await task.stop()

    assert task.task is first
