"""The source `coinpaprika`: all tickers of CoinPaprika in one call.

https://docs.coinpaprika.com/api-reference/tickers
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.errors import SourceError
from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder
from kasparro.model.contract_list import ContractList
from kasparro.model.record import NAME_LIMIT, SYMBOL_LIMIT, Record, check_id
from kasparro.settings import (
    Secret,
    SourceSettings,
    Variable,
    parse_http_url,
    parse_integer,
    parse_secret,
)
from kasparro.sources import conditional_requests, contracts
from kasparro.sources.base import SourceContext, SourceDefinition
from kasparro.sources.crawl import Crawl
from kasparro.sources.http import RetryLimits, UpstreamClient
from kasparro.sources.json_values import MISSING, NULL, OptionalValues, amount, when, zero_is_unknown

URL = "https://api.coinpaprika.com/v1"
PRO_URL = "https://api-pro.coinpaprika.com/v1"
PATH = "/tickers"
PARAMETERS = {"quotes": "USD"}
# The ids of the platforms. Each platform has a list of its own below this path.
CONTRACTS_PATH = "/contracts"
# Ten times the platforms of 2026.
PLATFORMS_LIMIT = 1_000
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
    """A ticker's values in one currency."""

    price: Raw
    volume_24h: Raw = MISSING
    market_cap: Raw = MISSING
    percent_change_1h: Raw = NULL
    percent_change_24h: Raw = NULL
    percent_change_7d: Raw = NULL


class Quotes(msgspec.Struct, frozen=True, rename="upper"):
    """A ticker's quotes. We request one currency."""

    usd: Quote


class Ticker(msgspec.Struct, frozen=True):
    """One item of GET /tickers. Missing values may come as empty strings. Only an item with an id and a price
    is worth a record."""

    id: str
    quotes: Quotes
    name: Raw = MISSING
    symbol: Raw = MISSING
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
    source_id = check_id(ticker.id)
    price = amount(usd.price, "quotes.USD.price")
    observed_at = when(ticker.last_updated, "last_updated", now)
    read = OptionalValues(source_id)
    return Record(
        source_id=source_id,
        symbol=read.text("symbol", ticker.symbol, SYMBOL_LIMIT),
        name=read.text("name", ticker.name, NAME_LIMIT),
        observed_at=observed_at or now,
        has_source_time=observed_at is not None,
        rank=read.rank("rank", ticker.rank),
        price_usd=price,
        market_cap_usd=zero_is_unknown(read.amount("market_cap_usd", usd.market_cap)),
        volume_24h_usd=read.amount("volume_24h_usd", usd.volume_24h),
        circulating_supply=zero_is_unknown(read.amount("circulating_supply", ticker.circulating_supply)),
        total_supply=read.amount("total_supply", ticker.total_supply),
        max_supply=zero_is_unknown(read.amount("max_supply", ticker.max_supply)),
        percent_change_1h=read.number("percent_change_1h", usd.percent_change_1h),
        percent_change_24h=read.number("percent_change_24h", usd.percent_change_24h),
        percent_change_7d=read.number("percent_change_7d", usd.percent_change_7d),
        invalid=read.invalid,
    )


class ListedContract(msgspec.Struct, frozen=True):
    """One item of GET /contracts/{platform}. `id` is the id of the coin."""

    id: str
    address: str
    active: bool = True


_DECODE_CONTRACT = msgspec.json.Decoder(ListedContract).decode
_DECODE_PLATFORM = msgspec.json.Decoder(
    Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
).decode


def read_contracts(path: str, items: Sequence[Raw], received_at: datetime) -> ContractList | None:
    """The list of the platforms, or the contracts of one platform. Raises SourceError."""
    if path == CONTRACTS_PATH:
        # An id becomes a part of a path.
        platforms, unread = contracts.read_each(items[:PLATFORMS_LIMIT], _DECODE_PLATFORM)
        lists = tuple(f"{CONTRACTS_PATH}/{platform}" for platform in platforms)
        return ContractList(path=path, received_at=received_at, lists=lists, unread=unread)
    if not path.startswith(f"{CONTRACTS_PATH}/"):
        return None
    platform = path.removeprefix(f"{CONTRACTS_PATH}/")
    listed, unread = contracts.read_each(items, _DECODE_CONTRACT)
    found = [(contract.id, platform, contract.address) for contract in listed if contract.active]
    return contracts.contract_list(path, received_at, found, platform=platform, unread=unread)


class CoinPaprika:
    """Fetches the whole list in one call."""

    name = "coinpaprika"
    contract_root = CONTRACTS_PATH

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
        async with self._client(context) as client:
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
        context.summary.list_began_at = now

    async def contract_lists(
        self, context: SourceContext, paths: AsyncIterator[str]
    ) -> AsyncGenerator[ContractList, None]:
        """The list of the platforms, and the contracts of each. Raises SourceError."""
        async with self._client(context) as client:
            async for found in contracts.fetch(client, paths, {}, read_contracts):
                yield found

    def _client(self, context: SourceContext) -> UpstreamClient:
        return UpstreamClient(
            "CoinPaprika", self._base_url, self._headers, context, self._limiter, access=self._access
        )


SOURCE = SourceDefinition(
    name=CoinPaprika.name,
    settings=CoinPaprikaSettings,
    build=lambda settings: CoinPaprika(settings.url, settings.key),
    read=to_record,
    read_contracts=read_contracts,
)
