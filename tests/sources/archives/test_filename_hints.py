"""Coin, currency, day and period in file names."""

from datetime import UTC, datetime, timedelta

import pytest

from kasparro.sources.archives.filename_hints import read_hints


@pytest.mark.parametrize(
    ("file", "coin", "currency"),
    [
        ("coin_Bitcoin.csv", "bitcoin", None),
        ("bitcoin-cash_price.csv", "bitcoin-cash", None),
        ("freedom-coin.csv", "freedom-coin", None),
        ("btc-usd-max.csv", "btc", "USD"),
        ("GOMINING-usd-max (3).csv", "gomining", "USD"),
        ("BTC-USD (2).csv.gz", "btc", "USD"),
        ("AAVE-USD_1d.csv", "aave", "USD"),
        ("BTCUSDT_1d.csv", "btc", "USDT"),
        ("ETHEUR_4h_2021-01-31.csv.zst", "eth", "EUR"),
        ("eth-btc-max.csv", "eth", "BTC"),
        ("usd-coin.csv", "usd-coin", None),
        ("usdt.csv", "usdt", None),
        ("CoinPaprika_BTC_price_custom_2024_EURO.csv", "btc", "EUR"),
        ("owner__some-repository__xrp.csv", "xrp", None),
        ("Bitcoin Historical Data - Investing.com.csv", "bitcoin", None),
        ("merged_btc_eur_usd.csv", "btc", None),
        ("binance_1m.csv", None, None),
        ("2018-01-05.csv", None, None),
    ],
)
def test_coin_and_currency(file: str, coin: str | None, currency: str | None) -> None:
    hints = read_hints(file)
    assert (hints.coin, hints.currency) == (coin, currency)


def test_day_is_taken_only_if_unambiguous() -> None:
    for file in ("coins_2022-03-16.csv", "coins_20220316.csv", "1647388800000.csv"):
        day = read_hints(file).day
        assert day is not None
        assert day.at == datetime(2022, 3, 16, tzinfo=UTC)
    assert read_hints("coinmarketcap_06012018.csv").day is None


def test_period_of_candles() -> None:
    assert read_hints("BTC-USD_1m.csv").period == timedelta(minutes=1)
