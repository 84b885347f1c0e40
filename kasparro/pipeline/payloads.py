"""Keeps the raw payloads of one run within its bounds, and trims what is beyond them."""

from collections import Counter
from datetime import datetime

import structlog

from kasparro.errors import LeaseLost, one_line
from kasparro.model.payload import Payload, Retention
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.store import payloads
from kasparro.store.pool import Database

log = structlog.get_logger()

# How long a run waits to keep a payload. The records in it matter more, and have the longer patience.
PAYLOAD_PATIENCE_S = 10.0


class PayloadRecorder:
    """What one run keeps of what its sources are answered; nothing, where `retention` is None.

    Records are worth more than their raw text: where a payload cannot be kept, the run goes on without.
    """

    def __init__(
        self, database: Database, run_id: int, retention: Retention | None, retry: DatabaseRetry
    ) -> None:
        self._database = database
        self._run_id = run_id
        self._retention = retention
        self._retry = retry
        self._bytes = 0
        self._unkept: Counter[str] = Counter()

    async def keep(self, source: str, payload: Payload) -> None:
        """Store what a call was answered, if there is room. Raises LeaseLost."""
        if self._retention is None:
            return
        body = await payloads.compressed(payload.body)
        if self._bytes + len(body) > self._retention.payload_bytes:
            if self._retention.payload_bytes:
                self._not_kept(source, "this run's payloads exceed KASPARRO_PAYLOAD_MAX_SIZE")
            return
        self._bytes += len(body)
        try:
            await self._retry(
                lambda: payloads.keep(self._database, self._run_id, source, payload, body),
                0.0 if self._unkept[source] else PAYLOAD_PATIENCE_S,
            )
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a full disk or a database in trouble may raise
            self._not_kept(source, one_line(error))

    async def trim(self, now: datetime) -> None:
        """Delete what is not to be kept any more, of all runs. Raises DatabaseUnavailable."""
        if self._retention is not None:
            await payloads.trim(self._database, self._retention, now)

    def _not_kept(self, source: str, reason: str) -> None:
        self._unkept[source] += 1
        if self._unkept[source] == 1:
            log.warning("payloads_not_stored", run=self._run_id, source=source, reason=reason)
