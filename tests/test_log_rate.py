"""What clients can cause is logged at a bounded rate, with a count of what got no line."""

import asyncio
import logging

import pytest
import structlog

from kasparro.log_rate import LibraryLogRate, RateLimitedLog
from tests.conftest import LogEvents

SOON_S = 0.01
NEVER_S = 3_600.0


async def test_first_event_is_logged_at_once_and_the_next_are_counted(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)
    for number in range(1_000):
        log.warning("flood", number=number)
    assert logged.seen == [{"level": "warning", "event": "flood", "number": 0}]


async def test_suppressed_events_are_reported_when_the_period_ends(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    for number in range(5):
        log.info("flood", number=number)
    await logged.reached(2, "flood")
    assert logged.seen == [
        {"level": "info", "event": "flood", "number": 0},
        {"level": "info", "event": "flood", "number": 4, "suppressed": 4},
    ]


async def test_a_quiet_period_starts_the_count_again(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    log.info("rare")
    # Timers of one delay fire in order: the period has ended when this one fires.
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(2 * SOON_S, ended.set_result, None)
    await ended
    log.info("rare")
    assert logged.seen == [{"level": "info", "event": "rare"}] * 2


async def test_events_are_limited_separately(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)
    for _ in range(3):
        log.info("one")
        log.info("other")
    assert [event["event"] for event in logged.seen] == ["one", "other"]


async def test_a_traceback_is_logged_once_for_each_kind_of_error(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    for _ in range(3):
        log.fault("broke", ValueError("bad"))
        log.fault("broke", KeyError("bad"))
    (value, _) = await logged.reached(2, "broke", suppressed=2)
    assert value == {"level": "error", "event": "broke", "kind": "ValueError", "suppressed": 2}
    kinds = [type(event["exc_info"]) for event in logged.seen if "exc_info" in event]
    assert kinds == [ValueError, KeyError]


async def test_every_loop_starts_afresh(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)

    async def flood() -> None:
        log.info("flood")
        log.info("flood")

    await flood()
    await asyncio.to_thread(asyncio.run, _until_logged(log))
    assert [event["event"] for event in logged.seen] == ["flood", "flood"]


async def _until_logged(log: RateLimitedLog) -> None:
    log.info("flood")


async def test_library_records_of_one_place_are_limited(
    logged: LogEvents, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("some.library")
    limit = LibraryLogRate(SOON_S)
    logger.addFilter(limit)
    try:
        for number in range(4):
            logger.warning(f"connection {number} was reset")
        logger.warning("another place")
        (summary,) = await logged.reached(1, "library_messages_suppressed")
    finally:
        logger.removeFilter(limit)
    assert [record.getMessage() for record in caplog.records] == ["connection 0 was reset", "another place"]
    assert summary["logger"] == "some.library"
    assert summary["message"] == "connection 3 was reset"
    assert summary["suppressed"] == 3


def test_library_records_outside_of_the_event_loop_pass(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    limit = LibraryLogRate(NEVER_S)
    logger.addFilter(limit)
    try:
        for _ in range(3):
            logger.warning("starting")
    finally:
        logger.removeFilter(limit)
    assert len(caplog.records) == 3
