"""Events that clients can cause are logged at a limited rate, with a count of the suppressed ones."""

import asyncio
import logging

import pytest
import structlog

from kasparro.log_rate import LibraryLogRate, RateLimitedLog
from tests.conftest import LogEvents

SOON_S = 0.01
NEVER_S = 3_600.0


async def test_only_the_first_event_is_logged_at_once(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)
    for number in range(1_000):
        log.warning("flood", number=number)
    assert logged.seen == [{"level": "warning", "event": "flood", "number": 0}]


async def test_suppressed_events_are_counted_at_the_end_of_the_period(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    for number in range(5):
        log.info("flood", number=number)
    await logged.reached(2, "flood")
    assert logged.seen == [
        {"level": "info", "event": "flood", "number": 0},
        {"level": "info", "event": "flood", "number": 4, "suppressed": 4},
    ]


async def test_suppressed_events_have_the_context_of_the_last_one(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    for number in range(3):
        with structlog.contextvars.bound_contextvars(request_id=number):
            log.info("flood", number=number)
    (last,) = await logged.reached(1, "flood", suppressed=2)
    assert last["request_id"] == last["number"] == 2


async def test_event_after_a_quiet_period_is_logged_at_once(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    log.info("rare")
    # The period has ended when this timer fires, because its delay is twice as long.
    ended = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(2 * SOON_S, ended.set_result, None)
    await ended
    log.info("rare")
    assert logged.seen == [{"level": "info", "event": "rare"}] * 2


async def test_each_event_has_its_own_limit(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)
    for _ in range(3):
        log.info("one")
        log.info("other")
    assert [event["event"] for event in logged.seen] == ["one", "other"]


async def test_only_the_first_error_of_each_type_has_a_traceback(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), SOON_S)
    for _ in range(3):
        log.fault("failed", ValueError("bad"))
        log.fault("failed", KeyError("bad"))
    (value, _) = await logged.reached(2, "failed", suppressed=2)
    assert value == {"level": "error", "event": "failed", "kind": "ValueError", "suppressed": 2}
    kinds = [type(event["exc_info"]) for event in logged.seen if "exc_info" in event]
    assert kinds == [ValueError, KeyError]


async def test_new_event_loop_starts_with_no_periods(logged: LogEvents) -> None:
    log = RateLimitedLog(structlog.get_logger(), NEVER_S)

    async def flood() -> None:
        log.info("flood")
        log.info("flood")

    await flood()
    await asyncio.to_thread(asyncio.run, _log_once(log))
    assert [event["event"] for event in logged.seen] == ["flood", "flood"]


async def _log_once(log: RateLimitedLog) -> None:
    log.info("flood")


async def test_library_records_of_one_line_of_code_are_limited(
    logged: LogEvents, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("some.library")
    limit = LibraryLogRate(SOON_S)
    logger.addFilter(limit)
    try:
        for number in range(4):
            logger.warning(f"connection {number} was reset")
        logger.warning("another line")
        (summary,) = await logged.reached(1, "library_messages_suppressed")
    finally:
        logger.removeFilter(limit)
    assert [record.getMessage() for record in caplog.records] == ["connection 0 was reset", "another line"]
    assert summary["logger"] == "some.library"
    assert summary["message"] == "connection 3 was reset"
    assert summary["suppressed"] == 3


def test_library_records_outside_the_event_loop_are_not_limited(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("some.library")
    limit = LibraryLogRate(NEVER_S)
    logger.addFilter(limit)
    try:
        for _ in range(3):
            logger.warning("starting")
    finally:
        logger.removeFilter(limit)
    assert len(caplog.records) == 3
