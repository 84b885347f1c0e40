"""Tables of the column names in archives, by field of the record. A new name is one word."""

import re
import unicodedata
from typing import Literal

import msgspec


def word_set(text: str) -> frozenset[str]:
    """The words of a text as a set, to write long lists in few lines."""
    return frozenset(text.split())


# In order of preference: of several columns for a field, the one whose name is first here is read. Names are
# as `normal` returns them, without a currency.
NAMES: dict[str, tuple[str, ...]] = {
    field: tuple(names.split())
    for field, names in {
        "id": "id coinid tickerid coingeckoid coinpaprikaid assetid slug",
        "symbol": "symbol ticker nameabr coinsymbol sym abbreviation",
        "name": "name coinname cryptoname coin cryptocurrency currencyname crypto",
        "currency": "vscurrency quotecurrency currency convert quote",
        "closed_at": "timeperiodend closetime timeclose endtime closedat",
        "time": (
            "lastupdated lastupdate snappedat observedat timestamp unix unixtime unixtimestamp opentime "
            "timeopen datetime dateutc date dateiso day time timeutc readabletimestamp snapshotdate "
            "snapshotat createdat fetchedat extractedat timeperiodstart start datum fecha observationdate "
            "data"
        ),
        "rank": "rank marketcaprank cmcrank",
        "open": "open openprice opening priceopen 24hopen eroffn ouv apertura abertura",
        "high": "high highprice pricehigh 24hhigh hoch plushaut maximo massimo maxima",
        "low": "low lowprice pricelow 24hlow tief plusbas minimo minima",
        "close": (
            "close closeprice closelast closing closingprice priceclose schluss schlusskurs cloture cierre "
            "chiusura fechamento"
        ),
        "price": (
            "price currentprice pricevalue lastprice spotprice prices preis kurs zuletzt dernier ultimo "
            "prix precio prezzo preco"
        ),
        "market_cap_usd": (
            "marketcap mktcap mcap currentmarketcap marketcapitalization marketcapitalisation marketcaps "
            "capmrktcur"
        ),
        "volume_24h_usd": (
            "24hvolume volume24h volume24hr volume24hours 24hrvolume totalvolume totalvolumes vol24h 24hvol"
        ),
        "volume": "volume vol",
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
    }.items()
}
FIELD_OF = {name: field for field, names in NAMES.items() for name in names}

