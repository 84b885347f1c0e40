"""Sends server-sent events to every open stream: committed data versions with what changed, and runs."""

import asyncio
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Annotated, Any, ClassVar, Literal, Self

import asyncpg
import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kasparro.concurrency import timeout
from kasparro.errors import DatabaseUnavailable, KasparroError
from kasparro.log_rate import RateLimitedLog
from kasparro.store import changes
from kasparro.store.changes import Changes, State
from kasparro.store.data_version import CATCH_UP_POLL_S, CATCH_UP_S, DataVersion
from kasparro.store.pool import Database
from kasparro.supervision import BackgroundTask, Supervisor
from kasparro.web import reports
from kasparro.web.http.connections import Connection
from kasparro.web.http.context import context_of
from kasparro.web.http.disconnects import ResponseAborted
from kasparro.web.http.headers import UNBUFFERED
from kasparro.web.http.problems import RETRY_AFTER_S, Problem
from kasparro.web.http.request_metrics import Counts
from kasparro.web.shared_calls import SharedCalls

log = structlog.get_logger()
client_log = RateLimitedLog(log)

MEDIA_TYPE = "text/event-stream"
# Runs are read this often while a stream is open. So are versions, in case a notification was lost.
POLL_S = 1.0
# If all servers have shown only older versions for this time, the newer ones are lost. A standby that had not
# received them became the primary.
LOST_S = 30.0
# Reads that are farther apart say nothing about the time between them.
OLDER_PAUSE_S = 5.0
# Versions that are committed within this time become one event.
MERGE_S = 0.25
# Streams that get an event before other tasks continue. Writing to this many takes 2 to 3 ms.
AT_ONCE = 64
# They also continue after this time, because some events must be rendered first.
RENDER_S = 0.002
# Ways from earlier positions that are kept, and of each the events of so many filters, in so many bytes. All
# have a bound, because clients choose them. A way may hold all rows of the table.
STEPS = 8
FILTERS = 1_024
EVENT_BYTES = 4 * 1024 * 1024
# Events of filters with more assets are not kept: they are long, and other clients rarely have the same.
KEPT_ASSETS = 20
# Of more runs that ended at once, only the newest are reported.
RUNS_AT_ONCE = 10
# Clients reconnect after a random time in this range, so that a restart does not bring all of them at once.
RECONNECT_MS = (1_000, 5_000)

_ID = re.compile(r"([0-9a-f]{12})-(\d{1,18})-(\d{1,18})")


class StreamLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many streams one process has, and what one may cost.

    `total` streams at once, `per_client` of one client, and never more than `connections_part` of the
    server's connections. A client must read an event within `write_s`. A stream without an event gets a
    comment after `heartbeat_s`. An event lists `listed` rows and assets.
    """

    total: int = 3_072
    per_client: int = 256
    connections_part: float = 0.75
    heartbeat_s: float = 15.0
    write_s: float = 8.0
    listed: int = 500


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since the last event of the stream."""

    count: Annotated[int, msgspec.Meta(description="How many rows changed.")]
    rows: Sequence[tuple[str, str]]
    assets: Sequence[str]


class VersionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The data of the event `version`."""

    data_version: int
    committed_at: datetime | None
    run: int | None
    changed: Changed
    truncated: bool


class ResetEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The data of the event `reset`."""

    data_version: int
    committed_at: datetime | None
    reason: str


class Filter(msgspec.Struct, frozen=True):
    """Which rows a client wants to hear of; an empty set means all."""

    assets: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()


class Position(msgspec.Struct, frozen=True):
    """The last version that a client has heard of, as in the ids of events."""

    database: str
    version: int
    manual_edits: int

    @classmethod
    def of(cls, state: State) -> "Position":
        """The position of a client that has heard of this state."""
        return cls(state.database, state.version, state.manual_edits)

    @classmethod
    def parse(cls, text: str) -> "Position":
        """The position in an event id. Another text gives one of no database, so that the client resets."""
        found = _ID.fullmatch(text)
        return cls(found[1], int(found[2]), int(found[3])) if found else cls("", 0, 0)

    def __str__(self) -> str:
        return f"{self.database}-{self.version}-{self.manual_edits}"


