"""Commits batches: COPY into staging tables, then the statements of `sql/load/`, in one transaction."""

from array import array
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from kasparro.errors import LeaseLost
from kasparro.model.batch import Batch, CrawledPage, KnownFile
from kasparro.model.consensus import ConsensusLimits
from kasparro.model.contract_list import ContractList
from kasparro.model.record import CONTENT_COLUMNS, KEY_COLUMNS, InvalidValue, Reject
from kasparro.store import archive_files, consensus, contracts, listings
from kasparro.store.archive_files import OpenFile, Settled
from kasparro.store.contracts import Replaced
from kasparro.store.listings import LISTED, NO_LIST, ListReport
from kasparro.store.pool import Connection, Database
from kasparro.store.sql import statements
from kasparro.store.text import sanitize
from kasparro.tracing import traced

_SQL = statements("load/batch.sql") | statements("load/compare.sql") | statements("load/progress.sql")
# How many rejects of one file's rows, of an API's source run, or of whole files are stored with their raw
# text. All are counted.
REJECTS_LIMIT = 1_000
# How much one COPY command sends.
COPY_BYTES = 512 * 1024
# From this version on, PostgreSQL looks up a list of moments in one descent of the index. Earlier ones read
# all records between the first and the last, and search the list for each. Where another file gives many more
# moments, this may take minutes.
LOOKS_UP_LISTS = 17
# How many invalid values of one kind are stored with their text. All are counted.
INVALID_SAMPLES = 5


class Written(msgspec.Struct, frozen=True):
    """What a batch wrote: new rows of `unified_data`; new records of coins that were there; of these, how
    many replaced a record of the same moment; records of moments that another file gives as well; and written
    rows of `unified_data`."""

    inserted: int
    updated: int
    corrected: int
    shared: int
    latest: int


class PriceMoves:
    """A source run's records compared with those before: `ages` in seconds of the records with a source time;
    for each new price, ln(new / old) in `moves` and the seconds between the two in `gaps`."""

    def __init__(self) -> None:
        self.ages, self.moves, self.gaps = array("d"), array("d"), array("d")

    def add(self, ages: Sequence[float], moves: Sequence[float], gaps: Sequence[float]) -> None:
        """Add the figures of a batch."""
        self.ages.extend(ages)
        self.moves.extend(moves)
        self.gaps.extend(gaps)


