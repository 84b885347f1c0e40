"""Finds anomalies: metrics of a source run that are far from the usual range of the source's earlier runs."""

import math
import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec

from kasparro.pipeline.quality.freshness import format_duration
from kasparro.store.listings import EXPECTED_FOR, ListReport
from kasparro.store.loader import PriceMoves

Kind = Literal["few-records", "missing-coins", "price-jump", "stuck"]

# How many earlier runs are compared at most, and how many it takes to know the usual range.
BASELINE_RUNS = 20
HISTORY = 5
# Record counts are compared only between runs that planned the same share of the list, within a tenth, with
# the same record limit.
SAME_SHARE = 0.1
# A metric is far off if it is more than FAR spreads from the median. A spread is 1.4826 times the median
# absolute deviation, which equals the standard deviation of a normal distribution.
FAR = 8.0
# The smallest differences that count as far off, so that an ordinary day after a calm history is no anomaly.
FEWER = 0.2
JUMP = math.log(1.05)
JUMP_TIMES = 4.0
LATE_S, LATE_TIMES = 3600.0, 2.0
SHORTEST_GAP_S = 60.0
# A median needs at least this many coins, and this share of the records.
COINS = 20
COINS_SHARE = 0.1
# If the spread of a jump is below this share of the jump, all prices changed by one factor. No market does
# that. Such a jump lasts until it is undone. After a day it counts as normal.
UNIFORM = 0.25
STANDS = timedelta(days=1)
# Another anomaly that has lasted for this long is what is usual now.
ACCEPTED_AFTER = EXPECTED_FOR
# A list lacks something if any of its first coins is missing, or this share of those that recent lists had.
# Of a limited list only the first half counts as its first coins: others may fall below the limit.
FIRST_COINS = 100
MISSING_SHARE = 0.01
# How many missing coins an anomaly names in its detail, and how many it lists.
NAMED, IDS_LISTED = 5, 100


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a source run is assessed by.

    A move is the natural logarithm of new over old price, of a coin with a new record and a known old price.
    """

    at: datetime
    fetched: int
    complete: bool = True
    """Whether the run fetched all that it planned: no page was lost."""
    planned: float = 1.0
    """The share of the source's list that the run planned to fetch."""
    bound: int | None = None
    """The largest number of records that the run requested of the upstream's list; None for all."""
    compared: int = 0
    """Number of moves."""
    move: float | None = None
    """Median size of the moves."""
    shift: float | None = None
    """Median of the moves."""
    spread: float | None = None
    """Median distance of the moves from `shift`."""
    gap_s: float | None = None
    """Median time between the two prices of a move."""
    age_s: float | None = None
    """Age of the freshest tenth of the records: nine in ten are older."""
    restarts: bool = False
    """Whether an anomaly was accepted with this run: runs before it say nothing about what is usual."""


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of a source run that is far from usual. The rows are written as the source sent them."""

    kind: Kind
    detail: Annotated[str, msgspec.Meta(description="What is unusual, in one line.")]
    value: Annotated[
        float,
        msgspec.Meta(
            description="few-records: records; missing-coins: missing coins; price-jump: new price divided "
            "by old price; stuck: seconds."
        ),
    ]
    usual: Annotated[
        float,
        msgspec.Meta(
            description="The usual value, in the same unit; missing-coins: coins that all recent lists had."
        ),
    ]
    lasting: Annotated[
        bool,
        msgspec.Meta(
            description="All prices changed by one factor. It lasts until that is undone, or for a day."
        ),
    ] = False
    since_run: Annotated[int, msgspec.Meta(description="The first run with this anomaly.")]
    since: Annotated[datetime, msgspec.Meta(description="The time of that run.")]
    coins: Annotated[
        list[str],
        msgspec.Meta(description="missing-coins: the first 100 source_ids that are missing, by rank."),
    ] = []


def run_metrics(
    fetched: int,
    moves: PriceMoves,
    newest: Sequence[RunMetrics],
    *,
    at: datetime,
    complete: bool,
    planned: float,
    bound: int | None = None,
) -> RunMetrics:
    """Compute the metrics of a source run from its price moves.

    If the upstream reported that nothing has changed, no ages are known. The age is then that of the `newest`
    earlier run plus the time since.
    """
    sorted_moves = sorted(moves.moves)
    shift = statistics.median(sorted_moves) if sorted_moves else None
    age_s = sorted(moves.ages)[len(moves.ages) // 10] if moves.ages else None
    if age_s is None and fetched and newest and newest[0].age_s is not None:
        age_s = newest[0].age_s + max((at - newest[0].at).total_seconds(), 0.0)
    return RunMetrics(
        at=at,
        fetched=fetched,
        complete=complete,
        planned=planned,
        bound=bound,
        compared=len(sorted_moves),
        move=statistics.median(map(abs, sorted_moves)) if sorted_moves else None,
        shift=shift,
        spread=statistics.median(abs(move - shift) for move in sorted_moves) if shift is not None else None,
        gap_s=statistics.median(moves.gaps) if sorted_moves else None,
        age_s=age_s,
    )


def find_anomalies(
    current: RunMetrics,
    usual: Sequence[RunMetrics],
    known: Sequence[Anomaly],
    run_id: int,
    listed: ListReport | None = None,
) -> tuple[RunMetrics, list[Anomaly]]:
    """Return the metrics of a run, as later runs compare them, and its anomalies.

    `usual` are the metrics of earlier runs without anomalies, newest first, and `known` the anomalies of the
    newest earlier run. An anomaly that continues keeps its first run. `listed` says what the whole list
    lacks; without it the run did not read the whole list.
    """
    earlier = _since_restart(usual)
    known_by_kind = {anomaly.kind: anomaly for anomaly in known}
    anomalies = []
    for finding in (_few_records(current, earlier), _stuck(current, earlier)):
        if finding is None:
            continue
        before = known_by_kind.get(finding.kind)
        if before is not None and current.at - before.since > ACCEPTED_AFTER:
            current = msgspec.structs.replace(current, restarts=True)
        else:
            anomalies.append(_anomaly(finding, before, run_id, current.at))
    missing = known_by_kind.get("missing-coins")
    if listed is None and missing is not None:
        # Only a whole list can show that the coins are back.
        anomalies.append(missing)
    elif listed is not None and (finding := _missing_coins(listed, current.bound)) is not None:
        anomalies.append(_anomaly(finding, missing, run_id, current.at))
    jump = _price_jump(current, earlier)
    lasting = known_by_kind.get("price-jump")
    if lasting is not None and (not lasting.lasting or current.at - lasting.since > STANDS):
        lasting = None
    if jump is not None and (lasting is None or not _undoes(current, lasting)):
        anomalies.append(_anomaly(jump, None, run_id, current.at))
    elif jump is None and lasting is not None:
        anomalies.append(lasting)
    return current, anomalies


def _since_restart(usual: Sequence[RunMetrics]) -> Sequence[RunMetrics]:
    for index, run in enumerate(usual):
        if run.restarts:
            return usual[: index + 1]
    return usual


class _Finding(msgspec.Struct, frozen=True):
    kind: Kind
    detail: str
    value: float
    usual: float
    lasting: bool = False
    coins: tuple[str, ...] = ()


def _anomaly(finding: _Finding, earlier: Anomaly | None, run_id: int, at: datetime) -> Anomaly:
    return Anomaly(
        kind=finding.kind,
        detail=finding.detail,
        value=finding.value,
        usual=finding.usual,
        lasting=finding.lasting,
        coins=[*finding.coins],
        since_run=earlier.since_run if earlier else run_id,
        since=earlier.since if earlier else at,
    )


def _few_records(current: RunMetrics, earlier: Sequence[RunMetrics]) -> _Finding | None:
    comparable = [
        run.fetched
        for run in earlier
        if run.complete
        and run.bound == current.bound
        and abs(run.planned - current.planned) <= SAME_SHARE * max(run.planned, current.planned)
    ]
    if not current.complete or len(comparable) < HISTORY:
        return None
    usual, spread = _usual(comparable)
    if current.fetched >= usual - max(FAR * spread, FEWER * usual):
        return None
    detail = f"{current.fetched:,} records, usually {usual:,.0f}"
    return _Finding("few-records", detail, current.fetched, usual)


def _missing_coins(listed: ListReport, bound: int | None) -> _Finding | None:
    missing, first_rank = listed.missing, FIRST_COINS if bound is None else min(FIRST_COINS, bound // 2)
    first = sum(coin.rank is not None and coin.rank <= first_rank for coin in missing)
    if not first and (not missing or len(missing) < MISSING_SHARE * listed.usual):
        return None
    names = ", ".join(f"{coin.name or '?'} ({coin.source_id})" for coin in missing[:NAMED])
    more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
    return _Finding(
        "missing-coins",
        f"{len(missing):,} of {listed.usual:,} coins that all recent lists had are missing, {first} of them "
        f"from the first {first_rank}: {names}{more}",
        len(missing),
        listed.usual,
        coins=tuple(coin.source_id for coin in missing[:IDS_LISTED]),
    )


def _stuck(current: RunMetrics, earlier: Sequence[RunMetrics]) -> _Finding | None:
    ages = [run.age_s for run in earlier if run.age_s is not None]
    if current.age_s is not None and len(ages) >= HISTORY:
        usual, spread = _usual(ages)
        if current.age_s > usual + max(FAR * spread, LATE_TIMES * abs(usual), LATE_S):
            return _Finding(
                "stuck",
                f"nine in ten records are older than {format_duration(current.age_s)}, usually "
                f"{format_duration(usual)}: the feed stands still, or the clock of this host is ahead",
                current.age_s,
                usual,
            )
    moves = [run.move for run in earlier if run.move is not None and _enough_coins(run)]
    if current.move == 0 and _enough_coins(current) and len(moves) >= HISTORY and min(moves) > 0:
        return _Finding(
            "stuck",
            f"{current.compared:,} coins have new times, but most have their old price: the feed is stuck",
            current.age_s or 0.0,
            statistics.median(ages) if ages else 0.0,
        )
    return None


def _price_jump(current: RunMetrics, earlier: Sequence[RunMetrics]) -> _Finding | None:
    rates = [_rate(run) for run in earlier if _enough_coins(run)]
    if len(rates) < HISTORY or not _enough_coins(current) or current.move is None or current.move < JUMP:
        return None
    usual, spread = _usual(rates)
    if _rate(current) <= usual + max(FAR * spread, JUMP_TIMES * usual):
        return None
    shift, deviation = current.shift or 0.0, current.spread or 0.0
    uniform = deviation <= UNIFORM * abs(shift)
    detail = (
        f"prices of {current.compared:,} coins are {math.exp(shift):.4g} times the previous ones, all by the "
        "same factor: another currency or scale"
        if uniform
        else f"prices of {current.compared:,} coins moved by {math.expm1(current.move):.1%} in the median"
    )
    return _Finding("price-jump", detail, math.exp(shift), math.exp(usual * _root_of_time(current)), uniform)


def _undoes(current: RunMetrics, jump: Anomaly) -> bool:
    back = -math.log(jump.value)
    return current.shift is not None and abs(current.shift - back) <= UNIFORM * abs(back)


def _enough_coins(run: RunMetrics) -> bool:
    return run.compared >= max(COINS, COINS_SHARE * run.fetched)


def _rate(run: RunMetrics) -> float:
    # Prices drift with the square root of time, so this compares runs after pauses of different lengths.
    return (run.move or 0.0) / _root_of_time(run)


def _root_of_time(run: RunMetrics) -> float:
    return math.sqrt(max(run.gap_s or 0.0, SHORTEST_GAP_S))


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the spread."""
    median = statistics.median(values)
    return median, 1.4826 * statistics.median(abs(value - median) for value in values)
