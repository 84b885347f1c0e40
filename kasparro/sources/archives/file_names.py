"""Reads the coin, currency, day and length of candles from the name of an archive.

A name gives the coin only if it has exactly one pair (`BTCUSD`, `BTC-USD`), or exactly one known coin and no
word of unknown meaning, or the form of a name that a site gives to its exports. Any other name gives a guess.
"""

import re
import unicodedata
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec

from kasparro.model.record import RejectedValue, slug
from kasparro.sources.archives.known_coins import LEADING_COINS, SYMBOL_SPELLINGS, KnownCoins, phrase
from kasparro.sources.archives.pairs import split_joined
from kasparro.sources.archives.times import Stamp, period_words, read_time
from kasparro.sources.archives.vocabulary import COINS, CURRENCY_WORDS, FIAT, PEGGED_CODES, word_set

_SUFFIXES = re.compile(r"(?:\.(?:csv|tsv|txt|gz|zst|zstd))+$", re.IGNORECASE)
_DAY = re.compile(r"(?<!\d)(20\d{2})[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")
_EPOCH = re.compile(r"(?<!\d)(1\d{9}|1\d{12})(?!\d)")
_OTHER_DAYS = re.compile(
    r"(?<!\d)(?:\d{1,2}[-_.]\d{1,2}[-_.]20\d{2}|20\d{2}[-_.]\d{1,2}(?:[-_.]\d{1,2})?)(?!\d)"
)
_COPY = re.compile(r"[ _-]*\(\d+\)$|_\d+_$|[ _-]+copy(?:[ _-]*\d*)?$|^copy of ", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PAIR_SEPARATOR = re.compile(r"[-_ ./:]{1,3}")

_COIN_QUOTES = frozenset({"btc", "eth", "bnb"})
_QUOTES = FIAT | PEGGED_CODES | _COIN_QUOTES
# A pair in one word, with the minutes of its candles as MetaTrader and Kraken add them: BTCUSD1440.
_JOINED = re.compile(r"(?P<pair>[A-Za-z0-9]*?[A-Za-z])(?P<minutes>1|5|15|30|60|240|1440|10080|43200)?")
_MINUTES = frozenset({"1", "5", "15", "30", "60", "240", "720", "1440", "10080", "21600"})
# An exchange and its quote currency in one word: bitstampUSD.
_EXCHANGE = re.compile(
    r"(?:bitstamp|coinbase|kraken|bitfinex|gemini|binance|coincheck|bitflyer|okcoin)([a-z]{3})"
)
# A symbol that is not on the list counts in a pair that is written as exchanges write it.
_EXCHANGE_SYMBOL = re.compile(r"[A-Z]{2,5}\d{0,5}")

# Words that say what a file is, where it came from or how it was made, but nothing about its coin.
_DECORATION = word_set(
    """
    coin coins crypto cryptos cryptocurrency cryptocurrencies currency digital price prices pricing max
    min history historical hist data dataset datasets archive archiv archives legacy input inputfile
    output converted merged clean cleaned raw full all daily hourly weekly monthly minute minutes hour
    hours day days week month year years time series timeseries index ohlc ohlcv ohlcvt candle candles
    candlestick kline klines bars market markets marketcap cap chart charts graph export exported download
    downloaded downloads finance investing com coinmarketcap coingecko gecko coinpaprika paprika cmc
    binance coinbase kraken bitstamp bitfinex gemini okx bybit kucoin poloniex bittrex huobi bitmex
    deribit coindesk coincodex coinmetrics coinapi cryptodatadownload messari consolidated currencies part
    train test sample samples yahoo yfinance custom perday snapshot snapshots list top tickers ticker file
    files csv table new old final spot perp swap usdm um cryptocompare stooq nasdaq quandl fred defillama
    livecoinwatch tradingview dukascopy metatrader mt4 mt5 alphavantage ask bid mid kurs kurse preis
    preise verlauf daten historisch historische historischer cours prix historique historiques donnees
    données precio precios historico historicos histórico históricos datos dati storici prezzo prezzi
    preco precos preço preços dados results result report backup latest updated processed of and in vs to
    from the my for with by jan feb mar apr may jun jul aug sep oct nov dec january february march april
    june july august september october november december q1 q2 q3 q4 utc gmt geçmiş verileri dane
    historyczne прошлые данные исторические kopie von neu training india usdollar db etl main prod
    過去データ 과거 데이터 历史数据
    """
)

# The last words of many coins' names.
_ENDINGS = frozenset({"coin", "token", "protocol", "network", "finance", "dao", "usd"})

# Words of coins that stand for another coin. Next to a pair or to a coin they make a coin of their own.
_DERIVED = word_set(
    """
    wrapped staked restaked liquid bridged peg pegged lido savings compound aave venus mantle renzo huobi baby
    mini cash gold diamond classic private max inu
    """
)
# Words of figures that are no price of a coin.
_MEASURES = word_set(
    """
    dominance volatility hashrate difficulty addresses activeaddresses returns longs shorts prediction
    predictions forecast supply fees transactions sentiment funding fundingrate premium premiumindex
    premiumindexklines premiumindexkline indexpriceklines markpriceklines openinterest liquidations
    """
)
# Words that say nothing, except as a part of a word with capitals: EthereumMax.
_NOT_INSIDE = frozenset({"max", "min", "new", "spot", "index", "old", "top", "final"})

# Names that sites give to their exports. `coin` is the site's own name of the coin.
_FORMS = (
    re.compile(
        r"(?P<coin>[^_]+)_\d{1,2}_\d{1,2}_\d{4}-\d{1,2}_\d{1,2}_\d{4}_historical_data_coinmarketcap",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<coin>[^_]+)_\w{1,4}_graph_coinmarketcap", re.IGNORECASE),
    re.compile(r"(?P<coin>[^\W_](?:[^\W_]|-)*?)-(?P<currency>[a-z]{3,4})-max", re.IGNORECASE),
    re.compile(r"CoinPaprika_(?P<coin>[^_]+)_price_(?:[^_]+_)*(?P<currency>[A-Z]{3,4}O?)", re.IGNORECASE),
)
# Series that Quandl named: the market price of bitcoin, in US dollars, from blockchain.com.
_SERIES = {"bchain-mkpru": ("BTC", "USD")}


class FileName(msgspec.Struct, frozen=True, kw_only=True):
    """What a file's name says about its content; None for what it does not say.

    `coin` is an id. `coin_from` says for people what gave it. `guess` is the coin that the name may mean.
    `currency` is the quote currency of the one pair. `other_currencies` are further currencies that the name
    mentions, which settle nothing. `periods` are the lengths of candles that the name may mean.
    """

    coin: str | None = None
    coin_from: str = ""
    guess: str | None = None
    unknown: tuple[str, ...] = ()
    currency: str | None = None
    other_currencies: frozenset[str] = frozenset()
    day: Stamp | None = None
    periods: frozenset[timedelta] = frozenset()
    series: bool = False


class _Word(NamedTuple):
    # A word of a name, and the text between it and the one before.
    text: str
    separator: str
    is_first: bool = False

    @property
    def low(self) -> str:
        return self.text.lower()

    @property
    def currency(self) -> str | None:
        code = CURRENCY_WORDS.get(self.low, self.low)
        return code if code in FIAT or code in PEGGED_CODES else None


class _Pair(NamedTuple):
    coin: str
    quote: str
    text: str


def read_name(file: str, known: KnownCoins = LEADING_COINS) -> FileName:
    """Read a file's name, such as `coin_Bitcoin.csv`, `btc-usd-max (3).csv` or `ETHEUR_1d_2021.csv.gz`.

    Bulk downloads put a prefix and a double underscore before the name.
    """
    # Some file systems store accents as characters of their own.
    name = unicodedata.normalize("NFC", file.rsplit("/", 1)[-1])
    stem = _SUFFIXES.sub("", name).rsplit("__", 1)[-1]
    stem = _COPY.sub("", stem)
    day = _day(stem)
    if stem.lower() in _SERIES:
        symbol, currency = _SERIES[stem.lower()]
        return FileName(coin=slug(symbol), coin_from=f"the series {stem}", currency=currency, series=True)
    if (form := _by_form(stem, known)) is not None:
        return msgspec.structs.replace(form, day=day)
    words = _words(_OTHER_DAYS.sub(" ", _EPOCH.sub(" ", _DAY.sub(" ", stem))), known)
    pairs, used = _pairs(words, known)
    periods, timed = _periods(words, known)
    currencies = {word.currency.upper() for i, word in enumerate(words) if word.currency and i not in used}
    coins, rest = _known_coins([word for i, word in enumerate(words) if i not in used | timed], known)
    measures = [word.text for word in words if word.low in _MEASURES]
    if measures:
        return FileName(unknown=tuple(measures), day=day, periods=periods)
    # BTC_ETH_SOL is a list of coins, not a pair and a coin.
    listed = coins and any(pair.quote.lower() in _COIN_QUOTES for pair in pairs)
    if len({pair.coin for pair in pairs}) == 1 and not listed:
        quotes = {pair.quote for pair in pairs}
        only = len(quotes) == 1 and not currencies - quotes
        return FileName(
            coin=pairs[0].coin,
            coin_from=f"the pair {pairs[0].text}",
            currency=next(iter(quotes)) if only else None,
            other_currencies=frozenset() if only else frozenset(quotes | currencies),
            day=day,
            periods=periods,
        )
    unknown = tuple(word.text for word in rest)
    spoken = FileName(other_currencies=frozenset(currencies), day=day, periods=periods, unknown=unknown)
    if pairs:
        return msgspec.structs.replace(spoken, guess=pairs[0].coin)
    if len(coins) == 1 and not unknown:
        coin_id, text = next(iter(coins.values()))
        exchange = {match[1].upper() for word in words if (match := _EXCHANGE.fullmatch(word.low))}
        return msgspec.structs.replace(
            spoken,
            coin=coin_id,
            coin_from=f"the coin {text}",
            currency=exchange.pop() if len(exchange) == 1 else None,
        )
    if any(word.low in _DERIVED for word in rest):
        # A derived coin has all these words: bitcoin-diamond.
        guess = slug(" ".join(word.text for word in words if not _says_nothing(word))) or None
    else:
        guess = next((coin_id for coin_id, _ in coins.values()), None) or _guess(words, rest)
    # Without a coin, a currency among words that name no coin is that of the prices.
    only_currency = currencies if not coins and not unknown else set()
    exchange = {
        match[1].upper() for word in words if (match := _EXCHANGE.fullmatch(word.low)) and match[1] in FIAT
    }
    only_currency |= exchange
    if len(only_currency) == 1:
        spoken = msgspec.structs.replace(
            spoken, currency=next(iter(only_currency)), other_currencies=frozenset(currencies - only_currency)
        )
    return msgspec.structs.replace(spoken, guess=guess)


def _guess(words: Sequence[_Word], unknown: Sequence[_Word]) -> str | None:
    # The words of unknown meaning, with a word such as `coin` behind the last of them.
    last = max((position for position, word in enumerate(words) if word in unknown), default=len(words))
    ending = [word.text for word in words[last + 1 : last + 2] if word.low in _ENDINGS]
    return slug(" ".join([*(word.text for word in unknown), *ending])) or None


def phrases(file: str) -> set[str]:
    """The phrases of two to five words in a file's name, as `KnownCoins` knows coins."""
    words = [word.text for word in _words(_SUFFIXES.sub("", file), LEADING_COINS)]
    return {
        phrase(words[start : start + length])
        for length in range(2, 6)
        for start in range(len(words) - length + 1)
    }


def _by_form(stem: str, known: KnownCoins) -> FileName | None:
    for form in _FORMS:
        if (match := form.fullmatch(stem)) is None:
            continue
        words = _words(match["coin"], known)
        groups = match.groupdict()
        currency = CURRENCY_WORDS.get(low := (groups.get("currency") or "").lower(), low)
        if not words or (currency and currency not in FIAT | COINS):
            continue
        code = currency.upper() or None
        coin_id = _coin_id(match["coin"])
        coin = known.by_phrase(phrase(word.text for word in words))
        if coin is None and len(words) == 1:
            coin = known.by_symbol(words[0].text)
        foreign = any(word.low in _DECORATION or word.currency for word in words)
        if coin is not None or (len(words) == 1 and not foreign):
            return FileName(
                coin=coin_id or (coin.id if coin else None),
                coin_from=f"the coin {match['coin']!r} in the form of its name",
                currency=code,
            )
        # The form shows that the whole text is a coin, so no part of it is.
        return FileName(guess=coin_id or None, currency=code, unknown=(match["coin"],))
    return None


def _words(text: str, known: KnownCoins) -> list[_Word]:
    words: list[_Word] = []
    end = 0
    for match in _WORD.finditer(text):
        separator, end_of_last = text[end : match.start()], end
        end = match.end()
        parts = [match[0]]
        if not _is_whole(match[0], known):
            parts = _CAMEL.sub(" ", match[0]).split()
        words.append(_Word(parts[0], separator if end_of_last else "", not words))
        words += [_Word(part, "") for part in parts[1:]]
    return words


def _is_whole(word: str, known: KnownCoins) -> bool:
    # Whether a word is a coin, a pair or a currency as it stands, so that its capitals separate no words.
    low = word.lower()
    return (
        known.by_word(word) is not None
        or low in _DECORATION
        or _EXCHANGE.fullmatch(low) is not None
        or (_joined(word, known) is not None)
    )


def _joined(word: str, known: KnownCoins) -> tuple[_Pair, timedelta | None] | None:
    match = _JOINED.fullmatch(word)
    if match is None or known.by_word(word) is not None:
        return None
    if (split := split_joined(match["pair"])) is None:
        return None
    base, quote = split
    if base.lower() in _DECORATION or base.lower() in FIAT:
        return None
    if known.by_symbol(base) is None and not (word == word.upper() and _EXCHANGE_SYMBOL.fullmatch(base)):
        return None
    minutes = timedelta(minutes=int(match["minutes"])) if match["minutes"] else None
    return _Pair(_coin_id(base), quote, f"{base}/{quote}"), minutes


def _coin_id(text: str) -> str:
    return slug(SYMBOL_SPELLINGS.get(text.lower(), text))


def _pairs(words: Sequence[_Word], known: KnownCoins) -> tuple[list[_Pair], set[int]]:
    # The pairs in a name, and the positions of their words.
    pairs: list[_Pair] = []
    used: set[int] = set()
    for position, word in enumerate(words):
        if (joined := _joined(word.text, known)) is not None:
            pairs.append(joined[0])
            used.add(position)
            continue
        following = words[position + 1] if position + 1 < len(words) else None
        if following is None or position in used or not _PAIR_SEPARATOR.fullmatch(following.separator):
            continue
        quote = CURRENCY_WORDS.get(following.low, following.low)
        if word.currency in FIAT | PEGGED_CODES and quote in _COIN_QUOTES:
            # Poloniex and Upbit write the currency first: USDT_BTC.
            pairs.append(
                _Pair(_coin_id(following.text), word.currency.upper(), f"{following.text}/{word.text}")
            )
            used |= {position, position + 1}
            continue
        if quote not in _QUOTES or _continues_a_coin(words, position + 1, known):
            continue
        start = _start_of_base(words, position, following, known)
        if start and words[start - 1].low in _DERIVED:
            continue
        if start is not None and not _is_itself(words[start : position + 1], quote, known):
            base = " ".join(part.text for part in words[start : position + 1])
            pairs.append(_Pair(_coin_id(base), quote.upper(), f"{base}/{following.text}"))
            used |= {*range(start, position + 2)}
    return pairs, used


def _is_itself(base: Sequence[_Word], quote: str, known: KnownCoins) -> bool:
    # Whether a pair would be of a coin and itself: bitcoin_btc.
    coin = known.by_phrase(phrase(word.text for word in base)) or known.by_symbol(base[0].text)
    return coin is not None and coin == known.by_symbol(quote)


def _continues_a_coin(words: Sequence[_Word], position: int, known: KnownCoins) -> bool:
    # Whether a currency is the beginning or the end of a coin's name: usd-coin, true-usd.
    return any(
        known.by_phrase(phrase(word.text for word in words[start:end])) is not None
        for start, end in ((position, position + 2), (position - 1, position + 1))
        if start >= 0 and end <= len(words)
    )


def _start_of_base(words: Sequence[_Word], position: int, following: _Word, known: KnownCoins) -> int | None:
    # Where the coin begins that ends at a position; None if there is no coin.
    for length in (5, 4, 3, 2):
        start = position + 1 - length
        if (
            start >= 0
            and known.by_phrase(phrase(word.text for word in words[start : position + 1])) is not None
        ):
            return start
    word = words[position]
    if word.low in _DECORATION or word.low in FIAT or word.text.isdigit():
        return None
    if known.by_symbol(word.text) is not None or known.by_phrase(word.low) is not None:
        return position
    as_exchanges_write = following.separator in {"-", "/"} and following.text.isupper()
    return position if as_exchanges_write and _EXCHANGE_SYMBOL.fullmatch(word.text) else None


def _known_coins(words: Sequence[_Word], known: KnownCoins) -> tuple[dict[str, tuple[str, str]], list[_Word]]:
    # The coins that words name, by the id of the list, with the id and the text in the name; and the words
    # of unknown meaning.
    coins: dict[str, tuple[str, str]] = {}
    rest: list[_Word] = []
    position = 0
    while position < len(words):
        for length in (5, 4, 3, 2):
            some = words[position : position + length]
            coin = known.by_phrase(phrase(word.text for word in some)) if len(some) == length else None
            if coin is not None:
                text = " ".join(word.text for word in some)
                coins.setdefault(coin.id, (slug(text) if text.isascii() else coin.id, text))
                position += length
                break
        else:
            word = words[position]
            position += 1
            if _says_nothing(word):
                continue
            if (coin := known.by_word(word.text)) is not None:
                coin_id = _coin_id(word.text) if word.text.isascii() else coin.id
                coins.setdefault(coin.id, (coin_id, word.text))
            else:
                rest.append(word)
    if not coins and not rest:
        # A name such as usdt.csv: the only word there is names the coin.
        for word in words:
            if word.currency in PEGGED_CODES and (coin := known.by_symbol(word.text)) is not None:
                coins.setdefault(coin.id, (slug(word.text), word.text))
    return coins, rest


def _says_nothing(word: _Word) -> bool:
    if word.low in _NOT_INSIDE and not word.separator and not word.is_first:
        return False
    return (
        word.low in _DECORATION
        or word.currency is not None
        or bool(re.fullmatch(r"(?:top|v|sheet|tabelle|tabellenblatt|feuille)?\d+|\d+y", word.low))
        or bool(re.fullmatch(r"(?=.*\d)[0-9a-f]{5,40}", word.low))
        or ((match := _EXCHANGE.fullmatch(word.low)) is not None and match[1] in FIAT)
    )


def _periods(words: Sequence[_Word], known: KnownCoins) -> tuple[frozenset[timedelta], set[int]]:
    # The lengths that the words of a name may mean, and the positions of these words.
    found: set[timedelta] = set()
    used: set[int] = set()
    for position, word in enumerate(words):
        if position in used:
            continue
        if (joined := _joined(word.text, known)) is not None and joined[1] is not None:
            found.add(joined[1])
        lengths = period_words(word.text)
        following = words[position + 1] if position + 1 < len(words) else None
        if not lengths and word.text.isdigit() and following is not None:
            lengths = period_words(word.text + following.text)
            if lengths:
                used.add(position + 1)
        elif word.text in _MINUTES and position and _joined(words[position - 1].text, known) is not None:
            # Kraken: XBTUSD_1440.
            lengths = frozenset({timedelta(minutes=int(word.text))})
        if lengths:
            found |= lengths
            used.add(position)
    return frozenset(found), used


def _day(stem: str) -> Stamp | None:
    # The only day in a name. Two days are those of a range.
    found: list[Stamp] = []
    for pattern in (_EPOCH, _DAY):
        for match in pattern.finditer(stem):
            try:
                found.append(read_time("-".join(match.groups()), None))
            except RejectedValue:
                continue
    return found[0] if len(set(found)) == 1 else None
