"""Log lines contain text from outside escaped and truncated, whichever code logs it."""

import asyncio
import gc
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import asyncpg
import pytest
import stamina.instrumentation
import structlog
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kasparro import logs
from kasparro.errors import AlreadyLogged
from kasparro.settings import Settings
from tests.support.unsafe_characters import UNSAFE_CHARACTERS

HOSTILE = "\x1b]0;title\x07\x9b2J\u202e\u2028\n\ud800"
ESCAPED = r"\x1b]0;title\x07\x9b2J\u202e\u2028\n\ud800"

Start = Callable[[Literal["text", "json"]], io.StringIO]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function that configures logging in a form and returns the buffer that it writes to."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook

    def configure(form: Literal["text", "json"]) -> io.StringIO:
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        logs.configure(Settings(log=form))
        # A cached logger would keep this configuration in later tests.
        structlog.configure(cache_logger_on_first_use=False)
        return written

    yield configure
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    stamina.instrumentation.set_on_retry_hooks(None)


def safe(written: io.StringIO) -> str:
    """The text written, after a check that it has no unsafe character except line ends."""
    text = written.getvalue()
    assert UNSAFE_CHARACTERS.isdisjoint(text.replace("\n", ""))
    return text


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as caught:
        return caught


class Odd:
    """An object with an unsafe repr, as a library may log it."""

    def __repr__(self) -> str:
        return f"<{HOSTILE}>"


@pytest.mark.parametrize("form", ["text", "json"])
@examples(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@example("\n")
@example("two lines\nand an end of line\n\n")
@given(st.text(st.characters()))
def test_any_text_in_an_event_is_escaped(form: Literal["text", "json"], start: Start, text: str) -> None:
    written = start(form)
    log = structlog.get_logger()
    log.warning(
        f"e{text}", **{f"k{text}": text}, nested={text: [text, (text,)]}, raw=text.encode("utf-8", "replace")
    )
    logging.getLogger("library").error("said %s", text, exc_info=raised(ValueError(text)))
    shown = safe(written)
    if form == "json":
        assert len([json.loads(line) for line in shown.splitlines()]) == 2
    else:
        _, second, *trace = shown.splitlines()
        assert "said" in second
        assert all(line.startswith("    ") for line in trace)


@pytest.mark.parametrize("form", ["text", "json"])
def test_library_messages_and_objects_are_escaped(form: Literal["text", "json"], start: Start) -> None:
    written = start(form)
    structlog.get_logger().info("event", object=Odd())
    logging.getLogger("library").warning(HOSTILE)
    shown = safe(written)
    assert shown.count("\n") == 2
    assert shown.replace("\\\\", "\\").count(ESCAPED) == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_traceback_keeps_its_lines_and_forges_no_event(form: Literal["text", "json"], start: Start) -> None:
    written = start(form)
    forged = "2026-01-01T00:00:00Z [info     ] all is well"
    structlog.get_logger().error("request_failed", exc_info=raised(ValueError(f"{HOSTILE}\n{forged}")))
    shown = safe(written)
    if form == "json":
        (event,) = map(json.loads, shown.splitlines())
        lines = event["exception"].splitlines()
        assert UNSAFE_CHARACTERS.isdisjoint("".join(lines))
    else:
        head, *lines = shown.splitlines()
        assert "request_failed" in head
        assert {line[:4] for line in lines} == {"    "}
        lines = [line[4:] for line in lines]
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == forged


def test_fields_are_truncated(start: Start) -> None:
    written = start("json")
    structlog.get_logger().warning(
        "e" * 100_000,
        path="x" * 100_000,
        controls="\x1b" * 100_000,
        many=["y" * 10] * 100_000,
        **{"k" * 100_000: 1},
    )
    structlog.get_logger().error("failed", exc_info=raised(ValueError("z" * 1_000_000)))
    first, second = safe(written).splitlines()
    assert len(first) < 5 * (logs.FIELD_CHARS + 1_000)
    assert len(second) < logs.TRACEBACK_CHARS + 1_000
    event = json.loads(first)
    assert event["path"].endswith("… (100,000 characters)")
    assert json.loads(second)["exception"].startswith("Traceback")


def test_ordinary_text_and_types_are_unchanged(start: Start) -> None:
    written = start("json")
    fields: dict[str, Any] = {
        "name": "比特币 🚀 é",
        "number": 1,
        "rate": 0.5,
        "no": None,
        "flags": [True, "x"],
    }
    structlog.get_logger().info("event", **fields)
    assert fields.items() <= json.loads(written.getvalue()).items()


def test_reason_of_a_retry_is_escaped(start: Start) -> None:
    written = start("text")
    details = stamina.instrumentation.RetryDetails("x", (), {}, 1, 1.0, 0.0, ValueError(HOSTILE))
    for hook in stamina.instrumentation.get_on_retry_hooks():
        hook(details)
    assert ESCAPED in safe(written).replace("\\\\", "\\")


def test_uncaught_errors_and_warnings_are_logged(start: Start) -> None:
    written = start("json")
    logs.capture_crashes()
    error = raised(ValueError(HOSTILE))
    sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    events = [json.loads(line) for line in safe(written).splitlines()]
    assert [event["event"] for event in events[:2]] == ["uncaught_error"] * 2
    assert ESCAPED.partition(r"\n")[0] in events[0]["exception"]
    assert "ZeroDivisionError" in events[1]["exception"]
    assert ESCAPED in events[2]["event"]
    assert len(events) == 3


def test_failed_formatting_is_reported_in_one_line(start: Start) -> None:
    written = start("text")
    wrong = "%d of %d"
    logging.getLogger("library").warning(wrong, HOSTILE)
    (line,) = safe(written).splitlines()
    assert "failed" in line
    assert "test_logs.py" in line


def test_already_logged_errors_are_not_logged_by_libraries(start: Start) -> None:
    written = start("text")
    logging.getLogger("uvicorn.error").error("Exception in app", exc_info=raised(AlreadyLogged("cut")))
    assert written.getvalue() == ""


async def test_repeated_library_messages_are_limited(start: Start) -> None:
    written = start("text")
    for _ in range(100):
        logging.getLogger("asyncio").warning("socket.send() raised exception.")
    assert len(written.getvalue().splitlines()) == 1


async def test_future_that_asyncpg_drops_is_not_logged(start: Start) -> None:
    output = start("json")

    for error in (asyncpg.ConnectionDoesNotExistError("closed"), asyncpg.ConnectionFailureError("failed")):
        asyncio.get_running_loop().create_future().set_exception(error)
        gc.collect()

    (event,) = [json.loads(line) for line in output.getvalue().splitlines()]
    assert "ConnectionFailureError" in event["event"]
