"""How the program logs: one line an event on stderr, as text for people or JSON for machines.

What comes from outside is made printable here, where it leaves, whichever module or library logs it.
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

# How many characters a field of a line may take, its name, and a traceback.
FIELD_CHARS = 2_000
NAME_CHARS = 100
TRACEBACK_CHARS = 20_000

# Libraries that say at INFO what nobody who runs Kasparro has to know.
_QUIET = ("uvicorn.access", "uvicorn.error", "uvicorn.asgi", "asyncio")


def configure(settings: Settings) -> None:
    """Set up structlog, and send what libraries log through the standard library down the same road."""
    as_text = settings.log == "text" or (settings.log is None and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = [
        # Not the renderer's pretty formatter: it shows local variables, and with them secrets.
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
    handler.addFilter(_not_logged_yet)
    handler.addFilter(LibraryLogRate())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    stamina.instrumentation.set_on_retry_hooks([_tell_retry])


def capture_crashes() -> None:
    """Log what Python itself would write to stderr as it is: uncaught errors and warnings."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_crash
    threading.excepthook = lambda crash: _log_crash(crash.exc_type, crash.exc_value, crash.exc_traceback)
    sys.unraisablehook = lambda ignored: _log_crash(
        ignored.exc_type, ignored.exc_value, ignored.exc_traceback
    )


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at the time: a progress bar puts itself there and draws below the lines."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, told: TextIO) -> None:
        pass

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        """Say where a line could not be written, in place of the line and a traceback as they are."""
        try:
            fault = printable(traceback.format_exc(limit=0), FIELD_CHARS)
            sys.stderr.write(f"a log line of {printable(record.pathname)}:{record.lineno} failed: {fault}\n")
        except OSError:
            # Nobody can read what goes wrong on stderr.
            pass


def _make_printable(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape and bound every name and value of an event; a traceback keeps its lines."""
    shown: structlog.typing.EventDict = {}
    for name, value in event.items():
        if name in _TRACEBACKS and isinstance(value, str):
            shown[name] = printable_lines(_middle_cut(value))
        else:
            shown[printable(str(name), NAME_CHARS)] = _bounded(value)
    return shown


# Where structlog puts what has lines.
_TRACEBACKS = ("exception", "stack")


def _bounded(value: object) -> object:
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


def _middle_cut(text: str) -> str:
    # A traceback says most at its start and at its end; an error may quote megabytes.
    half = TRACEBACK_CHARS // 2
    left_out = len(text) - 2 * half
    return text if left_out <= 0 else f"{text[:half]}\n… ({left_out:,} characters)\n{text[-half:]}"


def _indent_traceback(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Indent a traceback, so that no line of an error's text looks like an event of its own."""
    return {
        name: textwrap.indent(value, "    ", lambda _: True) if name in _TRACEBACKS else value
        for name, value in event.items()
    }


def _not_logged_yet(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], AlreadyLogged))


def _log_crash(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        error = kind() if error is None else error
        structlog.get_logger().critical("uncaught_error", exc_info=(kind, error, trace))


def _tell_retry(details: stamina.instrumentation.RetryDetails) -> None:
    structlog.get_logger().warning(
        "retry_scheduled",
        reason=str(details.caused_by),
        retry_num=details.retry_num,
        wait_s=round(details.wait_for, 1),
    )
