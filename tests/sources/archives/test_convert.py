"""Converting rows together gives the same as converting each alone."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kasparro.model.record import RejectedValue
from kasparro.sources.archives.convert import Converter
from kasparro.sources.archives.detect import detect
from kasparro.sources.archives.detect.sample import read_sample
from kasparro.sources.archives.files import ArchiveFile

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HEADER = (
    "symbol,name,rank,price_usd,market_cap_usd,24h_volume_usd,total_supply,percent_change_1h,last_updated"
)

amounts = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-10, max_value=10**12, places=4).map(str),
    st.integers(0, 10**30).map(str),
    st.sampled_from(
        [
            "",
            "0",
            "0.0",
            "-0",
            "00",
            "1.",
            ".5",
            "1\n2",
            "\n",
            "1,5",
            "$3",
            "2%",
            "1e3",
            "1e400",
            "x",
            "10",
            "1.50",
        ]
    ),
)
rows = st.lists(
    st.tuples(
        st.sampled_from(["BTC", "NULL", "NaN", "", "-", "a\tb", "\\N", "é\udc80"]),
        st.sampled_from(["Bitcoin", "", "a\nb"]),
        st.sampled_from(["1", "2", "", "0", "x"]),
        amounts,
        amounts,
        amounts,
        amounts,
        amounts,
        st.sampled_from(["1517443200", "2018-02-01", "", "never", "2018-02-01T00:00:00+02:00"]),
    ).map(list),
    min_size=1,
    max_size=4,
)


def make_converter(folder: Path) -> Converter:
    path = folder / "dump.csv"
    path.write_text(f"{HEADER}\nBTC,Bitcoin,1,1.5,2,3,4,5,1517443200\n")
    with ArchiveFile.at(path) as file:
        return Converter(detect(asyncio.run(read_sample(file)), path.name, NOW), NOW)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(drawn=rows, ragged=st.booleans())
def test_rows_together_equal_rows_alone(tmp_path: Path, drawn: list[list[str]], ragged: bool) -> None:
    converter = make_converter(tmp_path)
    drawn = [*drawn, ["one cell"]] if ragged else drawn
    alone: list[tuple[str, str] | None] = []
    for row in drawn:
        try:
            alone.append(converter.convert(row.copy()))
        except RejectedValue:
            alone.append(None)

    together = converter.convert_all(drawn)

    if None in alone:
        assert together is None
    if together is not None:
        assert list(zip(*together, strict=True)) == alone


def test_plain_rows_are_converted_together(tmp_path: Path) -> None:
    row = ["BTC", "Bitcoin", "1", "1.50", "0", "", "10", "-0.50", "1517443200"]

    assert make_converter(tmp_path).convert_all([row] * 3) is not None
