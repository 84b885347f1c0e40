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
    "jst": "Asia/Tokyo",
    "kst": "Asia/Seoul",
    "msk": "Europe/Moscow",
}
# Words of a header that say that times are in a zone, but not surely in which: a zone that may be meant.
UNCLEAR_ZONES = {
    **dict.fromkeys(("est", "edt", "et"), "America/New_York"),
    **dict.fromkeys(("cst", "cdt", "ct"), "America/Chicago"),
    **dict.fromkeys(("pst", "pdt", "pt"), "America/Los_Angeles"),
    **dict.fromkeys(("cet", "cest", "mez", "mesz", "local"), "Europe/Berlin"),
    "bst": "Europe/London",
    "eet": "Europe/Athens",
    "hkt": "Asia/Hong_Kong",
    "ist": "Asia/Kolkata",
    "sgt": "Asia/Singapore",
}
_OFFSET = re.compile(r"(?:utc|gmt)\s*([+-])\s*(\d{1,2})(?::?00)?(?!\d)", re.IGNORECASE)

FIAT = word_set(
    """
    usd eur gbp brl jpy cny cad aud chf inr krw rub try mxn idr zar sek nok dkk pln czk huf ars clp aed
    bdt bhd bmd gel hkd ils kwd lkr mmk myr ngn nzd php pkr sar sgd thb twd uah vef vnd xdr ron bgn
    """
)
# Coins that prices are quoted in. A price in them is not a price in USD.
COINS = word_set(
    """
    btc eth bnb sats bits xrp ltc bch dot sol link xlm eos yfi usdt usdc busd tusd dai fdusd ust pyusd
    rlusd gusd usde usd1 usdp xbt
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
PEGGED = frozenset(
    {"USDT", "USDC", "BUSD", "TUSD", "DAI", "FDUSD", "PYUSD", "RLUSD", "GUSD", "USDE", "USD1", "USDP"}
)
PEGGED_CODES = frozenset(code.lower() for code in PEGGED)
# Signs of currencies. Of several that fit, the first is read.
SIGNS = {
    "US$": "USD",
    "MX$": "MXN",
    "AR$": "ARS",
    "CA$": "CAD",
    "AU$": "AUD",
    "HK$": "HKD",
    "NT$": "TWD",
    "NZ$": "NZD",
    "R$": "BRL",
    "A$": "AUD",
    "C$": "CAD",
    "S$": "SGD",
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "₹": "INR",
    "₩": "KRW",
    "₽": "RUB",
    "₺": "TRY",
    "₿": "BTC",
    "₱": "PHP",
    "₦": "NGN",
    "₪": "ILS",
    "฿": "THB",
    "₫": "VND",
    "₴": "UAH",
    "zł": "PLN",
    "Rs": "INR",
    "$": "USD",
}
_CODE = re.compile(r"(?<![A-Za-z])[A-Za-z]{3,5}(?![A-Za-z])")


class Heading(msgspec.Struct, frozen=True):
    """The meaning of a header cell: its words joined, the same without currency and zone, and these two.

    `explicit` says that the overrides name the field, which is then in `full`. `unclear_zone` is a zone that
    a word of the header may mean.
    """

    full: str
    base: str
    currency: str | None = None
    explicit: bool = False
    zone: str | None = None
    unclear_zone: str | None = None


def heading(cell: str) -> Heading:
    """The meaning of a header cell such as `Market Cap**`, `24h_volume_usd`, `priceEur`, `Time (UTC)`."""
    if levels := TWO_LEVELS.fullmatch(cell.strip()):
        return next((heading(part) for part in levels.groups() if normal(part) in FIELD_OF), Heading("", ""))
    full = normal(cell)
    if offset := _OFFSET.search(cell):
        rest = heading(_OFFSET.sub("", cell))
        # The names have the signs of POSIX.
        sign = "-" if offset[1] == "+" else "+"
        zone = f"Etc/GMT{sign}{int(offset[2])}" if int(offset[2]) <= 12 else None
        return msgspec.structs.replace(rest, zone=zone)
    spaced = _CAMEL.sub(" ", _plain(cell).replace("%", " percent ")).lower().replace("new york", "newyork")
    spaced = spaced.replace("us$", " usd ")
    words = [word for word in _NOT_WORD.split(spaced) if word and word != "in"]
    if len(words) > 2 and words[0] in {"quote", "quotes"} and words[1] in CURRENCIES:
        # A flattened response of an API: `quotes.USD.price`.
        return Heading(full, "".join(words[2:]), words[1].upper())
    for position, rest_of in ((-1, "".join(words[:-1])), (0, "".join(words[1:]))):
        if len(words) < 2 or rest_of not in FIELD_OF:
            continue
        word = words[position]
        # `price_btc` is a price in BTC, `btc_price` may be the price of BTC.
        currencies = CURRENCIES if position else FIAT | PEGGED_CODES
        if (currency := CURRENCY_WORDS.get(word, word)) in currencies:
            return Heading(full, rest_of, currency.upper())
        if word in ZONES:
            return Heading(full, rest_of, zone=ZONES[word])
        if word in UNCLEAR_ZONES and FIELD_OF[rest_of] in {"time", "closed_at"}:
            return Heading(full, rest_of, unclear_zone=UNCLEAR_ZONES[word])
    joined = "".join(words)
    return Heading(full, joined if joined in FIELD_OF else full, sign_in(cell))


def sign_in(text: str) -> str | None:
    """The currency of the first currency sign in a text."""
    return next((currency for sign, currency in SIGNS.items() if sign in text), None)


def currencies_in(text: str) -> set[str]:
    """The currencies of the signs and codes in a text, such as `5.5 EUR` or `$5.5`."""
    found = {code.upper() for code in _CODE.findall(text) if code.lower() in FIAT | PEGGED_CODES}
    for sign, currency in SIGNS.items():
        if sign in text:
            found.add(currency)
            text = text.replace(sign, " ")
    return found


def zone_in(cell: str) -> tuple[str | None, str | None]:
    """The zone that a header cell of any meaning names, and the zone that it may mean."""
    own = heading(f"time {cell}" if _OFFSET.search(cell) else cell)
    words = [word for word in _NOT_WORD.split(_CAMEL.sub(" ", _plain(cell)).lower()) if word]
    zone = own.zone or next((ZONES[word] for word in words if word in ZONES), None)
    unclear = own.unclear_zone or next((UNCLEAR_ZONES[word] for word in words if word in UNCLEAR_ZONES), None)
    return zone, None if zone else unclear


def currency_in(cell: str) -> str | None:
    """The currency that a header cell of any meaning names: `Value (EUR)`, `BTC/EUR`, `Price €`."""
    words = [word for word in _NOT_WORD.split(_CAMEL.sub(" ", _plain(cell)).lower()) if word]
    codes = [CURRENCY_WORDS.get(word, word) for word in words]
    found = [code.upper() for code in codes if code in FIAT or code in PEGGED_CODES]
    return found[-1] if found else sign_in(cell)