def event(kind: str, data: msgspec.Struct, position: Position | None = None) -> bytes:
    """A server-sent event with a JSON object as its data."""
    line = b"" if position is None else b"id: %b\n" % str(position).encode()
    return b"%bevent: %b\ndata: %b\n\n" % (line, kind.encode(), reports.encode(data))


class _Step:
    # The way from one position to the newest state: what changed, and the events for it by filter.

    def __init__(self, found: Changes, reset: str | None, listed: int) -> None:
        self.position = Position.of(found.state)
        self._found = found
        self._reset = reset
        self._listed = listed
        self._events: dict[Filter, bytes] = {}
        self._event_bytes = 0
        self._by_asset: dict[str, list[tuple[str, str, str | None]]] | None = None
        self._asset_order: dict[str, int] = {}

    def event(self, wanted: Filter, *, always: bool) -> bytes:
        """The event for clients with this filter; empty if nothing in it changed, unless `always`."""
        key = Filter() if self._reset is not None else wanted
        found = self._events.get(key)
        if found is None:
            found = self._render(key)
            if self._may_keep(key, found):
                self._events[key] = found
                self._event_bytes += len(found)
        if not found and always:
            return self._version([], [])
        return found

    def _may_keep(self, key: Filter, text: bytes) -> bool:
        # That of all rows is always kept: it takes longest, and most clients want it.
        return key == Filter() or (
            len(key.assets) <= KEPT_ASSETS
            and len(self._events) < FILTERS
            and self._event_bytes + len(text) <= EVENT_BYTES
        )

    def _render(self, wanted: Filter) -> bytes:
        state = self._found.state
        if self._reset is not None:
            data = ResetEvent(data_version=state.version, committed_at=state.committed_at, reason=self._reset)
            return event("reset", data, self.position)
        rows, assets = self._selected(wanted)
        if wanted != Filter() and not rows and not assets:
            return b""
        return self._version(rows, assets)

    def _version(self, rows: Sequence[tuple[str, str]], assets: Sequence[str]) -> bytes:
        state = self._found.state
        data = VersionEvent(
            data_version=state.version,
            committed_at=state.committed_at,
            run=state.committed_by_run,
            changed=Changed(count=len(rows), rows=rows[: self._listed], assets=assets[: self._listed]),
            truncated=max(len(rows), len(assets)) > self._listed,
        )
        return event("version", data, self.position)

    def _selected(self, wanted: Filter) -> tuple[list[tuple[str, str]], Sequence[str]]:
        rows, assets = self._found.rows, self._found.assets
        if wanted.assets:
            # There may be as many filters as clients, and a version with all rows of the table.
            if self._by_asset is None:
                self._by_asset = {}
                for row in rows:
                    self._by_asset.setdefault(row[2] or "", []).append(row)
                self._asset_order = {asset: number for number, asset in enumerate(assets)}
            of_assets = self._by_asset
            rows = [row for asset in sorted(wanted.assets) for row in of_assets.get(asset, ())]
            assets = sorted(wanted.assets & self._asset_order.keys(), key=self._asset_order.__getitem__)
        if wanted.sources:
            rows = [row for row in rows if row[0] in wanted.sources]
            theirs = {row[2] for row in rows}
            assets = [asset for asset in assets if asset in theirs]
        # A row whose asset changed is there twice.
        return list(dict.fromkeys((source, source_id) for source, source_id, _ in rows)), assets


class Stream:
    """One open stream. It has one task, that of its request; a second one lives while an event is written."""

    __slots__ = (
        "_loop",
        "_request",
        "_send",
        "client",
        "ended",
        "id_sent",
        "position",
        "run_number",
        "sending_since",
        "sent_at",
        "wanted",
        "writing",
    )

    def __init__(self, client: str, wanted: Filter, position: Position, run_number: int, send: Send) -> None:
        self.client = client
        self.wanted = wanted
        self.position = position
        self.run_number = run_number
        self.id_sent = True
        self.sent_at = time.monotonic()
        self.writing: asyncio.Task[None] | None = None
        # Why the service ended it: `slow`, `shutdown` or the error of a write.
        self.ended: str | BaseException | None = None
        self._send = send
        self._request = asyncio.current_task()

    def start_writing(self, text: bytes) -> None:
        """Write in the background. Only if nothing is being written."""
        self.sent_at = time.monotonic()
        self.writing = asyncio.create_task(self._write(text))

    async def _write(self, text: bytes) -> None:
        try:
            await self._send({"type": "http.response.body", "body": text, "more_body": True})
        except Exception as error:  # noqa: BLE001 - the task of the request raises it
            self.end(error)
        finally:
            self.writing = None

    def end(self, reason: str | BaseException) -> None:
        """End the stream for this reason."""
        if self.ended is None and self._request is not None:
            self.ended = reason
            self._request.cancel()


