"""Stores which rows are the same coin: reads what the resolver needs, and writes what it decides."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import asyncpg
import msgspec

from kasparro.errors import LeaseLost
from kasparro.model.asset import ALWAYS, FOREVER, Asset, Candidate, Coin, Contract, Key, Link, Resolution
from kasparro.model.consensus import ConsensusLimits
from kasparro.store import asset_history, consensus, contracts
from kasparro.store.pool import Connection
from kasparro.store.sql import statements
from kasparro.store.text import sanitize

_SQL = statements("assets/links.sql")
_VERSION = statements("load/progress.sql") | statements("load/batch.sql")

# Rows of one statement. asyncpg encodes its arguments at once, and requests wait meanwhile.
ROWS_AT_ONCE = 250

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """All rows, contracts, links, assets and candidates, read in one snapshot.

    `relabelled` has, for each linked row with another symbol or name than its link, its last record with
    these and the time of the first record with others.
    """

    coins: list[Coin]
    contracts: list[Contract]
    links: list[Link]
    assets: dict[str, Asset]
    candidates: list[Candidate]
    relabelled: dict[Key, tuple[Coin, datetime]]


class Resolved(msgspec.Struct, frozen=True):
    """What a resolution changed: rows that have another asset, and assets that have another consensus."""

    rows: int
    assets: int


async def is_pending(connection: Connection, depends_on: str) -> bool:
    """Whether the resolver has something to decide. `depends_on` is a digest of what its decisions depend on
    besides the rows."""
    pending: bool = await connection.fetchval(_SQL["pending"], depends_on)
    return pending


async def known(connection: Connection) -> Known:
    """What the resolver starts from."""
    async with asset_history.snapshot(connection):
        coins = await _read(connection, "coins", lambda row: Coin(**row))
        found = await contracts.contracts(connection)
        links = await _read(connection, "links", _link)
        assets = await _read(connection, "assets", lambda row: Asset(**row))
        candidates = await _read(connection, "candidates", lambda row: _with_evidence(Candidate, row))
        relabelled = {}
        for row in await connection.fetch(_SQL["relabelled"]):
            fields = dict(row)
            since = fields.pop("since")
            before = Coin(**fields)
            relabelled[before.key] = before, since
    return Known(
        coins=coins,
        contracts=found,
        links=links,
        assets={asset.asset: asset for asset in assets},
        candidates=candidates,
        relabelled=relabelled,
    )


async def _read(connection: Connection, name: str, build: Callable[[asyncpg.Record], T]) -> list[T]:
    # In a thread: with 20,000 rows this takes a fifth of a second, and requests would wait meanwhile.
    rows = await connection.fetch(_SQL[name])
    return await asyncio.to_thread(lambda: [build(row) for row in rows])


async def prices(
    connection: Connection, pairs: Sequence[tuple[Key, Key]]
) -> dict[tuple[Key, Key], list[tuple[Decimal, Decimal]]]:
    """The prices of each two rows at about the same moments, newest first; without those that have none."""
    found: dict[tuple[Key, Key], list[tuple[Decimal, Decimal]]] = {}
    columns = zip(*((*one, *other) for one, other in pairs), strict=True)
    for position, price, other_price in await connection.fetch(_SQL["prices"], *columns):
        found.setdefault(pairs[position - 1], []).append((price, other_price))
    return found


async def apply(
    connection: Connection,
    resolution: Resolution,
    limits: ConsensusLimits,
    now: datetime,
    *,
    run_id: int,
    depends_on: str,
) -> Resolved:
    """Write a resolution and the consensus that follows from it, in one transaction.

    The limits are part of what `depends_on` is a digest of: with another digest, the consensus of every asset
    is judged again. Raises LeaseLost if the run may not write any more.
    """
    async with connection.transaction():
        if not await connection.fetchval(_SQL["fence"], run_id):
            raise LeaseLost(f"run {run_id} was ended by another process")
        version = await connection.fetchval(_VERSION["next_version"])
        await _save(connection, resolution, now)
        await connection.execute(_SQL["staging"])
        relinked = await connection.fetchval(_SQL["stage_relinked"]) or []
        rows = 0
        if relinked:
            await connection.execute(_SQL["save_relinked_versions"], now, version)
            tag = await connection.execute(_SQL["update_relinked"], now, version)
            rows = int(tag.rpartition(" ")[2])
        judged = {*relinked, *(asset.asset for asset in resolution.assets)}
        judged.update(link.asset for link in resolution.links)
        touched = await consensus.touch_assets(connection, sorted(judged))
        if await connection.fetchval(_SQL["note_resolved"], depends_on):
            touched += await consensus.touch_all(connection)
        await note_problem(connection, None)
        changed = await consensus.settle(connection, limits, now, version) if touched else 0
        # The history of an asset follows from its links, also where its consensus stays as it is.
        new_version = bool(rows or changed or resolution.links or resolution.ended)
        if new_version:
            await connection.execute(_VERSION["increment_version"])
    if new_version:
        await connection.execute(_VERSION["confirm_version"])
    return Resolved(rows, changed)


async def _save(connection: Connection, resolution: Resolution, now: datetime) -> None:
    for assets in _parts(resolution.assets):
        columns = zip(*((asset.asset, asset.symbol, asset.name) for asset in assets), strict=True)
        await connection.execute(_SQL["save_assets"], *columns, now)
    if resolution.ended:
        ends = list(
            zip(*((*key, moment) for key, moment in resolution.ended.items()), strict=True),
        )
        await connection.execute(_SQL["delete_links"], *ends)
        await connection.execute(_SQL["end_links"], *ends)
    for links in _parts(resolution.links):
        rows = [
            (
                *(link.source, link.source_id, link.asset, link.method, link.score),
                *(_json(link.evidence), link.symbol, link.name, link.valid_from, link.valid_until),
            )
            for link in links
        ]
        await connection.execute(_SQL["save_links"], *zip(*rows, strict=True), now)
    candidates = [
        (
            *(each.source, each.source_id, each.kind, each.asset, each.score),
            *(each.reason, _json(each.evidence), each.symbol, each.name),
        )
        for each in resolution.candidates
    ]
    given: list[Any] = list(zip(*candidates, strict=True)) if candidates else [[]] * 9
    await connection.execute(_SQL["delete_candidates"], *given)
    await connection.execute(_SQL["add_candidates"], *given, now)


def _parts(items: list[T]) -> Iterator[list[T]]:
    return (items[first : first + ROWS_AT_ONCE] for first in range(0, len(items), ROWS_AT_ONCE))


async def note_problem(connection: Connection, reason: str | None) -> None:
    """Note why the resolver failed; None if it did not."""
    await connection.execute(_SQL["note_problem"], None if reason is None else sanitize(reason))


async def rows_meant(connection: Connection, text: str) -> list[tuple[str, str]]:
    """The rows that a person may mean by an asset, a source_id, or SOURCE/SOURCE_ID."""
    return [tuple(row) for row in await connection.fetch(_SQL["explained_rows"], text)]


def _json(evidence: list[dict[str, Any]]) -> str:
    return sanitize(_encode(evidence).decode())


def _with_evidence(kind: type[Any], row: Any) -> Any:
    return kind(**{**row, "evidence": _decode(row["evidence"])})


def _link(row: Any) -> Link:
    # asyncpg gives infinite times without a time zone.
    link: Link = _with_evidence(Link, row)
    return msgspec.structs.replace(
        link,
        valid_from=ALWAYS if link.valid_from.tzinfo is None else link.valid_from,
        valid_until=FOREVER if link.valid_until.tzinfo is None else link.valid_until,
    )
