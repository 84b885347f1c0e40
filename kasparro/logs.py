"""Configures logging: one line for each event on stderr, as text for people or JSON for machines.

Text from outside is escaped here, whichever module or library logs it.
"""

import logging
import sys
import textwrap
import threading
import traceback
from types import TracebackType
from typing import TextIO

import stamina
import stamina.instrumentation
import structlog

from kasparro.errors import AlreadyLogged
from kasparro.log_rate import LibraryLogRate
from kasparro.printable import printable, printable_lines
from kasparro.settings import Settings

# Limits of a field, of its name and of a traceback, in characters.
FIELD_CHARS = 2_000
NAME_CHARS = 100
TRACEBACK_CHARS = 20_000

# Libraries whose INFO messages are of no use to operators.
_QUIET = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi", "asyncio")


def configure(settings: Settings) -> None:
    """Set up structlog, also for what libraries log through the standard library."""
    as_text = settings.log == "text" or (settings.log is None and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = [
        # Not the renderer's own formatter, which shows local variables and thus secrets.
        structlog.processors.format_exc_info,
        _make_printable,
    ]
    if as_text:
        renderer += [
            _indent_traceback,
            structlog.dev.ConsoleRenderer(
                sort_keys=False,
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    else:
        renderer.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = _Stderr()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    handler.addFilter(_is_not_logged_yet)
    handler.addFilter(_is_no_dropped_copy)
    handler.addFilter(LibraryLogRate())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    stamina.instrumentation.set_on_retry_hooks([_log_retry])


def capture_crashes() -> None:
    """Log uncaught errors and warnings, which Python would write to stderr unescaped."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)
    sys.unraisablehook = lambda ignored: _log_crash(
        ignored.exc_type, ignored.exc_value, ignored.exc_traceback
    )


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the present `sys.stderr`: a progress bar replaces it, to draw itself below the log lines."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Write where the failed log call is, instead of an unescaped line and traceback."""
        try:
            fault = printable(traceback.format_exc(limit=0), FIELD_CHARS)
            sys.stderr.write(f"a log line of {printable(record.pathname)}:{record.lineno} failed: {fault}\n")
        except OSError:
            # An error of stderr itself cannot be reported.
            pass


def _make_printable(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape and truncate every name and value of an event. A traceback keeps its line ends."""
    escaped: structlog.typing.EventDict = {}
    for name, value in event.items():
        if name in _TRACEBACKS and isinstance(value, str):
            escaped[name] = printable_lines(_truncated_traceback(value))
        else:
            escaped[printable(str(name), NAME_CHARS)] = _truncated(value)
    return escaped


# The fields in which structlog puts text of several lines.
_TRACEBACKS = ("exception", "stack")


def _truncated(value: object) -> object:
    if isinstance(value, dict | list | tuple) and len(text := repr(value)) > FIELD_CHARS:
        return printable(text, FIELD_CHARS)
    return _escaped(value)


def _escaped(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return printable(value, FIELD_CHARS)
        case dict():
            return {printable(str(name), NAME_CHARS): _escaped(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_escaped(inner) for inner in value]
        case _:
            return printable(repr(value), FIELD_CHARS)


def _truncated_traceback(text: str) -> str:
    # The start and the end of a traceback matter most. The text of an error can have megabytes.
    half = TRACEBACK_CHARS // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n… ({left_out:,} characters)\n{text[-half:]}"


def _indent_traceback(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Indent a traceback, so that no line of an error's text looks like another event.

    Line ends at the end of an error's text would become an empty line without indentation.
    """
    return {
        name: textwrap.indent(value.rstrip("\n"), "    ", lambda _: True) if name in _TRACEBACKS else value
        for name, value in event.items()
    }


def _is_not_logged_yet(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], AlreadyLogged))


def _is_no_dropped_copy(record: logging.LogRecord) -> bool:
    # asyncpg 0.32 (protocol.copy_in) creates a future and drops it if a COPY begins just after the server has
    # terminated the session. The caller gets another error, which is reported; asyncio reports this too.
    # The class is compared by name: processes without a database need not import asyncpg.
    return not (
        record.name == "asyncio"
        and record.exc_info
        and type(record.exc_info[1]).__qualname__ == "ConnectionDoesNotExistError"
        and record.getMessage().startswith("Future exception was never retrieved")
    )


def _log_crash(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        error = kind() if error is None else error
        structlog.get_logger().critical("uncaught_error", exc_info=(kind, error, trace))


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    structlog.get_logger().warning(
        "retry_scheduled",
        reason=str(details.caused_by),
        retry_num=details.retry_num,
        wait_s=round(details.wait_for, 1),
    )
