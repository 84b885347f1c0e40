"""Stores the raw payloads of a run within the configured size, and deletes expired ones."""

from collections import Counter
from datetime import datetime

import structlog

from kasparro.errors import LeaseLost, one_line
from kasparro.model.payload import Payload, Retention
from kasparro.pipeline.retry import DatabaseRetry
from kasparro.store import payloads
from kasparro.store.pool import Database

log = structlog.get_logger()

# How long a run waits to store a payload. Its records matter more and may wait longer.
PAYLOAD_PATIENCE_S = 10.0


class PayloadRecorder:
    """Stores the payloads of one run; without `retention`, none.

    Records are worth more than their raw text: a payload that cannot be stored does not fail the run.
    """

    def __init__(
        self, database: Database, run_id: int, retention: Retention | None, retry: DatabaseRetry
    ) -> None:
        self._database = database
        self._run_id = run_id
        self._retention = retention
        self._retry = retry
        self._bytes = 0
        self._not_stored: Counter[str] = Counter()

    async def store(self, source: str, payload: Payload) -> None:
        """Store the payload of a call if it fits. Raises LeaseLost."""
        if self._retention is None:
            return
        body = await payloads.compressed(payload.body)
        if self._bytes + len(body) > self._retention.payload_bytes:
            if self._retention.payload_bytes:
                self._log_not_stored(source, "this run's payloads exceed KASPARRO_PAYLOAD_MAX_SIZE")
            return
        self._bytes += len(body)
        try:
            await self._retry(
                lambda: payloads.save(self._database, self._run_id, source, payload, body),
                0.0 if self._not_stored[source] else PAYLOAD_PATIENCE_S,
            )
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk or a failing database may raise anything
            self._log_not_stored(source, one_line(error))

    async def trim(self, now: datetime) -> None:
        """Delete the expired payloads of all runs. Raises DatabaseUnavailable."""
        if self._retention is not None:
            await payloads.trim(self._database, self._retention, now)

    def _log_not_stored(self, source: str, reason: str) -> None:
        self._not_stored[source] += 1
        if self._not_stored[source] == 1:
            log.warning("payloads_not_stored", run=self._run_id, source=source, reason=reason)