class Loader:
    """Commits the batches of one source in one run, each exactly once.

    `fetched_at` is given in a replay: when the replayed run ended. Records that were fetched after it stay.
    """

    def __init__(
        self,
        database: Database,
        run_id: int,
        source: str,
        fetched_at: datetime | None = None,
        limits: ConsensusLimits | None = None,
    ) -> None:
        self._database = database
        self._limits = limits or ConsensusLimits()
        self._run_id = run_id
        self._source = source
        self._fetched_at = fetched_at
        self._committed = 0
        # Only of API batches, which have a profile; archives do not pay for it.
        self.price_moves = PriceMoves()
        self._rejects: Counter[str | None] = Counter()

    @traced("batch", lambda self, batch, now: {"kasparro.records": batch.fetched})
    async def load(self, batch: Batch, now: datetime) -> Settled:
        """Commit one batch. Returns what it took back or settled.

        After DatabaseUnavailable, call it again with the same batch: if the connection was lost after the
        commit, nothing is written twice. Raises LeaseLost if the run may not write any more, and FileConflict
        if the file of the batch must be rejected; then nothing is written.
        """
        rejects = self._within_limit(batch.rejects)
        moves: asyncpg.Record | None = None
        settled = Settled()
        async with self._database.writing() as connection:
            async with connection.transaction():
                committed = await connection.fetchval(_SQL["fence"], self._run_id, self._source)
                if committed is None:
                    raise LeaseLost(f"run {self._run_id} was ended by another process")
                changed = committed != self._committed
                if not changed:
                    moves, settled, changed = await self._write(connection, batch, rejects, now)
            if changed:
                await connection.execute(_SQL["confirm_version"])
        self._committed += 1
        if moves is not None:
            self.price_moves.add(*(values or () for values in moves))
        self._rejects.update(map(_limited_with, rejects))
        return settled

    async def settle_listings(
        self, list_began_at: datetime | None, now: datetime, limit: int | None
    ) -> ListReport | None:
        """After the last batch, settle which rows are delisted, and report what the whole list lacks.

        Without a whole list (`list_began_at` None) coins can only return. Raises LeaseLost if the run may not
        write any more, and DatabaseUnavailable.
        """
        async with self._database.writing() as connection:
            async with connection.transaction():
                if await connection.fetchval(_SQL["fence"], self._run_id, self._source) is None:
                    raise LeaseLost(f"run {self._run_id} was ended by another process")
                report = None
                if list_began_at is not None:
                    report = await listings.judge(connection, self._source, list_began_at, now, limit)
                await connection.execute(_SQL["staging"])
                changed = await listings.stage_states(connection, self._source)
                if changed:
                    version = await connection.fetchval(_SQL["next_version"])
                    await connection.execute(_SQL["save_row_versions"], self._source, now, version)
                    await listings.settle_states(connection, self._source, version)
                    if await consensus.touch_batch(connection, self._source):
                        await consensus.settle(connection, self._limits, now, version)
                    await connection.execute(_SQL["increment_version"])
            if changed:
                await connection.execute(_SQL["confirm_version"])
        return report

    async def file_named(self, name: str) -> KnownFile | None:
        """The newest file with this name that was not forgotten. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            return await archive_files.named_file(connection, self._source, sanitize(name))

    async def known_files(self, name: str, content: str) -> list[KnownFile]:
        """The files with this name or content. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            return await archive_files.known_files(connection, self._source, sanitize(name), content)

    async def disagreements(self) -> list[str]:
        """One line for each two files that give different prices. Raises DatabaseUnavailable."""
        return await archive_files.disagreements(self._database, self._source)

    async def known_coins(self) -> list[tuple[str, str, str]]:
        """Symbol, name and id of the leading coins of other sources. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            return [tuple(row) for row in await connection.fetch(_SQL["known_coins"], self._source)]

    async def pages(self) -> list[CrawledPage]:
        """The pages of the source's list that earlier batches committed. Raises DatabaseUnavailable."""
        async with self._database.writing() as connection:
            return await known_pages(connection, self._source)

    async def next_contract_list(self, root: str, now: datetime, limit: int | None) -> str | None:
        """The contract list that is due, noted as requested. Raises DatabaseUnavailable."""
        return await contracts.next_list(self._database, self._source, root, now, limit=limit)

    async def load_contracts(self, found: ContractList, now: datetime) -> Replaced:
        """Load a contract list, unless a newer one is loaded. Raises DatabaseUnavailable."""
        return await contracts.replace(self._database, self._source, found, now)

    async def _write(
        self, connection: Connection, batch: Batch, rejects: Sequence[Reject], now: datetime
    ) -> tuple[asyncpg.Record | None, Settled, bool]:
        # The last value is whether the batch makes a new data version.
        written, moves, file = Written(0, 0, 0, 0, 0), None, None
        if batch.checkpoint is not None:
            checkpoint = msgspec.structs.replace(batch.checkpoint, name=sanitize(batch.checkpoint.name))
            file = await archive_files.save_progress(connection, self._source, checkpoint, now)
        if batch.rows:
            written, moves = await self._merge(connection, batch, file, now)
        settled = await self._settle(connection, batch, file, now, shares=written.shared > 0)
        await self._settle_assets(connection, settled, now, merged=written.latest > 0)
        if rejects:
            await connection.execute(
                _SQL["save_rejects"],
                self._run_id,
                self._source,
                [sanitize(reject.reason) for reject in rejects],
                [reject.field for reject in rejects],
                [None if reject.location is None else sanitize(reject.location) for reject in rejects],
                [reject.line for reject in rejects],
                [sanitize(reject.raw) for reject in rejects],
                [None if reject.setting is None else sanitize(reject.setting) for reject in rejects],
            )
        if batch.rejects:
            kinds = Counter(
                (
                    # Names of rejected files differ in every run, so only the rejects themselves have them.
                    "" if reject.is_file else sanitize(reject.location or ""),
                    sanitize(reject.field or ""),
                    sanitize(reject.kind),
                )
                for reject in batch.rejects
            )
            locations, fields, reasons = zip(*kinds, strict=True)
            await connection.execute(
                _SQL["count_rejects"],
                self._run_id,
                self._source,
                locations,
                fields,
                reasons,
                [*kinds.values()],
            )
        if batch.invalid:
            await connection.execute(
                _SQL["count_invalid_values"], self._run_id, self._source, *_counted(batch.invalid)
            )
        page = batch.page
        if self._fetched_at is None:
            # A replay reads an old list.
            page = await listings.note_listed(connection, self._source, batch, now)
        if page is not None:
            await connection.execute(
                _SQL["save_page"],
                self._source,
                page.number,
                page.crawl_started_at,
                page.remaining_pages,
                page.fetched_at,
                page.read_at,
                page.records,
                page.is_last,
                page.request_fingerprint,
                page.etag,
                page.last_modified,
            )
        await connection.execute(
            _SQL["count_batch"],
            self._run_id,
            self._source,
            batch.fetched,
            batch.valid,
            len(batch.rejects),
            written.inserted,
            written.updated,
            batch.valid - written.inserted - written.updated,
            written.corrected,
        )
        if written.inserted:
            await connection.execute(_SQL["count_inserts"], self._source, written.inserted)
        if batch.forgets is not None:
            await connection.execute(
                _SQL["count_forgotten"],
                *(self._run_id, self._source, settled.removed + settled.changed, settled.kept),
            )
        elif settled.changed:
            await connection.execute(_SQL["count_settled"], self._run_id, self._source, settled.changed)
        if settled.coins_removed:
            await connection.execute(_SQL["count_inserts"], self._source, -settled.coins_removed)
        changed = bool(written.inserted or written.updated) or settled != Settled(kept=settled.kept)
        if changed:
            await connection.execute(_SQL["increment_version"])
        return moves, settled, changed

    async def _settle(
        self, connection: Connection, batch: Batch, file: OpenFile | None, now: datetime, *, shares: bool
    ) -> Settled:
        if batch.forgets is not None:
            settled = await archive_files.forget(connection, self._source, batch.forgets, now)
        elif file is not None and batch.rejects_file is not None:
            settled = await archive_files.reject(connection, self._source, file, batch.rejects_file)
        elif file is not None and batch.checkpoint is not None and batch.checkpoint.complete:
            name = sanitize(batch.checkpoint.name)
            settled = await archive_files.finish(connection, self._source, name, file, shares=shares)
        else:
            return Settled()
        if settled.coins_updated or settled.coins_removed:
            version = await connection.fetchval(_SQL["next_version"])
            await archive_files.write_coins(connection, self._source, settled, now, version)
        return settled

    async def _settle_assets(
        self, connection: Connection, settled: Settled, now: datetime, *, merged: bool
    ) -> None:
        touched = 0
        if merged:
            touched += await consensus.touch_batch(connection, self._source)
        if settled.coins_updated or settled.coins_removed:
            touched += await consensus.touch_settled(connection, self._source)
        if touched:
            version = await connection.fetchval(_SQL["next_version"])
            await consensus.settle(connection, self._limits, now, version)

    async def _merge(
        self, connection: Connection, batch: Batch, file: OpenFile | None, now: datetime
    ) -> tuple[Written, asyncpg.Record | None]:
        # The keys are enough to find what is new. If an archive has nothing new, no values are sent.
        await connection.execute(_SQL["staging"])
        await _copy(connection, "staged_keys", KEY_COLUMNS, batch.lines.keys)
        moves = None
        if batch.profile is not None:
            await _copy(connection, "staged_contents", CONTENT_COLUMNS, batch.lines.contents)
            (moves,) = await connection.fetch(_SQL["price_moves"], self._source, now)
        if self._fetched_at is not None:
            await connection.execute(_SQL["skip_superseded"], self._source, self._fetched_at)
        lacks = batch.lacks
        file_id = None if file is None else file.id
        if await connection.fetchval(_SQL["is_thinned"], self._source):
            await connection.execute(_SQL["skip_thinned"], self._source, file_id)
        if file is not None and await self._is_known(connection, file, lacks):
            return Written(0, 0, 0, 0, 0), moves
        fetched_at, staged, appended = self._fetched_at or now, batch.profile is not None, None
        if file is not None and await connection.fetchval(_SQL["is_new"], self._source):
            await _copy(connection, "staged_contents", CONTENT_COLUMNS, batch.lines.contents)
            staged, appended = True, await self._append_new(connection, batch, file, fetched_at)
        (changes,) = await connection.fetch(
            _SQL["compare" if appended is None else "compare_newest"],
            *(self._source, self._fetched_at, lacks, file_id, () if file is None else file.replaces),
        )
        if appended is not None:
            history_rows = appended
        else:
            repeats = file is not None and changes["moments"] < batch.rows
            if (changes["records"] or repeats) and not staged:
                await _copy(connection, "staged_contents", CONTENT_COLUMNS, batch.lines.contents)
            history_rows = await self._merge_history(connection, batch, file, changes, fetched_at)
        inserted = latest_rows = 0
        if changes["updating_latest"] or changes["updating_labels"]:
            version = await connection.fetchval(_SQL["next_version"])
            await connection.execute(_SQL["save_row_versions"], self._source, now, version)
        if changes["updating_latest"]:
            (newest,) = await connection.fetch(
                _SQL["upsert_latest"],
                self._source,
                now,
                self._fetched_at,
                version,
                lacks,
                NO_LIST if batch.profile is None else LISTED,
            )
            inserted, latest_rows = newest["inserted"], newest["inserted"] + newest["updated"]
        if changes["updating_labels"]:
            latest_rows += await connection.fetchval(_SQL["update_labels"], self._source, now, version, lacks)
        # A coin's first record is `inserted`; every other that was written, to either table, is `updated`.
        # All of them are in the history, unless only unified_data was emptied manually.
        updated = max(history_rows, latest_rows) - inserted
        return Written(inserted, updated, changes["correcting"], changes["sharing"], latest_rows), moves

    async def _is_known(self, connection: Connection, file: OpenFile, lacks: tuple[str, ...]) -> bool:
        # Whether a batch has nothing that the tables do not have yet. If False, it may still have nothing.
        if connection.get_server_version().major < LOOKS_UP_LISTS:
            return False
        # A statement of its own: Citus does all the work of the next one in any case.
        known: bool = await connection.fetchval(_SQL["first_is_known"], self._source, file.id)
        return known and await connection.fetchval(_SQL["is_known"], self._source, file.id, lacks)

    async def _append_new(
        self, connection: Connection, batch: Batch, file: OpenFile, fetched_at: datetime
    ) -> int | None:
        # Adds a batch to the history that lacks all its moments; how many records these are. None if two of
        # them are of one moment, so that nothing was added.
        months = await connection.fetch(_SQL["new_months"])
        moments = [month["first_observed_at"] for month in months]
        try:
            async with connection.transaction():
                await connection.execute(_SQL["note_new"], self._source, moments)
                await connection.execute(_SQL["new_partitions"], moments)
                added: int = await connection.fetchval(
                    _SQL["append_new"], self._source, fetched_at, batch.lacks, file.id
                )
        except asyncpg.UniqueViolationError:
            return None
        last = max(month["last_observed_at"] for month in months)
        await archive_files.save_bounds(connection, file, min(moments), last)
        return added

    async def _merge_history(
        self,
        connection: Connection,
        batch: Batch,
        file: OpenFile | None,
        changes: asyncpg.Record,
        fetched_at: datetime,
    ) -> int:
        # Writes to the history what `compare` has staged; how many records have other contents now.
        lacks, file_id = batch.lacks, None if file is None else file.id
        repeats = file is not None and changes["moments"] < batch.rows
        if file is not None:
            if repeats or changes["correcting"] or changes["sharing"]:
                await archive_files.require_one_price(connection, self._source, file)
            first, last = changes["first_observed_at"], changes["last_observed_at"]
            await archive_files.save_bounds(connection, file, first, last)
            if changes["sharing"]:
                await archive_files.share(connection, self._source, file, lacks, fetched_at)
        rows = 0
        if any(changes[kind] for kind in ("appending", "correcting", "claiming", "sharing")):
            await connection.execute(_SQL["note_changes"], self._source)
        if changes["appending"]:
            await connection.execute(_SQL["partitions"])
            rows += await connection.fetchval(
                _SQL["append_history"], self._source, fetched_at, lacks, file_id
            )
        if changes["correcting"] or changes["claiming"]:
            rows -= changes["claiming"]
            rows += await connection.fetchval(
                _SQL["correct_history"], self._source, fetched_at, lacks, file_id
            )
        return rows

    def _within_limit(self, rejects: Sequence[Reject]) -> list[Reject]:
        counts = Counter(self._rejects)
        found = []
        for reject in rejects:
            if counts[_limited_with(reject)] < REJECTS_LIMIT:
                counts[_limited_with(reject)] += 1
                found.append(reject)
        return found