class Streams:
    """The open streams of one process, and what they are sent.

    A single task follows the database and writes to all streams, so that an idle stream costs no timer and no
    task of its own. What a stream has heard of is a position; whatever was committed since is found from the
    tables, once for all streams at the same position. So nothing is queued for a client that reads slowly.
    """

    limits: ClassVar[StreamLimits] = StreamLimits()

    def __init__(
        self, database: Database, version: DataVersion, counts: Counts, supervisor: Supervisor
    ) -> None:
        self._database = database
        self._counts = counts
        self._supervisor = supervisor
        version.subscribe(self._wake)
        self._open: dict[Stream, None] = {}
        self._by_client: Counter[str] = Counter()
        self._any_open = asyncio.Event()
        self._woken = asyncio.Event()
        # One read of the state at a time, and one of the changes since each position.
        self._refreshing = asyncio.Lock()
        self._resuming = SharedCalls[Position, _Step]()
        self._state: State | None = None
        self._read_at = self._woken_at = float("-inf")
        # Since when the servers have shown only versions before the known one, and the newest that was lost.
        self._older_since: float | None = None
        self._older_at = float("-inf")
        self._lost_version = 0
        self._run = b""
        self._run_number = 0
        self._run_read_at = float("-inf")
        self._steps: dict[Position, _Step] = {}
        self._task: BackgroundTask | None = None

    async def __aenter__(self) -> Self:
        self._task = self._supervisor.start("streams", self._follow)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in [*self._open]:
            stream.end("shutdown")
        if self._task is not None:
            await self._task.stop()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, client: str, connection: Connection | None) -> None:
        """Raises Problem (429, 503) if this client, or all clients together, have too many streams."""
        limits = self.limits
        total = limits.total
        if connection is not None:
            total = min(total, max(1, int(connection.connection_limit * limits.connections_part)))
        per_client = min(limits.per_client, total)
        if self._by_client[client] >= per_client:
            raise _too_many(429, f"A client can have {per_client} streams open.")
        if len(self._open) >= total:
            raise _too_many(503, f"All {total} streams of this process are in use.")

    async def first_event(
        self, wanted: Filter, position: Position | None, client: str
    ) -> tuple[bytes, Position, int]:
        """What a stream begins with, the position and the number of the run that it then has.

        Without a position, it begins at the current version. Raises DatabaseUnavailable, DatabaseBusy.
        """
        now = time.monotonic()
        if (
            self._state is None
            or self._read_at < max(self._woken_at, now - POLL_S)
            # Another process may have heard of a version earlier.
            or (position is not None and position.version > self._state.version)
        ):
            await self._refresh(now)
        # It may have read a replica that is less behind.
        while position is not None and self._may_reach(position) and time.monotonic() - now < CATCH_UP_S:
            await asyncio.sleep(CATCH_UP_POLL_S)
            await self._refresh(time.monotonic())
        state = self._current
        number, run = self._run_number, self._run
        step = await self._resumed(Position.of(state) if position is None else position, client)
        return step.event(wanted, always=True) + run, step.position, number

    @contextmanager
    def opened(self, stream: Stream, connection: Connection | None) -> Iterator[None]:
        """A block in which the stream gets events. Raises Problem (429, 503) as `admit`."""
        self.admit(stream.client, connection)
        if connection is not None:
            connection.on_shutdown = lambda: stream.end("shutdown")
        self._open[stream] = None
        self._by_client[stream.client] += 1
        self._any_open.set()
        try:
            yield
        finally:
            if connection is not None:
                connection.on_shutdown = None
            if stream.writing is not None:
                stream.writing.cancel()
            del self._open[stream]
            self._by_client[stream.client] -= 1
            if not self._by_client[stream.client]:
                del self._by_client[stream.client]
            if not self._open:
                self._any_open.clear()
                # Nobody looks any more whether the servers stay behind.
                self._older_since = None
            if stream.ended == "slow" or (connection is not None and connection.aborted):
                self._counts.streams_dropped += 1

    def _wake(self) -> None:
        self._woken_at = time.monotonic()
        self._woken.set()

    async def _follow(self) -> None:
        while True:
            await self._any_open.wait()
            self._woken.clear()
            try:
                await self._refresh(time.monotonic())
                await self._send_events()
            except (KasparroError, asyncpg.PostgresError) as error:
                # Streams stay open meanwhile: their clients could not get an answer elsewhere either.
                log.debug("stream_waits_for_database", reason=str(error))
                await self._send_heartbeats()
            await asyncio.sleep(MERGE_S)
            with suppress(TimeoutError):
                async with timeout(POLL_S - MERGE_S):
                    await self._woken.wait()

    @property
    def _current(self) -> State:
        if self._state is None:
            raise DatabaseUnavailable("the data version is not known yet")
        return self._state

    async def _refresh(self, asked_at: float) -> None:
        # Reads the state, and the newest runs if they changed.
        async with self._refreshing:
            if self._read_at >= asked_at:
                return
            async with self._database.reading() as connection:
                began = time.monotonic()
                state = await changes.state(connection)
                known = self._state
                if (
                    known is not None
                    and not self._database.one_server
                    and known.database == state.database
                    and known.version > state.version
                ):
                    # Another replica, which is behind.
                    if self._older_since is None or began - self._older_at > OLDER_PAUSE_S:
                        self._older_since = began
                    self._older_at = began
                    if began - self._older_since < LOST_S:
                        return
                    log.warning("stream_versions_lost", known=known.version, found=state.version)
                    self._lost_version = max(self._lost_version, known.version)
                changed = known is None or (state.run_id, state.run_status) != (
                    known.run_id,
                    known.run_status,
                )
                progress = state.run_status == "running" and began - self._run_read_at >= POLL_S
                if state.run_id is not None and (changed or progress):
                    await self._read_runs(connection, known, state.run_id)
                    self._run_read_at = began
            if known is None or Position.of(known) != Position.of(state):
                self._steps.clear()
            self._state, self._read_at, self._older_since = state, began, None

    async def _read_runs(self, connection: Any, known: State | None, newest: int) -> None:
        first = newest
        if known is not None:
            # Another run may have ended since, or begun and ended.
            first = (known.run_id or 0) + (known.run_status != "running")
        first = max(min(first, newest), newest - RUNS_AT_ONCE + 1)
        found = await reports.run_reports(connection, range(first, newest + 1))
        self._run = b"".join(event("run", found[run_id]) for run_id in sorted(found))
        self._run_number += 1

    async def _resumed(self, position: Position, client: str) -> _Step:
        # The same way may be wanted by many clients at once, after a restart. It is read for the first, with
        # a connection of its share.
        if position in self._steps:
            return self._steps[position]
        return await self._resuming.join(position, lambda: self._step(position, client))

    async def _step(self, position: Position, client: str | None = None) -> _Step:
        # The way from a position to the newest state. Without a client, it is for the open streams.
        step = self._steps.get(position)
        if step is not None:
            return step
        state = self._current
        found, reset = Changes(state, (), ()), self._unknown_since(position, state)
        if reset is None and position.version < state.version:
            pool: Literal["short", "slow"] = "short" if client is None else "slow"
            async with self._database.reading(pool=pool, client=client or "") as connection:
                found = await changes.changes(connection, position.version)
            reset = self._unknown_since(position, found.state)
        if reset is None and found.state.version < position.version:
            raise DatabaseUnavailable("this replica has not reached the last event yet")
        step = _Step(found, reset, self.limits.listed)
        # A replica that is behind may have answered; the next one may know more.
        newest = found.state.version >= state.version
        if newest and Position.of(state) == Position.of(self._current):
            self._steps[position] = step
            if len(self._steps) > STEPS:
                del self._steps[next(iter(self._steps))]
        return step

    def _may_reach(self, position: Position) -> bool:
        # Whether a server that is behind now may reach this position.
        state = self._current
        return position.version > state.version and self._unknown_since(position, state) is None

    def _unknown_since(self, position: Position, state: State) -> str | None:
        # Why it is not known what changed since a position; None if it is.
        if position.database != state.database:
            return "the last event id is not one of this database"
        if position.version > state.version:
            lost = self._database.one_server or position.version <= self._lost_version
            return "the database is older than the last event" if lost else None
        if position.version < state.oldest_version:
            return "the last event is too old"
        if position.manual_edits != state.manual_edits:
            return "rows were changed manually, or by an older version of Kasparro"
        return None

    async def _send_events(self) -> None:
        target = Position.of(self._current)
        # What this call has read, so that a position is read once for all streams even if it is not kept, or
        # cannot be read.
        steps: dict[Position, _Step | None] = {}
        began = time.perf_counter()
        for number, stream in enumerate([*self._open], 1):
            if self._may_write(stream):
                text = b""
                if stream.position != target:
                    if stream.position not in steps:
                        steps[stream.position] = await self._step_if_known(stream.position)
                    step = steps[stream.position]
                    if step is not None and step.position != stream.position:
                        text = step.event(stream.wanted, always=False)
                        stream.position = step.position
                        stream.id_sent = bool(text)
                if stream.run_number != self._run_number:
                    text += self._run
                    stream.run_number = self._run_number
                self._write(stream, text)
            if number % AT_ONCE == 0 or time.perf_counter() - began > RENDER_S:
                await asyncio.sleep(0)
                began = time.perf_counter()

    async def _step_if_known(self, position: Position) -> _Step | None:
        # Streams at this position wait for the next look if the database has no answer; others do not.
        try:
            return await self._step(position)
        except (KasparroError, asyncpg.PostgresError) as error:
            log.debug("stream_position_waits", position=str(position), reason=str(error))
            return None

    async def _send_heartbeats(self) -> None:
        for number, stream in enumerate([*self._open], 1):
            if self._may_write(stream):
                self._write(stream, b"")
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _may_write(self, stream: Stream) -> bool:
        if stream.ended is not None:
            return False
        if stream.writing is None:
            return True
        if time.monotonic() - stream.sent_at > self.limits.write_s:
            client_log.info("slow_stream_aborted", client=stream.client, limit_s=self.limits.write_s)
            stream.end("slow")
        return False

    def _write(self, stream: Stream, text: bytes) -> None:
        if not text and time.monotonic() - stream.sent_at >= self.limits.heartbeat_s:
            text = b":\n\n"
        if not text or stream not in self._open:
            return
        if not stream.id_sent:
            # Of a version that changed nothing for this client, so that it resumes after it.
            text = b"id: %b\n%b" % (str(stream.position).encode(), text)
            stream.id_sent = True
        stream.start_writing(text)


