"""The layouts of archives: what a header of each must have, and what is known about its files."""

from collections.abc import Iterable
from typing import Literal

import msgspec

from kasparro.sources.archives.vocabulary import FIELD_OF, Heading, word_set

LayoutKind = Literal["quotes", "candles"]


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """A common shape of file: the names or fields that its header must have, and what is known of such files.

    `usd` says that the site gives such figures in US dollars only. Where its users choose the currency, only
    the file itself can show it. `spelled` has header cells of which one must be spelled exactly so for that.
    `volume` says whether a column called just volume is money or counts coins; None: unknown. `daily` says
    that candles are of a day if the rows do not show their length. `local` says that times are in a time zone
    that the file does not show; `zone` is a likely one. `ends` says that times end candles. `width` is the
    number of columns of a layout that has no others. `fields` has names that mean a field in this layout
    only. `header` has the names of the columns of a layout without a header row.
    """

    name: str
    kind: LayoutKind
    needs: frozenset[str] = frozenset()
    usd: bool = False
    volume: Literal["money", "coins"] | None = None
    daily: bool = False
    local: bool = False
    zone: str = "Europe/Athens"
    ends: bool = False
    width: int | None = None
    spelled: frozenset[str] = frozenset()
    fields: dict[str, str] = {}
    header: tuple[str, ...] = ()


# Represents a line below the header that gives the ticker of each column.
TICKER_ROW = Heading("tickerrow", "tickerrow")

# How CoinMarketCap's pages, and the programs that copied them, write the header of the market cap.
_CAP_SPELLINGS = frozenset({"Market Cap", "Marketcap", "MarketCap", "marketCap"})

# A file has the first layout whose names are all in its header. The last layouts need only what their kind
# needs.
LAYOUTS = (
    Layout(
        name="CoinMarketCap ticker dump",
        kind="quotes",
        needs=word_set("symbol priceusd lastupdated"),
        volume="money",
    ),
    Layout(
        name="CoinGecko markets",
        kind="quotes",
        needs=word_set("id symbol currentprice marketcap lastupdated"),
        volume="money",
    ),
    Layout(
        name="CoinGecko export",
        kind="quotes",
        needs=word_set("snappedat price marketcap totalvolume"),
        volume="money",
    ),
    Layout(
        name="snapshots of many coins",
        kind="quotes",
        needs=word_set("timestamp coinid price marketcap totalvolume"),
        volume="money",
    ),
    # The historical data of CoinMarketCap's pages up to 2021: "Currency in USD", with no choice.
    Layout(
        name="CoinMarketCap history of all coins",
        kind="candles",
        needs=word_set("slug symbol name date ranknow open high low close volume market"),
        daily=True,
        usd=True,
        volume="money",
        fields={"market": "market_cap_usd"},
    ),
    # A user chooses the currency; its number is in the column `name`.
    Layout(
        name="CoinMarketCap export",
        kind="candles",
        needs=word_set("timeopen timeclose open high low close volume marketcap"),
        daily=True,
        volume="money",
    ),
    Layout(
        name="CoinMarketCap chart export",
        kind="candles",
        needs=word_set("name open high low close volume marketcap timestamp"),
        volume="money",
    ),
    # Its prices and its volume are those of CoinCodex's page in US dollars, the only currency of the export.
    Layout(
        name="CoinCodex export",
        kind="candles",
        needs=word_set("start end open high low close volume marketcap"),
        daily=True,
        usd=True,
        volume="money",
    ),
    Layout(
        name="CoinMarketCap daily prices of coins",
        kind="candles",
        needs=word_set("name symbol date open high low close volume marketcap"),
        daily=True,
        usd=True,
        spelled=_CAP_SPELLINGS,
        volume="money",
    ),
    Layout(
        name="CoinMarketCap daily prices",
        kind="candles",
        needs=word_set("date open high low close volume marketcap"),
        daily=True,
        usd=True,
        spelled=_CAP_SPELLINGS,
        volume="money",
    ),
    Layout(
        name="MetaTrader 5 export",
        kind="candles",
        needs=word_set("time open high low close tickvol spread"),
        local=True,
        volume="coins",
    ),
    Layout(
        name="Stooq bulk data",
        kind="candles",
        needs=word_set("ticker per date time open high low close vol openint"),
        volume="coins",
    ),
    # The clock of Finam's exports is that of Moscow unless its user chooses another.
    Layout(
        name="Finam export",
        kind="candles",
        needs=word_set("ticker per date time open high low close vol"),
        local=True,
        zone="Europe/Moscow",
        volume="coins",
    ),
    # https://www.bitmex.com/app/restAPI: the timestamp of a bucket is its end.
    Layout(
        name="BitMEX buckets",
        kind="candles",
        needs=word_set("timestamp symbol open high low close homenotional foreignnotional"),
        ends=True,
        volume="coins",
    ),
    Layout(
        name="series of Quandl",
        kind="quotes",
        needs=word_set("date value"),
        width=2,
        fields={"value": "price"},
    ),
    Layout(
        name="Yahoo Finance download",
        kind="candles",
        needs=word_set("time open high low close volume tickerrow"),
        volume="money",
    ),
    Layout(
        name="Yahoo Finance prices",
        kind="candles",
        needs=word_set("time open high low close adjclose volume"),
        volume="money",
    ),
    # Investing.com shows a coin without a pair in US dollars; the other editions are not checked.
    Layout(
        name="Investing.com prices",
        kind="candles",
        needs=word_set("date price open high low changepercent"),
        usd=True,
        volume="coins",
    ),
    Layout(
        name="Investing.com prices",
        kind="candles",
        needs=word_set("time open high low day_change"),
        volume="coins",
    ),
    Layout(name="candles", kind="candles", needs=word_set("close")),
    Layout(name="candles", kind="candles", needs=word_set("open high low")),
    Layout(name="quotes", kind="quotes"),
)

