"""Reads coin, currency, day and length of candles from the name of a file."""

import re
from datetime import timedelta

import msgspec

from kasparro.model.record import RejectedValue, slug
from kasparro.sources.archives.header_names import COINS, CURRENCIES, CURRENCY_WORDS, FIAT, word_set
from kasparro.sources.archives.times import PERIODS, Stamp, read_time

_SUFFIXES = re.compile(r"(?:\.(?:csv|tsv|txt|gz|zst|zstd))+$", re.IGNORECASE)
_DAY = re.compile(r"(?<!\d)(20\d{2})[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_EPOCH = re.compile(r"(?<!\d)(1\d{9}|1\d{12})(?!\d)")
_COPY = re.compile(r"\(\d+\)|_\d+_$")
_SPLIT = re.compile(r"[^0-9a-zA-Z]+")
# A pair as exchanges write it: BTCUSDT, ETHEUR.
_PAIR = re.compile(r"([A-Z0-9]{3,10})(USDT|USDC|FDUSD|BUSD|USD|EUR|GBP|BRL|TRY|JPY|KRW|BTC|ETH|BNB)")
_SMALL_PAIR = re.compile(r"([a-z]{3,5})(usdt|usdc|usd|eur|gbp|jpy)")
# Symbols of coins that look like such a pair.
NO_PAIR = frozenset({"CRVUSD", "FRXUSD", "RENBTC", "WSTETH", "CBBTC", "CBETH", "STETH", "RETH", "WBETH"})

# Words that say what a file is, where it came from or how it was made, but nothing about its coin.
_DECORATION = word_set(
    """
    coins crypto cryptos cryptocurrency cryptocurrencies price prices max history historical hist data
    dataset datasets archive archiv archives legacy input inputfile output converted merged clean cleaned
    raw full all daily hourly weekly monthly minute day time series ohlc ohlcv ohlcvt candle candles kline
    klines market markets marketcap cap chart export download investing com coinmarketcap coingecko gecko
    coinpaprika cmc binance coinbase kraken bitstamp bitfinex gemini coindesk coincodex coinmetrics
    cryptodatadownload messari consolidated currencies min part train yahoo custom perday snapshot
    snapshots list top sample test tickers ticker file csv table usdollar new old final spot cryptocompare
    stooq nasdaq fred defillama livecoinwatch kurs kurse preis preise verlauf daten historisch historische
    historischer cours prix historique historiques donnees precio precios historico historicos datos dati
    storici prezzo prezzi preco precos dados results result report backup latest updated processed of and
    in vs to from jan feb mar apr jun jul aug sep oct nov dec
    """
)

# An exchange and its quote currency in one word: bitstampUSD.
_EXCHANGE = re.compile(
    r"(?:bitstamp|coinbase|kraken|bitfinex|gemini|binance|coincheck|bitflyer|okcoin)([a-z]{3})"
)
# Coins whose name contains a currency. It is not the currency of their prices.
_CURRENCY_COIN = re.compile(
    r"(?:^|(?<=-))(usd-coin|true-usd|trueusd|binance-usd|paypal-usd|first-digital-usd|gemini-dollar|ripple-usd"
    r"|metamask-usd|euro-coin|bitcoin-usd-token)(?=-|$)"
)
_STABLE = frozenset({"usdt", "usdc", "busd", "fdusd"})


class FilenameHints(msgspec.Struct, frozen=True):
    """What a file's name says about its content; None for what it does not say."""

    coin: str | None
    currency: str | None
    day: Stamp | None
    period: timedelta | None


def read_hints(file: str) -> FilenameHints:
    """Read a file's name, such as `coin_Bitcoin.csv`, `btc-usd-max (3).csv` or `ETHEUR_1d_2021.csv.gz`.

    Bulk downloads put a prefix and a double underscore before the name.
    """
    stem = _SUFFIXES.sub("", file.rsplit("/", 1)[-1]).rsplit("__", 1)[-1]
    day = _day(stem)
    stem = _COPY.sub(" ", _EPOCH.sub(" ", _DAY.sub(" ", stem)))
    currency: str | None = None
    period: timedelta | None = None
    rest: list[str] = []
    currency_coin = _CURRENCY_COIN.search(slug(stem))
    if currency_coin:
        stem = slug(stem).replace(currency_coin[1], " ")
    words = [word for word in _SPLIT.split(stem) if word]
    for word in words[1:] if words and words[0].lower() == "coin" else words:
        low = word.lower()
        if low in PERIODS:
            period = PERIODS[low]
        elif not rest and currency is None and low in _STABLE and _quoted(words, word):
            # usdt-usd-max: a coin that is also a currency, and then the currency of its prices.
            rest.append(word)
        elif (money := CURRENCY_WORDS.get(low, low)) in FIAT or money in _STABLE:
            # With two currencies in the name, the columns must show which is which.
            currency = money.upper() if currency in {None, money.upper()} else ""
        elif (exchange := _EXCHANGE.fullmatch(low)) and exchange[1] in FIAT:
            currency = exchange[1].upper() if currency in {None, exchange[1].upper()} else ""
        elif low == "finance" and "yahoo" in map(str.lower, words):
            continue
        elif low not in _DECORATION and not re.fullmatch(r"(?:top)?\d+", low):
            pair = _PAIR.fullmatch(word) or _SMALL_PAIR.fullmatch(word)
            if pair and word.upper() not in NO_PAIR:
                rest.append(pair[1])
                currency = pair[2].upper()
            else:
                rest.append(word)
    if currency_coin:
        rest = [currency_coin[1]]
    if currency is None and len(rest) > 1 and rest[-1].lower() in COINS:
        currency = rest.pop().upper()
    if not rest and currency and currency.lower() in CURRENCIES and currency != "USD":
        # A name such as usdt.csv: the only word there is names the coin.
        rest, currency = [currency], None
    return FilenameHints(slug(" ".join(rest)) or None, currency or None, day, period)


def _quoted(words: list[str], coin: str) -> bool:
    # Whether the word after a coin is a currency.
    following = words[words.index(coin) + 1 :]
    return bool(following) and following[0].lower() in FIAT


def _day(stem: str) -> Stamp | None:
    for pattern in (_EPOCH, _DAY):
        if match := pattern.search(stem):
            try:
                return read_time("-".join(match.groups()), None)
            except RejectedValue:
                continue
    return None
