"""How the program logs: one line an event on stderr, as text for people or JSON for machines."""

import logging
import sys
from typing import TextIO

import stamina
import stamina.instrumentation
import structlog

from kasparro.settings import Settings

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
    renderer: list[structlog.typing.Processor] = (
        [
            structlog.dev.ConsoleRenderer(
                sort_keys=False,
                colors=sys.stderr.isatty(),
                # The pretty formatter shows local variables, and with them secrets.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
        if as_text
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
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
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    stamina.instrumentation.set_on_retry_hooks([_tell_retry])


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at the time: a progress bar puts itself there and draws below the lines."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, told: TextIO) -> None:
        pass


def _tell_retry(details: stamina.instrumentation.RetryDetails) -> None:
    structlog.get_logger().warning(
        "trying again",
        reason=str(details.caused_by),
        attempt=details.retry_num,
        in_s=round(details.wait_for, 1),
    )
