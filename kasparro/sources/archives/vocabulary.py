"""The names of columns in archives, by field of the record, and of currencies. A new name is one word."""

import re
import unicodedata

import msgspec


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set, to write long lists in few lines."""
    return frozenset(text.split())


# A header cell of pandas for two levels of names: `('Close', 'BTC-USD')`.
TWO_LEVELS = re.compile(r"""\(\s*['"]([^'"]*)['"],\s*['"]([^'"]*)['"]\s*\)""")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORD = re.compile(r"[\W_]+")


def normal(cell: str) -> str:
    """A header cell in lower case, without blanks, stars, underscores and invisible marks."""
    return _NOT_WORD.sub("", _plain(cell).lower().replace("%", "percent"))


def _plain(cell: str) -> str:
    # Without accents, and with ASCII letters in place of compatible ones.
    decomposed = unicodedata.normalize("NFKD", cell)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).replace("\ufeff", "")


# In order of preference: of several columns for a field, the one whose name is first here is read. Names are
# without blanks and without a currency. Those in other languages are of the editions of Investing.com and of
# Stooq.
_NAMES = {
    "id": "id coinid tickerid coingeckoid coinpaprikaid assetid slug",
    "symbol": "symbol ticker nameabr coinsymbol sym abbreviation",
    "name": "name coinname cryptoname coin assetname cryptocurrency currencyname crypto",
    "currency": "vscurrency quotecurrency currency convert quote",
    "closed_at": "timeperiodend closetime timeclose endtime closedat",
    "time": (
        "lastupdated lastupdate snappedat observedat timestamp unix unixtime unixtimestamp opentime timeopen "
        "datetime date dateiso day time localtime readabletimestamp snapshotdate snapshotat createdat "
        "fetchedat extractedat capturedat collectedat recordedat timeperiodstart start datum fecha "
        "observationdate data tarih дата 日付け 日付 날짜 日期"
    ),
    "period": "per period",
    "rank": "rank marketcaprank cmcrank",
    "open": (
        "open openprice opening priceopen 24hopen eröffn eröffnung ouv ouverture apertura abertura açılış "
        "otwarcie откр открытие 始値 시가 开盘 开盘价 開盤 開市"
    ),
    "high": (
        "high highprice pricehigh 24hhigh max hoch hoechst plushaut massimo máximo máxima yüksek "
        "najwyższy najwyzszy макс максимум 高値 고가 高 最高 最高价"
    ),
    "low": (
        "low lowprice pricelow 24hlow min tief tiefst plusbas minimo mínimo mínima düşük najniższy najnizszy "
        "мин минимум 安値 저가 低 最低 最低价"
    ),
    "close": (
        "close closeprice closelast closing closingprice priceclose closeclosepriceadjustedforsplits schluss "
        "schlusskurs clôture cierre chiusura fechamento kapanış zamknięcie zamkniecie закрытие 終値 종가 "
        "收盘 收盘价 收盤 收市"
    ),
    "price": (
        "price currentprice pricevalue lastprice spotprice prices preis kurs zuletzt dernier último ultimo "
        "prix precio prezzo preço şimdi ostatnio цена marketprice cbbtcusd cbethusd cbltcusd cbbchusd"
    ),
    "market_cap_usd": (
        "marketcap mktcap mcap currentmarketcap marketcapitalization marketcapitalisation marketcaps "
        "capmrktcur"
    ),
    "volume_24h_usd": (
        "24hvolume volume24h volume24hr volume24hours 24hrvolume totalvolume totalvolumes vol24h 24hvol"
    ),
    "volume": "volume vol hac wol wolumen объём 出来高 거래량 交易量 成交量",
    "circulating_supply": "circulatingsupply availablesupply circulation",
    "total_supply": "totalsupply",
    "max_supply": "maxsupply",
    "percent_change_1h": (
        "percentchange1h pricechangepercentage1h pricechangepercentage1hincurrency percentagechange1hr "
        "change1hpercent percent1h 1hpercent"
    ),
    "percent_change_24h": (
        "percentchange24h pricechangepercentage24h pricechangepercentage24hincurrency "
        "percentagechange24hr change24hpercent percent24h 24hpercent"
    ),
    "percent_change_7d": (
        "percentchange7d pricechangepercentage7d pricechangepercentage7dincurrency percentagechange7d "
        "change7dpercent percent7d 7dpercent"
    ),
    # Read by no record; it shows that a file is of Investing.com.
    "day_change": (
        "changepercent variationpercent percentvar varpercent farkpercent zmianapercent измpercent "
        "変化率percent 변동percent 涨跌幅 percentchange +/-%"
    ),
}
# Names are as `normal` returns them.
NAMES = {field: tuple(map(normal, names.split())) for field, names in _NAMES.items()}
FIELD_OF = {name: field for field, names in NAMES.items() for name in names}

# Time zones by the words of a header: `Gmt time`, `date_utc`, `time_berlin`.
ZONES = {
    "utc": "UTC",
    "gmt": "UTC",
    "berlin": "Europe/Berlin",
    "london": "Europe/London",
    "paris": "Europe/Paris",
    "newyork": "America/New_York",
    "tokyo": "Asia/Tokyo",
}

FIAT = word_set(
    """
    usd eur gbp brl jpy cny cad aud chf inr krw rub try mxn idr zar sek nok dkk pln czk huf ars clp aed
    bdt bhd bmd gel hkd ils kwd lkr mmk myr ngn nzd php pkr sar sgd thb twd uah vef vnd xdr ron bgn
    """
)
# Coins that prices are quoted in. A price in them is not a price in USD.
COINS = word_set(
    """
    btc eth bnb sats bits xrp ltc bch dot sol link xlm eos yfi usdt usdc busd tusd dai fdusd ust
    """
)
CURRENCIES = FIAT | COINS
CURRENCY_WORDS = {
    "euro": "eur",
    "euros": "eur",
    "dollar": "usd",
    "dollars": "usd",
    "yen": "jpy",
    "bitcoins": "btc",
}
# Coins pegged to the dollar. They are not dollars.
PEGGED = frozenset({"USDT", "USDC", "BUSD", "TUSD", "DAI", "FDUSD"})
PEGGED_CODES = frozenset(code.lower() for code in PEGGED)
SIGNS = {
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "R$": "BRL",
    "A$": "AUD",
    "C$": "CAD",
    "HK$": "HKD",
    "NT$": "TWD",
    "NZ$": "NZD",
    "S$": "SGD",
    "₹": "INR",
    "₩": "KRW",
    "₽": "RUB",
    "₺": "TRY",
    "₿": "BTC",
    "zł": "PLN",
    "Rs": "INR",
}


class Heading(msgspec.Struct, frozen=True):
    """The meaning of a header cell: its words joined, the same without currency and zone, and these two.

    `explicit` says that the overrides name the field, which is then in `full`.
    """

    full: str
    base: str
    currency: str | None = None
    explicit: bool = False
    zone: str | None = None


def heading(cell: str) -> Heading:
    """The meaning of a header cell such as `Market Cap**`, `24h_volume_usd`, `priceEur`, `Time (UTC)`."""
    if levels := TWO_LEVELS.fullmatch(cell.strip()):
        return next((heading(part) for part in levels.groups() if normal(part) in FIELD_OF), Heading("", ""))
    full = normal(cell)
    spaced = _CAMEL.sub(" ", _plain(cell).replace("%", " percent ")).lower().replace("new york", "newyork")
    words = [word for word in _NOT_WORD.split(spaced) if word]
    if len(words) > 2 and words[0] in {"quote", "quotes"} and words[1] in CURRENCIES:
        # A flattened response of an API: `quotes.USD.price`.
        return Heading(full, "".join(words[2:]), words[1].upper())
    for position, rest in ((-1, "".join(words[:-1])), (0, "".join(words[1:]))):
        if len(words) < 2 or rest not in FIELD_OF:
            continue
        word = words[position]
        # `price_btc` is a price in BTC, `btc_price` may be the price of BTC.
        currencies = CURRENCIES if position else FIAT | PEGGED_CODES
        if (currency := CURRENCY_WORDS.get(word, word)) in currencies:
            return Heading(full, rest, currency.upper())
        if word in ZONES:
            return Heading(full, rest, zone=ZONES[word])
    return Heading(full, full)
