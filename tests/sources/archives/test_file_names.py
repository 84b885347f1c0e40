"""Coin, currency, day and length of candles in file names: known for sure, or only guessed."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.sources.archives.file_names import read_name
from kasparro.sources.archives.known_coins import LEADING_COINS, KnownCoin

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("file", "coin", "currency"),
    [
        ("coin_Bitcoin.csv", "bitcoin", None),
        ("bitcoin-cash_price.csv", "bitcoin-cash", None),
        ("btc-usd-max.csv", "btc", "USD"),
        ("GOMINING-usd-max (3).csv", "gomining", "USD"),
        ("some-token-usd-max.csv", None, "USD"),
        ("BTC-USD (2).csv.gz", "btc", "USD"),
        ("BTC-USD - Copy.csv", "btc", "USD"),
        ("AAVE-USD_1d.csv", "aave", "USD"),
        ("BTCUSDT_1d.csv", "btc", "USDT"),
        ("ETHEUR_4h_2021-01-31.csv.zst", "eth", "EUR"),
        ("eth-btc-max.csv", "eth", "BTC"),
        ("usd-coin.csv", "usd-coin", None),
        ("usdt.csv", "usdt", None),
        ("CoinPaprika_BTC_price_custom_2024_EURO.csv", "btc", "EUR"),
        ("owner__some-repository__xrp.csv", "xrp", None),
        ("Bitcoin Historical Data - Investing.com.csv", "bitcoin", None),
        ("Bitcoin Historical Data - Investing.com India.csv", "bitcoin", None),
        ("merged_btc_eur_usd.csv", "btc", None),
        ("XBTUSD_1440.csv", "btc", "USD"),
        ("XXBTZUSD.csv", "btc", "USD"),
        ("XDGEUR_60.csv", "doge", "EUR"),
        ("SHIBUSD.csv", "shib", "USD"),
        ("BNBUSD_d.csv", "bnb", "USD"),
        ("stooq_btcusd_d.csv", "btc", "USD"),
        ("Bitfinex_BTCUSD_d.csv", "btc", "USD"),
        ("tBTCUSD_1h.csv", "btc", "USD"),
        ("BITSTAMP_BTCUSD, 1D.csv", "btc", "USD"),
        ("COINBASE_BTCUSD, 1D_85c84.csv", "btc", "USD"),
        ("my best backtest of BTCUSD v7.csv", "btc", "USD"),
        ("currency_daily_BTC_USD.csv", "btc", "USD"),
        ("BTCUSD_Candlestick_1_D_ASK_08.05.2017-16.10.2021.csv", "btc", "USD"),
        ("BTCUSDT-1h-2024-12.csv", "btc", "USDT"),
        ("BTC_All_graph_coinmarketcap.csv", "btc", None),
        ("Tether USDt_8_21_2019-10_20_2019_historical_data_coinmarketcap.csv", "tether-usdt", None),
        ("Lido Staked ETH_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "lido-staked-eth", None),
        ("Wrapped BNB_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "wrapped-bnb", None),
        ("STASIS EURO_1_1_2025-2_1_2025_historical_data_coinmarketcap (1).csv", "stasis-euro", None),
        ("Liquity USD_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "liquity-usd", None),
        ("bitcoin_2019-01-04_2024-03-05.csv", "bitcoin", None),
        ("Dados Históricos - Bitcoin.csv", "bitcoin", None),
        ("BTC Geçmiş Verileri.csv", "btc", None),
        ("비트코인 과거 데이터.csv", "bitcoin", None),
        ("比特币历史数据.csv", None, None),
        ("BCHAIN-MKPRU.csv", "btc", "USD"),
        ("bitcoin_btc.csv", "bitcoin", None),
        ("the-graph-usd.csv", "the-graph", "USD"),
        ("Kurse Bitcoin Dollar.csv", "bitcoin", "USD"),
        ("prices_usd_2018.csv", None, "USD"),
        ("binance_1m.csv", None, None),
        ("2018-01-05.csv", None, None),
        ("ZECUSD_1440.csv", "zec", "USD"),
        ("XTZUSD.csv", "xtz", "USD"),
        ("CHZUSDT_1h.csv", "chz", "USDT"),
        ("XZECZUSD.csv", "zec", "USD"),
        ("TRBUSD.csv", "trb", "USD"),
        ("BTCPYUSD.csv", "btc", "PYUSD"),
        ("USDT_BTC.csv", "btc", "USDT"),
        ("compound-usd-coin-usd-max.csv", None, "USD"),
        ("lido-staked-sol-usd-max.csv", None, "USD"),
        ("x-staked-sol-usd.csv", None, None),
        ("bitcoin_diamond.csv", None, None),
        ("EthereumMax.csv", None, None),
        ("BTC-USD_dominance.csv", None, None),
        ("BTCUSDT-premiumIndexKlines-1h.csv", None, None),
        ("Bitcoin prices - Sheet1.csv", "bitcoin", None),
        # Words of unknown meaning, common words that are symbols, several coins.
        ("freedom-coin.csv", None, None),
        ("btc_strategy.csv", None, None),
        ("one_year.csv", None, None),
        ("status.csv", None, None),
        ("bitcoin_ethereum.csv", None, None),
        ("BTC_ETH_SOL.csv", None, None),
        ("CBBTCUSD.csv", None, None),
        ("CRVUSD.csv", "crvusd", None),
        ("my-usd.csv", None, "USD"),
        ("SomeThing Bitcoin_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", None, None),
    ],
)
def test_coin_and_currency(file: str, coin: str | None, currency: str | None) -> None:
    name = read_name(file)
    assert (name.coin, name.currency) == (coin, currency)


@pytest.mark.parametrize(
    ("file", "guess"),
    [
        ("freedom-coin.csv", "freedom-coin"),
        ("btc_strategy.csv", "btc"),
        ("bitcoin_ethereum.csv", "bitcoin"),
        ("BTC_ETH_SOL.csv", "btc"),
        ("ricos-bitcoin.csv", "bitcoin"),
        ("SomeThing Bitcoin_1_1_2025-2_1_2025_historical_data_coinmarketcap.csv", "something-bitcoin"),
        ("bitcoin_diamond.csv", "bitcoin-diamond"),
        ("compound-usd-coin-usd-max.csv", "compound-usd-coin"),
        ("btc_hashrate.csv", None),
        ("prices.csv", None),
    ],
)
def test_name_that_settles_no_coin_gives_a_guess(file: str, guess: str | None) -> None:
    name = read_name(file)
    assert (name.coin, name.guess) == (None, guess)


def test_day_is_taken_only_if_unambiguous() -> None:
    for file in ("coins_2022-03-16.csv", "coins_20220316.csv", "1647388800000.csv"):
        day = read_name(file).day
        assert day is not None
        assert day.at == datetime(2022, 3, 16, tzinfo=UTC)
    assert read_name("coinmarketcap_06012018.csv").day is None
    assert read_name("btc-usd 2021-01-01 2021-02-09.csv").day is None


@pytest.mark.parametrize(
    ("file", "periods"),
    [
        ("BTC-USD_1m.csv", {HOUR / 60}),
        ("BTCUSDT-1M.csv", {HOUR / 60, timedelta(days=31)}),
        ("XBTUSD_1440.csv", {24 * HOUR}),
        ("BTCUSD1440.csv", {24 * HOUR}),
        ("BTCUSD_Candlestick_4_h_BID.csv", {4 * HOUR}),
        ("btcusd_d.csv", {24 * HOUR}),
        ("btc-usd-weekly.csv", {168 * HOUR}),
        ("BTC-USD.csv", set()),
    ],
)
def test_lengths_of_candles(file: str, periods: set[timedelta]) -> None:
    assert read_name(file).periods == periods


DECORATIONS = [
    "",
    "_daily",
    " (2)",
    "_2021-01-31",
    ", 1D_3f9a1",
    "-max",
    "_history",
    " - Investing.com",
    "_d",
]
BASES = ["BTC", "ETH", "DOGE", "SHIB", "XBT", "LINK", "UNI", "1INCH"]


@given(
    st.sampled_from(BASES),
    st.sampled_from(["USD", "USDT", "EUR", "BTC"]),
    st.sampled_from(["", "-", "_"]),
    st.sampled_from(["", "BITSTAMP_", "crypto_", "my notes on ", "2021 "]),
    st.sampled_from(DECORATIONS),
)
def test_one_pair_is_the_coin_whatever_else_the_name_has(
    base: str, quote: str, separator: str, before: str, after: str
) -> None:
    name = read_name(f"{before}{base}{separator}{quote}{after}.csv")
    if base in {"BTC", "XBT"} and quote == "BTC":
        return
    assert name.coin == base.lower().replace("xbt", "btc")
    assert name.currency in {quote, None}


@given(st.text(max_size=60))
def test_any_name_is_read(text: str) -> None:
    read_name(f"{text}.csv")


def test_list_of_known_coins_has_each_spelling_once() -> None:
    by_phrase, by_symbol = LEADING_COINS.by_phrase, LEADING_COINS.by_symbol
    assert by_symbol("btc") == by_phrase("bitcoin") == by_phrase("btc-bitcoin")
    assert by_symbol("xbt") == by_symbol("BTC")
    assert by_phrase("wrapped-bnb") != by_symbol("bnb")
    assert by_phrase("lido-staked-eth") == by_symbol("steth")


def test_coins_of_the_database_are_known_beside_the_list() -> None:
    known = LEADING_COINS.with_coins([KnownCoin("FRDM", "Freedom Coin", "freedom-coin")])
    assert read_name("freedom-coin_daily.csv", known).coin == "freedom-coin"
    assert read_name("Freedom Coin.csv", known).coin == "freedom-coin"
    assert read_name("bitcoin.csv", known).coin == "bitcoin"
