"""Batches: a limited number of records and rejects of one source, ready for COPY."""

from collections.abc import Sequence
from datetime import datetime
from typing import cast

import msgspec

from kasparro.model.profile import Profile, Profiler
from kasparro.model.record import CopyLines, InvalidValue, Record, Reject, copy_lines, copy_record

# Large enough that the fixed cost of a transaction is small; small enough for memory and for a quick stop.
BATCH_ROWS = 20_000
# Limits of merged batches. Each commit of an archive writes the newest record of every coin in it, and the
# consensus of the coin's asset, so fewer commits are less work.
MERGED_ROWS = 60_000
MERGED_BYTES = 16 * 1024 * 1024


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far a source has come; committed together with the batch that carries it.

    `key` identifies what is loaded (an archive by the digest of its content and by how it is read), `name` is
    for people, `position` counts what is done, and `complete` says that nothing is left. If a file may grow,
    `bytes` is its size and `interpretation` says how it was understood: only the new part must be loaded.

    `content` is the digest of the content alone, and `coin` the one coin of all rows, if there is only one.
    `quoted_in` are the currencies of the prices up to the position: USD, or coins that count as US dollars.
    `continues` is the id of the file whose content has changed to this one and whose records stay; `grown`
    says that rows were only appended. `replaces` are the ids of files whose records this file takes the place
    of: they are taken back when it is complete.
    """

    key: str
    name: str
    position: int
    complete: bool
    bytes: int | None = None
    interpretation: str | None = None
    content: str = ""
    coin: str | None = None
    quoted_in: tuple[str, ...] = ()
    continues: int | None = None
    grown: bool = False
    replaces: tuple[int, ...] = ()


class KnownFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that an earlier run read, with the fields of its last checkpoint.

    `problem` says why it was rejected after its first batch. A `forgotten` file is not loaded again
    until its name, its content or its overrides change.
    """

    id: int
    key: str
    name: str
    position: int
    complete: bool
    bytes: int | None
    interpretation: str | None
    content: str
    coin: str | None
    problem: str | None = None
    forgotten: bool = False


class CrawledPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page of an upstream's list, and how far its crawl had come; committed with the page's batch.

    `crawl_started_at` is when the crawl started. `remaining_pages` are the pages that the crawl still had to
    fetch; none at its end. `records` is the number of records on the page. `is_last` says that the list ends
    with it. `read_at` is when the upstream last sent the page in full; if `fetched_at` is later, the upstream
    reported then that the page had not changed. `etag` and `last_modified` are valid only for requests with
    the same `request_fingerprint`.
    """

    number: int
    crawl_started_at: datetime
    remaining_pages: tuple[int, ...]
    fetched_at: datetime
    read_at: datetime
    records: int
    is_last: bool
    request_fingerprint: str
    etag: str | None = None
    last_modified: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Records of a source as COPY text, and the rejects among them.

    `fetched` counts all records, `valid` the accepted ones and `rows` those in `lines`. The other valid
    records are repeats: an earlier page of the crawl had them, or their page has not changed. `profile` is
    the profile of an API's records, including rejects; archives have none. `lacks` are the fields of `LABELS`
    that the records do not have because their layout has no column for them: unknown, which differs from
    null. `invalid` are values of the accepted records that became null. `listed` are the ids of the coins
    that an API lists in this batch, rejected ones with the reason; archives list no coins. `forgets` is the
    name of a file whose records are to be taken back. `rejects_file` is the reason for which the file of the
    checkpoint is rejected, so that its earlier batches are taken back.
    """

    lines: CopyLines
    rows: int
    fetched: int
    valid: int
    rejects: tuple[Reject, ...] = ()
    checkpoint: Checkpoint | None = None
    page: CrawledPage | None = None
    profile: Profile | None = None
    lacks: tuple[str, ...] = ()
    invalid: tuple[InvalidValue, ...] = ()
    listed: dict[str, str | None] = {}
    forgets: str | None = None
    rejects_file: str | None = None


