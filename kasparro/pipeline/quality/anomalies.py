"""Anomalies: what of a pass lies far beyond its source's own history."""

import math
import statistics
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec

from kasparro.pipeline.quality.freshness import format_duration
from kasparro.store.loader import PriceMoves

Kind = Literal["few-records", "price-jump", "stuck"]

# Passes looked back on, and how many it takes to know what is usual.
LOOKED_BACK = 20
HISTORY = 5
# Passes are compared that set out to bring the same share of the list, within a tenth, under one bound.
SAME_SHARE = 0.1
# How many spreads (1.4826 MAD: a standard deviation, were it normal) from the median is far; and the least
# that counts as far, so that a calm history makes no anomaly of an ordinary day.
FAR = 8.0
FEWER = 0.2
JUMP = math.log(1.05)
JUMP_TIMES = 4.0
LATE_S, LATE_TIMES = 3600.0, 2.0
SHORTEST_GAP_S = 60.0
# A median of fewer coins says little.
COINS = 20
COINS_SHARE = 0.1
# A jump whose spread is below this part of it is one factor for all coins, which no market does: it stands
# until it is undone, or is taken for the new normal after a day.
UNIFORM = 0.25
STANDS = timedelta(days=1)


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass is judged by. Moves are natural logarithms of new over old price, of the coins that came
    with news of a price that was known."""

    at: datetime
    fetched: int
    whole: bool = True
    """Whether it brought all that it set out for: no page was lost."""
    planned: float = 1.0
    """The share of the source's list that it set out to bring."""
    bound: int | None = None
    """How many records of the upstream's list it asked for at most; None for all."""
    compared: int = 0
    """Coins with news whose earlier price was known."""
    move: float | None = None
    """The median of the moves' sizes."""
    shift: float | None = None
    """The median of the moves."""
    spread: float | None = None
    """The median distance from that."""
    gap_s: float | None = None
    """The median time that lay between the two prices."""
    age_s: float | None = None
    """How old the freshest tenth of the records was at least."""


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """One thing about a pass that is far from usual; its rows are what the source said all the same."""

    kind: Kind
    detail: Annotated[str, msgspec.Meta(description="What is unusual, in one line.")]
    value: Annotated[
        float,
        msgspec.Meta(description="few-records: records; price-jump: new over old price; stuck: seconds."),
    ]
    usual: Annotated[float, msgspec.Meta(description="The same as it usually is.")]
    lasting: Annotated[
        bool,
        msgspec.Meta(description="One factor for all prices: it stands until it is undone, or for a day."),
    ] = False
    since_run: Annotated[int, msgspec.Meta(description="The run that met it first.")]
    since: Annotated[datetime, msgspec.Meta(description="When that was.")]