# Layouts without a header row, by the number of their columns. Names that are no field are not read.
HEADERLESS = (
    # https://github.com/binance/binance-public-data: open time to close time in ms, from 2025 on in µs.
    Layout(
        name="Binance klines",
        kind="candles",
        volume="coins",
        header=(
            *("timestamp", "open", "high", "low", "close", "volume", "end of candle", "quote volume"),
            *("trades", "taker volume", "taker quote volume", "unused"),
        ),
    ),
    # https://support.kraken.com/articles/360047124832: timestamp to trades.
    Layout(
        name="Kraken OHLCVT",
        kind="candles",
        volume="coins",
        header=("timestamp", "open", "high", "low", "close", "volume", "trades"),
    ),
    Layout(
        name="Kraken OHLC with average",
        kind="candles",
        volume="coins",
        header=("timestamp", "open", "high", "low", "close", "average", "volume", "trades"),
    ),
    Layout(
        name="MetaTrader 4 history",
        kind="candles",
        local=True,
        volume="coins",
        header=("date", "time", "open", "high", "low", "close", "volume"),
    ),
)


def layout_of(headings: Iterable[Heading]) -> Layout | None:
    """The first layout whose names are all present, with a price and a time; None if no layout fits."""
    headings = [*headings]
    fields = {FIELD_OF.get(heading.base) for heading in headings}
    present = {heading.full for heading in headings} | {heading.base for heading in headings} | fields
    timed = "time" in fields or "closed_at" in fields
    for layout in LAYOUTS:
        if layout.width not in {None, len(headings)}:
            continue
        priced = not {"price", *(("close",) if layout.kind == "candles" else ())}.isdisjoint(
            fields | {layout.fields.get(heading.base) for heading in headings}
        )
        if layout.needs <= present and priced and (timed or not layout.needs):
            return layout
    return None