def _counted(invalid: Sequence[InvalidValue]) -> tuple[list[object], ...]:
    # The columns of count_invalid_values: the values by file, field and kind, each with the first of them.
    found: dict[tuple[str, str, str], list[InvalidValue]] = {}
    for value in invalid:
        key = sanitize(value.location or ""), value.field, sanitize(value.kind)
        found.setdefault(key, []).append(value)
    rows = [
        (
            *key,
            len(values),
            msgspec.json.encode(
                [sanitize(f"{value.place}: {value.reason}") for value in values[:INVALID_SAMPLES]]
            ).decode(),
        )
        for key, values in found.items()
    ]
    return tuple(map(list, zip(*rows, strict=True)))


def _limited_with(reject: Reject) -> str | None:
    # The rows of one file share a limit, so do the records of an API, and all rejected files.
    return None if reject.is_file else reject.location


async def known_pages(connection: Connection, source: str) -> list[CrawledPage]:
    """The stored pages of a source's list, by number."""
    rows = await connection.fetch(_SQL["known_pages"], source)
    return [CrawledPage(**{**row, "remaining_pages": tuple(row["remaining_pages"])}) for row in rows]


async def _copy(connection: Connection, table: str, columns: Sequence[str], lines: bytes) -> None:
    # Several commands, because asyncpg copies what a command sends, and requests wait meanwhile. Each sends
    # one piece: if the connection ends between two pieces, asyncpg 0.32 waits forever to write the next one,
    # or raises uvloop's RuntimeError and drops the future with the cause.
    start = 0
    while start < len(lines):
        end = lines.find(b"\n", start + COPY_BYTES) + 1 or len(lines)
        # asyncpg accepts any buffer; its stubs do not say so.
        source: Any = memoryview(lines)[start:end]
        await connection.copy_to_table(table, source=source, columns=columns, format="text")
        start = end
