"""CoinPaprika: records from sample payloads, and settings."""

from datetime import UTC, datetime

import pytest

from kasparro.model.record import Record
from kasparro.settings import Secret
from kasparro.sources.coinpaprika import CoinPaprikaSettings, to_record
from tests.support.payload_samples import records

NOW = datetime(2026, 5, 20, 9, 32, tzinfo=UTC)


def test_records_have_the_exact_digits_of_the_payload() -> None:
    first, second, _ = records("coinpaprika_tickers.json", to_record, NOW)

    assert first == Record(
        source_id="amb-amberline",
        symbol="AMB",
        name="Amberline",
        observed_at=datetime(2026, 5, 20, 9, 28, 44, tzinfo=UTC),
        rank=1,
        price_usd="48207.91330127",
        market_cap_usd="951093864201",
        volume_24h_usd="27719304412.61",
        total_supply="19729004",
        max_supply="21000000",
        percent_change_1h="-0.09",
        percent_change_24h="1.7",
        percent_change_7d="-4.41",
    )
    assert (second.name, second.price_usd) == ("<Cinder> Inu 柴犬", "0.00000926")


def test_zero_is_unknown_only_where_coinpaprika_means_it() -> None:
    """A cap, a circulating supply and a maximum supply of 0 are unknown. A price of 0 is a price."""
    free = records("coinpaprika_tickers.json", to_record, NOW)[-1]
    old = records("coinpaprika_tickers_2019.json", to_record, NOW)[-1]

    assert (free.price_usd, free.volume_24h_usd, free.total_supply) == ("0", "0", "0")
    assert free.market_cap_usd is None
    assert (old.market_cap_usd, old.circulating_supply, old.max_supply) == (None, None, None)
    assert (old.rank, old.price_usd) == (None, "0.00000002")


def test_empty_strings_are_null() -> None:
    ticker = records("coinpaprika_tickers.json", to_record, NOW)[-1]

    assert (ticker.rank, ticker.max_supply, ticker.percent_change_7d) == (None, None, None)


def test_circulating_supply_is_read_where_it_is_sent() -> None:
    free = records("coinpaprika_tickers.json", to_record, NOW)[0]
    old = records("coinpaprika_tickers_2019.json", to_record, NOW)[0]

    assert (free.circulating_supply, old.circulating_supply) == (None, "17204500")


@pytest.mark.parametrize(
    ("key", "url", "monthly_calls"),
    [
        (None, "https://api.coinpaprika.com/v1", 20_000),
        ("k", "https://api-pro.coinpaprika.com/v1", None),
    ],
)
def test_key_decides_host_and_budget(key: str | None, url: str, monthly_calls: int | None) -> None:
    settings = CoinPaprikaSettings(key=Secret(key) if key else None)

    assert (settings.url, settings.monthly_calls) == (url, monthly_calls)