# Columns of clock times next to a column of days, with the zone that the name gives.
CLOCKS: dict[str, str] = {
    "time": "UTC",
    "timeutc": "UTC",
    "timegmt": "UTC",
    "timeberlin": "Europe/Berlin",
    "timelondon": "Europe/London",
    "timeparis": "Europe/Paris",
    "timenewyork": "America/New_York",
    "timetokyo": "Asia/Tokyo",
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
SIGNS = {
    "€": "EUR",
    "£": "GBP",
    "¥": "JPY",
    "R$": "BRL",
    "₹": "INR",
    "₩": "KRW",
    "₽": "RUB",
    "₺": "TRY",
    "₿": "BTC",
}

LayoutKind = Literal["quotes", "candles"]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A common shape of file: the names that its header must have, and what is known about such files.

    `usd` says that figures are in US dollars unless header, cells or file name give another currency.
    `volume_usd` says that a column called just volume is the day's turnover in that currency; in other
    layouts it may count coins. `daily` says that candles are of a day if the rows do not show their length.
    `fields` has names that mean a field in this layout only.
    """

    name: str
    kind: LayoutKind
    needs: frozenset[str] = frozenset()
    usd: bool = False
    volume_usd: bool = False
    daily: bool = False
    fields: dict[str, str] = {}


# A file has the first layout whose names are all in its header. The last layouts need only what their kind
# needs.
LAYOUTS = (
    Layout(
        name="CoinMarketCap ticker dump",
        kind="quotes",
        needs=word_set("symbol priceusd lastupdated"),
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="CoinGecko markets",
        kind="quotes",
        needs=word_set("id symbol currentprice marketcap lastupdated"),
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="CoinGecko export",
        kind="quotes",
        needs=word_set("snappedat price marketcap totalvolume"),
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="snapshots of many coins",
        kind="quotes",
        needs=word_set("timestamp coinid price marketcap totalvolume"),
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="CoinMarketCap history of all coins",
        kind="candles",
        needs=word_set("slug symbol name date ranknow open high low close volume market"),
        daily=True,
        usd=True,
        volume_usd=True,
        fields={"market": "market_cap_usd"},
    ),
    Layout(
        name="CoinMarketCap export",
        kind="candles",
        needs=word_set("timeopen timeclose open high low close volume marketcap"),
        daily=True,
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="CoinMarketCap daily prices of coins",
        kind="candles",
        needs=word_set("name symbol date open high low close volume marketcap"),
        daily=True,
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="CoinMarketCap daily prices",
        kind="candles",
        needs=word_set("date open high low close volume marketcap"),
        daily=True,
        usd=True,
        volume_usd=True,
    ),
    Layout(
        name="Yahoo Finance download",
        kind="candles",
        needs=word_set("time open high low close volume tickerrow"),
        volume_usd=True,
    ),
    Layout(
        name="Yahoo Finance prices",
        kind="candles",
        needs=word_set("date open high low close adjclose volume"),
        volume_usd=True,
    ),
    Layout(
        name="Investing.com prices",
        kind="candles",
        needs=word_set("date price open high low changepercent"),
        usd=True,
    ),
    Layout(name="candles", kind="candles", needs=word_set("close")),
    Layout(name="candles", kind="candles", needs=word_set("open high low")),
    Layout(name="quotes", kind="quotes"),
)

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NOT_WORD = re.compile(r"[^0-9a-z]+")


class Heading(msgspec.Struct, frozen=True):
    """The meaning of a header cell: its words joined, the same without the currency, and the currency.

    `explicit` says that the overrides name the field, which is then in `full`.
    """

    full: str
    base: str
    currency: str | None
    explicit: bool = False


# Represents a line below the header that gives the ticker of each column.
TICKER_ROW = Heading("tickerrow", "tickerrow", None)


def normal(cell: str) -> str:
    """A header cell in lower case, without blanks, stars, underscores and invisible marks."""
    return _NOT_WORD.sub("", _plain(cell).lower().replace("%", "percent"))


def _plain(cell: str) -> str:
    # Without accents, and with ASCII letters in place of compatible ones.
    decomposed = unicodedata.normalize("NFKD", cell)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).replace("\ufeff", "")


def heading(cell: str) -> Heading:
    """The meaning of a header cell such as `Market Cap**`, `24h_volume_usd`, `priceEur`, `Volume (USD)`."""
    full = normal(cell)
    words = [
        word
        for word in _NOT_WORD.split(_CAMEL.sub(" ", _plain(cell).replace("%", " percent ")).lower())
        if word
    ]
    if len(words) > 2 and words[0] in {"quote", "quotes"} and words[1] in CURRENCIES:
        # A flattened response of an API: `quotes.USD.price`.
        return Heading(full, "".join(words[2:]), words[1].upper())
    for position in (-1, 0):
        if (
            len(words) > 1
            and (currency := CURRENCY_WORDS.get(words[position], words[position])) in CURRENCIES
        ):
            rest = "".join(words[:-1] if position == -1 else words[1:])
            if rest in FIELD_OF:
                return Heading(full, rest, currency.upper())
    return Heading(full, full, None)


def layout_of(headings: list[Heading]) -> Layout | None:
    """The first layout whose names are all present, with a price and a time; None if no layout fits."""
    fields = {FIELD_OF.get(heading.base) for heading in headings}
    present = {heading.full for heading in headings} | {heading.base for heading in headings} | fields
    timed = "time" in fields or "closed_at" in fields
    for layout in LAYOUTS:
        priced = "close" in fields or "price" in fields if layout.kind == "candles" else "price" in fields
        if layout.needs <= present and priced and (timed or not layout.needs):
            return layout
    return None
