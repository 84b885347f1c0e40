"""Files of candles in any zone, phase, length and unit, under any name, give the right closes or a refusal.

`KASPARRO_TEST_EXAMPLES` sets how many files are tried.
"""

import asyncio
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import HealthCheck, assume, event, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from kasparro.sources.archives.overrides import Overrides
from tests.support.archives import NOW, read, table

EXAMPLES = int(os.environ.get("KASPARRO_TEST_EXAMPLES", "200"))
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=n) for n in (1, 60, 3_600, 86_400))
LENGTHS = [MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR, DAY, 3 * DAY, 7 * DAY, None]
ZONES = [
    *("UTC", "UTC", "Europe/Athens", "America/New_York", "America/Los_Angeles", "Asia/Kolkata"),
    *("Asia/Singapore", "Australia/Sydney", "America/Sao_Paulo"),
]
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
COINS = {"BTC": "btc", "XBT": "btc", "ETH": "eth", "DOGE": "doge", "SHIB": "shib"}
NAMES = [
    *(
        "{pair}",
        "{pair}",
        "KRAKEN_{pair}, 1_f3a9c",
        "{pair} (2)",
        "my {pair} backtest",
        "prices_{coin}-USD_v2",
    ),
    *(
        "{coin}_USD_2021-01-31",
        "{coin}",
        "{coin}_strategy",
        "{coin} Historical Data",
        "data",
        "{pair}_{word}",
    ),
]


class Written(msgspec.Struct, frozen=True):
    """How the times of a file are written.

    `zone` is that of the text if it does not show one; `shown` says whether header, cells or overrides do.
    """

    form: str
    zone: str = "UTC"
    shown: bool = True
    overrides: Overrides = Overrides()
    header: str = "time"


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, Overrides, dict[datetime, str], str, bool]:
    """Content, name, overrides, the close at each moment, the coin, and whether the zone can be known."""
    length = draw(st.sampled_from(LENGTHS))
    grid_zone = ZoneInfo(draw(st.sampled_from(ZONES)))
    phase = draw(st.sampled_from([timedelta(), timedelta(), 2 * HOUR, 16 * HOUR, 5 * HOUR + 30 * MINUTE]))
    count = draw(st.integers(4, 150))
    year, month, day = draw(st.integers(2015, 2023)), draw(st.integers(1, 12)), draw(st.integers(1, 28))
    begin = datetime(year, month, 1 if length is None else day) + phase  # noqa: DTZ001 - a wall-clock time
    walls = [_next(begin, length, n) for n in range(count + 1)]
    moments = [wall.replace(tzinfo=grid_zone).astimezone(UTC) for wall in walls]
    if length is not None and length <= HOUR:
        moments = [moments[0] + n * length for n in range(count + 1)]
    assume(moments[-1] < NOW)
    ends = draw(st.sampled_from([None, None, SECOND, SECOND / 1_000]))
    times = [moments[n] if ends is None else moments[n + 1] - ends for n in range(count)]
    written = draw(_written(grid_zone.key, ends, phase, length))
    coin = draw(st.sampled_from(sorted(COINS)))
    word = draw(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6))
    separator = draw(st.sampled_from(["", "-", "_"]))
    name = draw(st.sampled_from(NAMES)).format(pair=f"{coin}{separator}USD", coin=coin, word=word)
    texts = [_text(at, written) for at in times]
    kept = sorted(draw(st.sets(st.integers(0, count - 1), min_size=count * 4 // 5, max_size=count)))
    rows, closes = [], {}
    for n in kept:
        rows.append(f"{texts[n]},{100 + n},{900 + n},1,{200 + n}.5,7.25,{n}")
        closes[moments[n + 1] - (ends or SECOND)] = f"{200 + n}.5"
    if draw(st.booleans()):
        rows.reverse()
    header = f"{written.header},open,high,low,close,volume,trades"
    content = table(*rows) if draw(st.booleans()) and written.form in UNITS else table(header, *rows)
    hidden = not written.shown and written.zone != "UTC" and _aligned(texts, length, ends)
    # Candles of a zone that begin like those of UTC are of UTC, for any reader, until clocks change.
    begins = [f"{moments[n]:%Y-%m-%d %H:%M:%S}" for n in kept]
    hidden = hidden or (grid_zone.key != "UTC" and not phase % HOUR and _aligned(begins, length, None))
    return content, f"{name}.csv", written.overrides, closes, COINS[coin], not hidden


def _next(begin: datetime, length: timedelta | None, n: int) -> datetime:
    if length is not None:
        return begin + n * length
    months = begin.month - 1 + n
    return begin.replace(year=begin.year + months // 12, month=months % 12 + 1)


@st.composite
def _written(
    draw: st.DrawFn, zone: str, ends: timedelta | None, phase: timedelta, length: timedelta | None
) -> Written:
    fraction = ".%f" if ends is not None and ends < SECOND else ""
    text = f"%Y-%m-%d %H:%M:%S{fraction}"
    kinds = [
        *(Written(form=unit) for unit in UNITS if unit != "s" or not fraction),
        Written(form="%Y-%m-%dT%H:%M:%S" + fraction + "Z"),
        Written(form=text, header="Gmt time"),
        Written(form=text, shown=False),
        Written(form=text.replace(" ", ","), shown=False, header="date,time"),
        Written(form=text, zone=zone, shown=False),
        Written(form=text, zone=zone, overrides=Overrides(timezone=zone)),
        Written(form=text, zone="America/Los_Angeles", shown=False),
    ]
    if ends is None and not phase and (length is None or length >= DAY):
        kinds.append(Written(form="%Y-%m-%d", zone=zone, overrides=Overrides(timezone=zone), header="date"))
    return draw(st.sampled_from(kinds))


def _text(at: datetime, written: Written) -> str:
    if written.form in UNITS:
        microseconds = round((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
        return str(microseconds * UNITS[written.form] // 10**6)
    return at.astimezone(ZoneInfo(written.zone)).strftime(written.form)


def _aligned(texts: list[str], length: timedelta | None, ends: timedelta | None) -> bool:
    # Whether times in a local zone look like those of candles of UTC. No reader can tell them apart.
    walls = [datetime.fromisoformat(text.replace(",", " ")) + (ends or timedelta()) for text in texts]
    step = min(length or DAY, DAY)
    origin = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall-clock time
    return sum((wall - origin) % step == timedelta() for wall in walls) >= 0.9 * len(walls)


@pytest.mark.slow
@examples(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(files())
def test_closes_are_right_or_the_file_is_refused(
    file: tuple[str, str, Overrides, dict[datetime, str], str, bool],
) -> None:
    content, name, overrides, closes, coin, zone_can_be_known = file
    assume(zone_can_be_known)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content, encoding="utf-8")
        outcome = asyncio.run(read(path, overrides=overrides))
    event("refused" if outcome.problems else "loaded")
    for row in outcome.rows:
        assert row["source_id"] == coin
        at = datetime.fromisoformat(row["observed_at"])
        assert closes.get(at) == row["price_usd"], (at, name)
    if not outcome.problems:
        assert len(outcome.rows) + len(outcome.rejects) == len(closes)
        assert len(outcome.rejects) <= 2 + 0.05 * len(closes)
