"""The source `coinpaprika`: all tickers of CoinPaprika in one call.

https://docs.coinpaprika.com/api-reference/tickers
"""

from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.errors import SourceError
from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder
from kasparro.model.record import NAME_LIMIT, SYMBOL_LIMIT, Record, check_id, check_text
from kasparro.settings import (
    Secret,
    SourceSettings,
    Variable,
    parse_http_url,
    parse_integer,
    parse_secret,
)
from kasparro.sources import conditional_requests
from kasparro.sources.base import SourceContext, SourceDefinition
from kasparro.sources.crawl import Crawl
from kasparro.sources.http import RetryLimits, UpstreamClient
from kasparro.sources.json_values import NULL, amount, number, rank, when, zero_is_unknown

URL = "https://api.coinpaprika.com/v1"
PRO_URL = "https://api-pro.coinpaprika.com/v1"
PATH = "/tickers"
PARAMETERS = {"quotes": "USD"}
CALLS_A_SECOND = 10
# What the vendor grants without a key. The limit of a paid plan is a setting.
FREE_MONTHLY_CALLS = 20_000


class CoinPaprikaSettings(SourceSettings, frozen=True, kw_only=True):
    """The settings of the source `coinpaprika`."""

    url: Annotated[
        str, Variable("KASPARRO_COINPAPRIKA_URL", "base URL of CoinPaprika", "the public URL", parse_http_url)
    ] = ""
    key: Annotated[
        Secret | None,
        Variable("KASPARRO_COINPAPRIKA_KEY", "API key for CoinPaprika", "none", parse_secret, secret=True),
    ] = None
    monthly_calls: Annotated[
        int | None,
        Variable(
            "KASPARRO_COINPAPRIKA_MONTHLY_CALLS",
            "upstream calls allowed per calendar month",
            "20000 without a key, no limit with one",
            parse_integer(1, 1_000_000_000),
        ),
    ] = None

    def __post_init__(self) -> None:
        # A frozen struct takes derived values only here, and only this way.
        derive = msgspec.structs.force_setattr
        derive(self, "url", self.url or (PRO_URL if self.key else URL))
        if self.monthly_calls is None and self.key is None:
            derive(self, "monthly_calls", FREE_MONTHLY_CALLS)


class Quote(msgspec.Struct, frozen=True):
    """A ticker's values in one currency. Fields that CoinPaprika always sends are required: a field that
    vanished must not look like a null value."""

    price: Raw
    volume_24h: Raw
    market_cap: Raw
    percent_change_1h: Raw = NULL
    percent_change_24h: Raw = NULL
    percent_change_7d: Raw = NULL


class Quotes(msgspec.Struct, frozen=True, rename="upper"):
    """A ticker's quotes. We request one currency."""

    usd: Quote


class Ticker(msgspec.Struct, frozen=True):
    """One item of GET /tickers. Missing values may come as empty strings."""

    id: str
    name: str
    symbol: str
    quotes: Quotes
    rank: Raw = NULL
    circulating_supply: Raw = NULL
    total_supply: Raw = NULL
    max_supply: Raw = NULL
    last_updated: str | None = None


_DECODE = msgspec.json.Decoder(Ticker).decode


def to_record(item: Raw, now: datetime) -> Record:
    """A ticker as a record. A cap, circulating supply or maximum supply of 0 means unknown.

    Raises RejectedValue, msgspec.DecodeError or ValueError.
    """
    ticker = _DECODE(item)
    usd = ticker.quotes.usd
    observed_at = when(ticker.last_updated, "last_updated", now)
    return Record(
        source_id=check_id(ticker.id),
        symbol=check_text(ticker.symbol, "symbol", SYMBOL_LIMIT),
        name=check_text(ticker.name, "name", NAME_LIMIT),
        observed_at=observed_at or now,
        has_source_time=observed_at is not None,
        rank=rank(ticker.rank, "rank"),
        price_usd=amount(usd.price, "quotes.USD.price"),
        market_cap_usd=zero_is_unknown(amount(usd.market_cap, "quotes.USD.market_cap")),
        volume_24h_usd=amount(usd.volume_24h, "quotes.USD.volume_24h"),
        circulating_supply=zero_is_unknown(amount(ticker.circulating_supply, "circulating_supply")),
        total_supply=amount(ticker.total_supply, "total_supply"),
        max_supply=zero_is_unknown(amount(ticker.max_supply, "max_supply")),
        percent_change_1h=number(usd.percent_change_1h, "quotes.USD.percent_change_1h"),
        percent_change_24h=number(usd.percent_change_24h, "quotes.USD.percent_change_24h"),
        percent_change_7d=number(usd.percent_change_7d, "quotes.USD.percent_change_7d"),
    )


class CoinPaprika:
    """Fetches the whole list in one call."""

    name = "coinpaprika"

    def __init__(self, base_url: str, key: Secret | None, limits: RetryLimits | None = None) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": key.reveal()} if key else {}
        with_key = "with a key" if key else "without a key"
        self._access = f"{with_key} (KASPARRO_COINPAPRIKA_KEY, KASPARRO_COINPAPRIKA_URL)"
        self._limits = limits or RetryLimits()
        # The vendor's limit is for the vendor's hosts only.
        host = urlsplit(base_url).hostname or ""
        self._limiter = AsyncLimiter(CALLS_A_SECOND, 1) if host.endswith("coinpaprika.com") else None

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The whole list, split into batches. Raises SourceError."""
        known = {page.number: page for page in await context.known_pages()}
        earlier, now = known.get(1), context.clock()
        fingerprint = conditional_requests.request_fingerprint(self._base_url, PATH, PARAMETERS)
        limits = msgspec.structs.replace(self._limits, attempts=1) if context.probing else self._limits
        async with UpstreamClient(
            "CoinPaprika", self._base_url, self._headers, context, self._limiter, access=self._access
        ) as client:
            response = await client.get(
                PATH, PARAMETERS, limits, conditional_requests.validators(earlier, fingerprint, now)
            )
        crawl, builder = Crawl(), BatchBuilder()
        items = response.items or []
        if response.items is None:
            builder.repeat(conditional_requests.record_count(response, earlier))
        elif not items:
            raise SourceError("CoinPaprika sent an empty list")
        now, is_complete = response.received_at, True
        for start in range(0, max(len(items), 1), BATCH_ROWS):
            part = items[start : start + BATCH_ROWS]
            await crawl.add_items(builder, part, partial(to_record, now=now))
            context.progress(start + len(part), len(items))
            is_complete = is_complete and not builder.has_rejects
            # The page covers the whole list, so the last batch commits it.
            page = None
            if start + BATCH_ROWS >= len(items):
                page = conditional_requests.crawled_page(
                    response,
                    earlier,
                    number=1,
                    crawl_started_at=now,
                    remaining_pages=(),
                    now=now,
                    is_last=True,
                    is_complete=is_complete,
                    fingerprint=fingerprint,
                )
            yield builder.take(page=page)


SOURCE = SourceDefinition(
    name=CoinPaprika.name,
    settings=CoinPaprikaSettings,
    build=lambda settings: CoinPaprika(settings.url, settings.key),
    read=to_record,
)