class BatchBuilder:
    """Collects records and rejects for batches; `lacks` as in `Batch`, for all records."""

    def __init__(self, lacks: tuple[str, ...] = ()) -> None:
        self._lacks = lacks
        self._profiler = Profiler()
        self._position = 0
        self._start_over()

    def _start_over(self) -> None:
        self._lines: list[CopyLines] = []
        self._rows = 0
        self._rejects: list[Reject] = []
        self._invalid: list[InvalidValue] = []
        self._listed: dict[str, str | None] = {}
        self._repeated = 0

    def add(self, record: Record) -> None:
        """Add an accepted record."""
        self._append(copy_record(record, self._position, self._lacks), 1)
        self._invalid += record.invalid

    def add_lines(self, keys: Sequence[str], contents: Sequence[str]) -> None:
        """Add accepted records as COPY text; `keys` and `contents` as for `copy_lines`."""
        self._append(copy_lines(self._position, keys, contents, self._lacks), len(keys))

    def _append(self, lines: CopyLines, rows: int) -> None:
        # Positions go on from batch to batch, because several may be merged.
        self._lines.append(lines)
        self._position += rows
        self._rows += rows

    def note(self, item: msgspec.Raw) -> None:
        """Add a record, accepted or rejected, to the profile of the batch."""
        self._profiler.add(item)

    def reject(self, reject: Reject) -> None:
        """Add a reject."""
        self._rejects.append(reject)

    def add_invalid(self, values: Sequence[InvalidValue]) -> None:
        """Add invalid values of records that `add_lines` has added."""
        self._invalid += values

    def list_coin(self, source_id: str, reject: str | None = None) -> None:
        """Note that the source lists this coin; `reject` is the reason if its record was rejected."""
        self._listed[source_id] = reject

    def repeat(self, records: int = 1) -> None:
        """Count valid records that need no load: repeats in a crawl, or records of an unchanged page."""
        self._repeated += records

    @property
    def full(self) -> bool:
        """Whether the batch has reached its limit."""
        return self._rows + len(self._rejects) >= BATCH_ROWS

    @property
    def has_rejects(self) -> bool:
        """Whether there is a reject since the last batch."""
        return bool(self._rejects)

    @property
    def has_repeats(self) -> bool:
        """Whether there is a repeat since the last batch."""
        return bool(self._repeated)

    def take(self, checkpoint: Checkpoint | None = None, page: CrawledPage | None = None) -> Batch:
        """Return a batch of everything since the last call."""
        valid = self._rows + self._repeated
        batch = Batch(
            lines=CopyLines(
                b"".join([lines.keys for lines in self._lines]),
                b"".join([lines.contents for lines in self._lines]),
            ),
            rows=self._rows,
            fetched=valid + len(self._rejects),
            valid=valid,
            rejects=tuple(self._rejects),
            checkpoint=checkpoint,
            page=page,
            profile=self._profiler.take(),
            lacks=self._lacks,
            invalid=tuple(self._invalid),
            listed=self._listed,
        )
        self._start_over()
        return batch


class BatchMerger:
    """Merges batches that follow each other in one file, so that they are committed together."""

    def __init__(self) -> None:
        self._start_over()

    def _start_over(self) -> None:
        self._keys, self._contents = bytearray(), bytearray()
        self._batches: list[Batch] = []
        self._fetched = self._bytes = 0

    def add(self, batch: Batch) -> None:
        """Add the next batch of the file."""
        self._keys += batch.lines.keys
        self._contents += batch.lines.contents
        self._fetched += batch.fetched
        self._bytes += len(batch.lines.keys) + len(batch.lines.contents)
        self._bytes += sum(len(reject.raw) for reject in batch.rejects)
        # The lines are most of a batch, so they are held only once.
        self._batches.append(msgspec.structs.replace(batch, lines=CopyLines(b"", b"")))

    @property
    def full(self) -> bool:
        """Whether the merged batch has reached its limit."""
        return self._fetched >= MERGED_ROWS or self._bytes >= MERGED_BYTES

    def take(self) -> Batch | None:
        """Return everything since the last call, with the last checkpoint; None if there is nothing."""
        if not self._batches:
            return None
        batches = self._batches
        merged = msgspec.structs.replace(
            batches[-1],
            # Not copied: COPY takes any buffer, and nobody writes to these any more.
            lines=CopyLines(cast("bytes", self._keys), cast("bytes", self._contents)),
            rows=sum(batch.rows for batch in batches),
            fetched=self._fetched,
            valid=sum(batch.valid for batch in batches),
            rejects=tuple(reject for batch in batches for reject in batch.rejects),
            invalid=tuple(value for batch in batches for value in batch.invalid),
        )
        self._start_over()
        return merged