class EventStream(Response):
    """The response that sends events until the client disconnects or the service stops."""

    def __init__(
        self,
        streams: Streams,
        client: str,
        wanted: Filter,
        first: tuple[bytes, Position, int],
    ) -> None:
        super().__init__(headers=UNBUFFERED, media_type=MEDIA_TYPE)
        del self.headers["Content-Length"]
        self._streams = streams
        self._client = client
        self._wanted = wanted
        self._first = first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises Problem (429, 503), ResponseAborted."""
        text, position, run_number = self._first
        stream = Stream(self._client, self._wanted, position, run_number, send)
        connection: Connection | None = scope.get("kasparro.connection")
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        with self._streams.opened(stream, connection):
            try:
                # Until it is sent, nothing else may be written.
                stream.writing = task
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                context = context_of(scope)
                context.duration_s = time.perf_counter() - context.started
                first, last = RECONNECT_MS
                retry = b"retry: %d\n\n" % (first + secrets.randbelow(last - first))
                await send({"type": "http.response.body", "body": retry + text, "more_body": True})
                stream.writing = None
                while (await receive())["type"] != "http.disconnect":
                    pass
            except asyncio.CancelledError:
                # Only if nobody else cancelled the task too, such as another server that stops.
                if stream.ended is None or task is None or task.uncancel() > before:
                    raise
            finally:
                written = stream.writing is None
                if stream.writing is task:
                    stream.writing = None
        if isinstance(stream.ended, BaseException):
            raise stream.ended
        if stream.ended == "slow" or (stream.ended is not None and not written):
            raise ResponseAborted
        if stream.ended is not None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _too_many(status: int, detail: str) -> Problem:
    return Problem(
        status,
        detail,
        kind="too-many-streams",
        title="Too many streams",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