def figures(
    fetched: int,
    compared: PriceMoves,
    newest: Sequence[RunMetrics],
    *,
    at: datetime,
    whole: bool,
    planned: float,
    bound: int | None = None,
) -> RunMetrics:
    """The figures of a pass from what the batches' comparison with the tables told.

    Where nothing came, for the upstream said that nothing has changed, what the `newest` pass brought has
    grown older by the time since.
    """
    moves = sorted(compared.moves)
    shift = statistics.median(moves) if moves else None
    age_s = sorted(compared.ages)[len(compared.ages) // 10] if compared.ages else None
    if age_s is None and fetched and newest and newest[0].age_s is not None:
        age_s = newest[0].age_s + max((at - newest[0].at).total_seconds(), 0.0)
    return RunMetrics(
        at=at,
        fetched=fetched,
        whole=whole,
        planned=planned,
        bound=bound,
        compared=len(moves),
        move=statistics.median(map(abs, moves)) if moves else None,
        shift=shift,
        spread=statistics.median(abs(one - shift) for one in moves) if shift is not None else None,
        gap_s=statistics.median(compared.gaps) if moves else None,
        age_s=age_s,
    )


def assess(
    now: RunMetrics, past: Sequence[RunMetrics], before: Sequence[Anomaly], run_id: int
) -> list[Anomaly]:
    """What is far from usual in the pass of run `run_id`, given the passes before it and the anomalies of the
    newest of them: those that go on keep their beginning."""
    began = {one.kind: one for one in before}
    found = [
        _anomaly(strange, began.get(strange.kind), run_id, now.at)
        for strange in (_few(now, past), _stuck(now, past))
        if strange is not None
    ]
    jump = _jumped(now, past)
    standing = began.get("price-jump")
    if standing is not None and (not standing.lasting or now.at - standing.since > STANDS):
        standing = None
    if jump is not None and (standing is None or not _undoes(now, standing)):
        found.append(_anomaly(jump, None, run_id, now.at))
    elif jump is None and standing is not None:
        found.append(standing)
    return found


class _Strange(msgspec.Struct, frozen=True):
    kind: Kind
    detail: str
    value: float
    usual: float
    lasting: bool = False


def _anomaly(strange: _Strange, earlier: Anomaly | None, run_id: int, at: datetime) -> Anomaly:
    return Anomaly(
        kind=strange.kind,
        detail=strange.detail,
        value=strange.value,
        usual=strange.usual,
        lasting=strange.lasting,
        since_run=earlier.since_run if earlier else run_id,
        since=earlier.since if earlier else at,
    )


def _few(now: RunMetrics, past: Sequence[RunMetrics]) -> _Strange | None:
    alike = [
        one.fetched
        for one in past
        if one.whole
        and one.bound == now.bound
        and abs(one.planned - now.planned) <= SAME_SHARE * max(one.planned, now.planned)
    ]
    if not now.whole or len(alike) < HISTORY:
        return None
    usual, spread = _usual(alike)
    if now.fetched >= usual - max(FAR * spread, FEWER * usual):
        return None
    return _Strange("few-records", f"{now.fetched:,} records, usually {usual:,.0f}", now.fetched, usual)


def _stuck(now: RunMetrics, past: Sequence[RunMetrics]) -> _Strange | None:
    ages = [one.age_s for one in past if one.age_s is not None]
    if now.age_s is not None and len(ages) >= HISTORY:
        usual, spread = _usual(ages)
        if now.age_s > usual + max(FAR * spread, LATE_TIMES * abs(usual), LATE_S):
            return _Strange(
                "stuck",
                f"stands still: nine in ten records are older than {format_duration(now.age_s)}, usually "
                f"{format_duration(usual)}; or the clock here is ahead",
                now.age_s,
                usual,
            )
    moves = [one.move for one in past if one.move is not None and _many(one)]
    if now.move == 0 and _many(now) and len(moves) >= HISTORY and min(moves) > 0:
        return _Strange(
            "stuck",
            f"stands still: {now.compared:,} coins with new times, most with the price they had",
            now.age_s or 0.0,
            statistics.median(ages) if ages else 0.0,
        )
    return None


def _jumped(now: RunMetrics, past: Sequence[RunMetrics]) -> _Strange | None:
    rates = [_rate(one) for one in past if _many(one)]
    if len(rates) < HISTORY or not _many(now) or now.move is None or now.move < JUMP:
        return None
    usual, spread = _usual(rates)
    if _rate(now) <= usual + max(FAR * spread, JUMP_TIMES * usual):
        return None
    shift, around = now.shift or 0.0, now.spread or 0.0
    uniform = around <= UNIFORM * abs(shift)
    detail = (
        f"prices of {now.compared:,} coins are {math.exp(shift):.4g} times what they were, alike for all: "
        "another currency or scale"
        if uniform
        else f"prices of {now.compared:,} coins moved by {math.expm1(now.move):.1%} in the median"
    )
    return _Strange("price-jump", detail, math.exp(shift), math.exp(usual * _root_of_time(now)), uniform)


def _undoes(now: RunMetrics, standing: Anomaly) -> bool:
    back = -math.log(standing.value)
    return now.shift is not None and abs(now.shift - back) <= UNIFORM * abs(back)


def _many(one: RunMetrics) -> bool:
    return one.compared >= max(COINS, COINS_SHARE * one.fetched)


def _rate(one: RunMetrics) -> float:
    # Prices wander with the root of time, so that a run after a long pause is judged fairly.
    return (one.move or 0.0) / _root_of_time(one)


def _root_of_time(one: RunMetrics) -> float:
    return math.sqrt(max(one.gap_s or 0.0, SHORTEST_GAP_S))


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """The median and the spread around it."""
    median = statistics.median(values)
    return median, 1.4826 * statistics.median(abs(value - median) for value in values)
