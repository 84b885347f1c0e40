"""Prints the state of the database for people, within 80 columns: prices, sources, runs."""

from datetime import UTC, datetime
from decimal import Decimal

import msgspec
from rich.table import Table

from kasparro.cli.report_output import counted, drift_line, print_run
from kasparro.cli.terminal import out
from kasparro.pipeline.quality.freshness import format_duration
from kasparro.store import queries
from kasparro.store.pool import Connection
from kasparro.store.row_counts import Totals
from kasparro.store.selection import ASSETS, Selection
from kasparro.web import schemas

LEADING = 5
# Below this price, significant digits are shown in place of cents.
CENTS_FROM = 1
SIGNIFICANT = 4
_UNITS = ((Decimal(10) ** 12, "T"), (Decimal(10) ** 9, "B"), (Decimal(10) ** 6, "M"))


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of an asset."""

    asset: str
    name: str | None
    rank: int | None
    price_usd: Decimal | None
    percent_change_24h: Decimal | None
    market_cap_usd: Decimal | None
    source_count: int
    diverging: bool


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the database. `led` says whether a process starts the runs."""

    stats: schemas.Stats
    health: dict[str, schemas.SourceHealth]
    leading: list[Coin]
    led: bool


_COINS = msgspec.json.Decoder(list[Coin])


async def leading_coins(connection: Connection) -> list[Coin]:
    """The leading assets."""
    selection = Selection(rows=ASSETS, fields=Coin.__struct_fields__)
    found = await queries.page(connection, Totals(ASSETS), selection, limit=LEADING)
    return _COINS.decode(f"[{found.json}]")


def print_status(found: Status) -> None:
    """Print what the leading coins cost, how fresh each source is, the last run, and the next."""
    now = datetime.now(UTC)
    stats = found.stats
    records, runs = counted(stats.totals.records, "record"), counted(stats.totals.runs, "run")
    out.print(f"{stats.status}; {records} after {runs}")
    for line in (*_last_run(stats.last_run, now), _next_run(stats.schedule, now, led=found.led)):
        out.print(line)
    if found.leading:
        _print_coins(found.leading)
    _print_sources(found)
    with_drift: set[str] = set()
    if stats.last_run is not None:
        print_run(stats.last_run, wrapped=True)
        with_drift = {source.source for source in stats.last_run.sources if source.drift}
    for name, changes in stats.drift.items():
        if changes and name not in with_drift:
            out.print(f"{name}: {drift_line(changes)}")


def price(value: Decimal | None) -> str:
    """A price with two decimals, or with its significant digits if it is below one dollar."""
    if value is None:
        return "-"
    if value >= CENTS_FROM:
        return f"{value:,.2f}"
    if not value:
        return "0"
    return f"{value:.{SIGNIFICANT - 1 - value.adjusted()}f}"


def _print_coins(coins: list[Coin]) -> None:
    table = _table("rank", "coin", "price in USD", "24 h", "market cap", "sources")
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for coin in coins:
        change = coin.percent_change_24h
        table.add_row(
            "-" if coin.rank is None else str(coin.rank),
            coin.name or coin.asset,
            price(coin.price_usd),
            "-" if change is None else f"{change:+.2f}%",
            _amount(coin.market_cap_usd),
            f"{coin.source_count}{', diverging' if coin.diverging else ''}",
        )
    out.print(table)


def _print_sources(found: Status) -> None:
    table = _table("source", "records", "last success", "late after", "state")
    table.columns[1].justify = "right"
    for source, count in found.stats.totals.by_source.items():
        health = found.health.get(source)
        if health is None:
            # KASPARRO_SOURCES leaves it out.
            table.add_row(source, f"{count:,}", "-", "-", "off")
            continue
        age = "never" if health.age_s is None else f"{format_duration(health.age_s)} ago"
        limit = "-" if health.expected_age_s is None else format_duration(health.expected_age_s)
        table.add_row(source, f"{count:,}", age, limit, _state(health))
    out.print(table)


def _state(health: schemas.SourceHealth) -> str:
    if health.stale:
        return "late"
    if health.status not in {None, "succeeded", "skipped"}:
        return str(health.status)
    return "ok" if health.last_success_at is not None else "no run yet"


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _amount(value: Decimal | None) -> str:
    if value is None:
        return "-"
    for unit, name in _UNITS:
        if value >= unit:
            return f"{value / unit:.2f} {name}"
    return f"{value:,.0f}"


def _last_run(run: schemas.RunReport | None, now: datetime) -> list[str]:
    if run is None:
        return ["last run: none so far"]
    age = format_duration((now - run.started_at).total_seconds())
    return [
        f"last run: {run.id} by {run.trigger}, {run.status}",
        f"          started {_time(run.started_at)}, {age} ago",
    ]


def _next_run(schedule: schemas.Schedule, now: datetime, *, led: bool) -> str:
    if schedule.interval_s is None:
        return "next run: none, because KASPARRO_INTERVAL is off"
    if not led:
        return "next run: when kasparro serve starts"
    due = schedule.next_run_at
    if due is None:
        return "next run: at once"
    left = (due - now).total_seconds()
    distance = f"in {format_duration(left)}" if left > 0 else f"{format_duration(-left)} ago"
    return f"next run: due {_time(due)}, {distance}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
