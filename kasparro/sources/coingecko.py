"""The source `coingecko`: CoinGecko's market list, page by page.

https://docs.coingecko.com/reference/coins-markets
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.errors import NothingToDo, SettingsError, SourceError
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.contract_list import ContractList
from kasparro.model.record import NAME_LIMIT, SYMBOL_LIMIT, Record, check_id
from kasparro.settings import (
    NotAllowed,
    Secret,
    SourceSettings,
    Variable,
    parse_choice,
    parse_http_url,
    parse_integer,
    parse_secret,
)
from kasparro.sources import conditional_requests, contracts, page_schedule
from kasparro.sources.base import SourceContext, SourceDefinition
from kasparro.sources.crawl import Crawl
from kasparro.sources.http import RetryLimits, UpstreamClient, UpstreamError
from kasparro.sources.json_values import MISSING, NULL, OptionalValues, amount, when, zero_is_unknown

CoinGeckoPlan = Literal["public", "demo", "pro"]

URL = "https://api.coingecko.com/api/v3"
PRO_URL = "https://pro-api.coingecko.com/api/v3"
PATH = "/coins/markets"
CONTRACTS_PATH = "/coins/list"
CONTRACTS_PARAMETERS = {"include_platform": "true"}
PAGE_SIZE = 250
# Three times the pages of 2026. An upstream that still sends full pages after these has no end.
PAGES_LIMIT = 220
KEY_HEADERS: dict[CoinGeckoPlan, str] = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
CALLS_A_MINUTE: dict[CoinGeckoPlan, int] = {"public": 5, "demo": 30, "pro": 250}
# What the demo plan grants. The limit of a paid plan is a setting.
DEMO_MONTHLY_CALLS = 10_000
# For all pages but the first: the upstream works, so a longer wait pays. Its 429s ask for up to two minutes.
LATER_PAGES = RetryLimits(attempts=6, total_s=180, longest_s=30)


def _parse_top(value: str) -> int | None:
    if value.lower() == "all":
        return None
    if not re.fullmatch(r"\d{1,7}", value, re.ASCII) or not 1 <= int(value) <= 1_000_000:
        raise NotAllowed("a whole number from 1 to 1000000, or all")
    return int(value)


class CoinGeckoSettings(SourceSettings, frozen=True, kw_only=True):
    """The settings of the source `coingecko`. Raises SettingsError if plan and key contradict each other."""

    url: Annotated[
        str,
        Variable(
            "KASPARRO_COINGECKO_URL", "base URL of CoinGecko", "the public URL of the plan", parse_http_url
        ),
    ] = ""
    key: Annotated[
        Secret | None,
        Variable("KASPARRO_COINGECKO_KEY", "API key for CoinGecko", "none", parse_secret, secret=True),
    ] = None
    plan: Annotated[
        CoinGeckoPlan | None,
        Variable(
            "KASPARRO_COINGECKO_PLAN",
            "plan of the key: public, demo or pro",
            "demo with a key, public without",
            parse_choice("public", "demo", "pro"),
        ),
    ] = None
    top: Annotated[
        int | None,
        Variable(
            "KASPARRO_COINGECKO_TOP",
            "fetch only this many coins, by market cap: 1000; all",
            "all",
            _parse_top,
        ),
    ] = None
    monthly_calls: Annotated[
        int | None,
        Variable(
            "KASPARRO_COINGECKO_MONTHLY_CALLS",
            "upstream calls allowed per calendar month",
            "10000 with the plan demo, no limit otherwise",
            parse_integer(1, 1_000_000_000),
        ),
    ] = None

    def __post_init__(self) -> None:
        # A frozen struct takes derived values only here, and only this way.
        derive = msgspec.structs.force_setattr
        plan = self.plan or ("demo" if self.key else "public")
        derive(self, "plan", plan)
        derive(self, "url", self.url or (PRO_URL if plan == "pro" else URL))
        if self.monthly_calls is None and plan == "demo":
            derive(self, "monthly_calls", DEMO_MONTHLY_CALLS)
        if plan == "public" and self.key:
            raise SettingsError(
                "KASPARRO_COINGECKO_PLAN is 'public', which takes no key; allowed with "
                "KASPARRO_COINGECKO_KEY: demo, pro"
            )
        if plan != "public" and not self.key:
            raise SettingsError(
                f"KASPARRO_COINGECKO_PLAN is {plan!r}, which needs KASPARRO_COINGECKO_KEY; "
                "allowed without a key: public"
            )


class Market(msgspec.Struct, frozen=True):
    """One item of GET /coins/markets. Only an item with an id and a price is worth a record."""

    id: str
    current_price: Raw
    symbol: Raw = MISSING
    name: Raw = MISSING
    market_cap: Raw = MISSING
    market_cap_rank: Raw = MISSING
    total_volume: Raw = MISSING
    circulating_supply: Raw = NULL
    total_supply: Raw = NULL
    max_supply: Raw = NULL
    price_change_percentage_24h: Raw = NULL
    price_change_percentage_1h_in_currency: Raw = NULL
    price_change_percentage_24h_in_currency: Raw = NULL
    price_change_percentage_7d_in_currency: Raw = NULL
    last_updated: str | None = None


_DECODE = msgspec.json.Decoder(Market).decode


def to_record(item: Raw, now: datetime) -> Record:
    """A market as a record. A cap of 0 with a null rank means unknown.

    Raises RejectedValue, msgspec.DecodeError or ValueError.
    """
    market = _DECODE(item)
    source_id = check_id(market.id)
    price = amount(market.current_price, "current_price")
    observed_at = when(market.last_updated, "last_updated", now)
    read = OptionalValues(source_id)
    market_rank = read.rank("rank", market.market_cap_rank)
    cap = read.amount("market_cap_usd", market.market_cap)
    change_24h = read.number("percent_change_24h", market.price_change_percentage_24h_in_currency)
    if change_24h is None:
        change_24h = read.number("percent_change_24h", market.price_change_percentage_24h)
    return Record(
        source_id=source_id,
        symbol=read.text("symbol", market.symbol, SYMBOL_LIMIT),
        name=read.text("name", market.name, NAME_LIMIT),
        observed_at=observed_at or now,
        has_source_time=observed_at is not None,
        rank=market_rank,
        price_usd=price,
        market_cap_usd=zero_is_unknown(cap) if market_rank is None else cap,
        volume_24h_usd=read.amount("volume_24h_usd", market.total_volume),
        circulating_supply=read.amount("circulating_supply", market.circulating_supply),
        total_supply=read.amount("total_supply", market.total_supply),
        max_supply=read.amount("max_supply", market.max_supply),
        percent_change_1h=read.number("percent_change_1h", market.price_change_percentage_1h_in_currency),
        percent_change_24h=change_24h,
        percent_change_7d=read.number("percent_change_7d", market.price_change_percentage_7d_in_currency),
        invalid=read.invalid,
    )


class ListedCoin(msgspec.Struct, frozen=True):
    """One item of GET /coins/list. A native coin has no platforms, and some values are empty."""

    id: str
    platforms: dict[str, str | None]


_DECODE_LISTED = msgspec.json.Decoder(ListedCoin).decode


def read_contracts(path: str, items: Sequence[Raw], received_at: datetime) -> ContractList | None:
    """The list of coins as a contract list. Raises SourceError."""
    if path != CONTRACTS_PATH:
        return None
    coins, unread = contracts.read_each(items, _DECODE_LISTED)
    found = [
        (coin.id, platform, address or "") for coin in coins for platform, address in coin.platforms.items()
    ]
    return contracts.contract_list(path, received_at, found, unread=unread)


class CoinGecko:
    """Fetches the pages that are due, within the call budget."""

    name = "coingecko"
    contract_root = CONTRACTS_PATH

    def __init__(
        self,
        base_url: str,
        plan: CoinGeckoPlan,
        key: Secret | None,
        limits: RetryLimits | None = None,
        *,
        top: int | None = None,
    ) -> None:
        self._base_url = base_url
        self._top = top
        self._headers = {KEY_HEADERS[plan]: key.reveal()} if key and plan in KEY_HEADERS else {}
        self._access = f"with the plan {plan} (KASPARRO_COINGECKO_PLAN, KASPARRO_COINGECKO_URL)"
        self._first_limits = limits or RetryLimits()
        self._later_limits = limits or LATER_PAGES
        # The vendor's limit is for the vendor's hosts only.
        host = urlsplit(base_url).hostname or ""
        # One call at a time, evenly spaced: a burst at the start of a minute would double the minute's rate.
        spaced = AsyncLimiter(1, 60 / CALLS_A_MINUTE[plan])
        self._limiter = spaced if host.endswith("coingecko.com") else None

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """The due pages, a batch each. Without a monthly limit these are all pages, or the first `top` coins.

        A lost page costs that page. If the first page or two pages in a row are lost, the crawl ends. Raises
        SourceError, and NothingToDo if the month's calls allow none now.
        """
        began, month = context.clock(), await context.monthly_calls()
        max_pages = page_limit(self._top)
        known = {
            page.number: page for page in page_schedule.limit_pages(await context.known_pages(), max_pages)
        }
        plan = page_schedule.plan([*known.values()], began, month, context.interval, max_pages=max_pages)
        if month is not None and not plan.pages:
            raise NothingToDo(
                f"{month.remaining:,} of the {month.limit:,} calls of {began:%B %Y} are left and spread over "
                f"its remaining days; the next call is due at {plan.next_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        crawl, builder, queue = Crawl(), BatchBuilder(), page_schedule.PageQueue(plan, known.values())
        # The newest fetch of each page; an empty page may show later that one of them is the last.
        pages, crawl_started_at = dict(known), plan.resumed_crawl or began
        summary = context.summary
        summary.planned_share, summary.record_limit = queue.planned_share, self._top
        limits = (
            msgspec.structs.replace(self._first_limits, attempts=1) if context.probing else self._first_limits
        )
        async with self._client(context) as client:
            while (number := queue.next()) is not None:
                earlier, now, parameters = known.get(number), context.clock(), _parameters(number)
                items_limit = self._items_limit(number)
                # A page that is read only in part has another fingerprint than the whole page.
                fingerprint = conditional_requests.request_fingerprint(
                    self._base_url,
                    PATH,
                    parameters | ({"items": str(items_limit)} if items_limit is not None else {}),
                )
                try:
                    response = await client.get(
                        PATH,
                        parameters,
                        limits,
                        conditional_requests.validators(earlier, fingerprint, now),
                        items_limit=items_limit,
                    )
                except UpstreamError as error:
                    if not queue.fetched or queue.lost_previous or not error.transient:
                        raise error.at(f"page {number}") from error
                    summary.add_problem(f"page {number}: {error}")
                    queue.mark_lost(number)
                    continue
                limits = self._later_limits
                records = conditional_requests.record_count(response, earlier)
                if not records:
                    if number == 1:
                        raise SourceError("page 1: CoinGecko sent an empty list")
                    end = queue.mark_empty(number)
                    if end is not None and (last := pages.get(end)) is not None:
                        yield builder.take(
                            page=msgspec.structs.replace(
                                last, is_last=True, remaining_pages=queue.remaining_pages
                            )
                        )
                    continue
                missing = (PAGE_SIZE if items_limit is None else items_limit) - records
                is_last = missing > 0 and queue.mark_short(number, missing)
                queue.mark_fetched(number, is_last=is_last or number == max_pages)
                if response.items is None:
                    builder.repeat(records)
                else:
                    await crawl.add_items(
                        builder, response.items, partial(to_record, now=response.received_at)
                    )
                summary.note = queue.note() + self._top_note()
                context.progress(len(queue.fetched), queue.total)
                unread = builder.has_rejects or builder.has_repeats
                pages[number] = conditional_requests.crawled_page(
                    response,
                    earlier,
                    number=number,
                    crawl_started_at=crawl_started_at,
                    remaining_pages=queue.remaining_pages,
                    now=now,
                    is_last=is_last,
                    is_complete=response.items is None or not unread,
                    fingerprint=fingerprint,
                )
                yield builder.take(page=pages[number])
                if number == PAGES_LIMIT and missing <= 0 and self._reaches_beyond(PAGES_LIMIT):
                    summary.add_problem(f"stopped after {number} pages: the upstream's list does not end")
        summary.note = queue.note() + self._top_note()
        for number in queue.empty:
            summary.add_problem(f"page {number}: CoinGecko sent no coins, although the list goes on after it")
        if queue.has_whole_list:
            summary.list_began_at = crawl_started_at

    async def contract_lists(
        self, context: SourceContext, paths: AsyncIterator[str]
    ) -> AsyncGenerator[ContractList, None]:
        """The list of all coins, with their contracts. Raises SourceError."""
        async with self._client(context) as client:
            async for found in contracts.fetch(client, paths, CONTRACTS_PARAMETERS, read_contracts):
                yield found

    def _client(self, context: SourceContext) -> UpstreamClient:
        return UpstreamClient(
            "CoinGecko", self._base_url, self._headers, context, self._limiter, access=self._access
        )

    def _items_limit(self, number: int) -> int | None:
        """How many items of a page belong to the first `top` coins; None: all."""
        if self._top is None or self._reaches_beyond(number):
            return None
        left = self._top - (number - 1) * PAGE_SIZE
        return left if left < PAGE_SIZE else None

    def _reaches_beyond(self, number: int) -> bool:
        return self._top is None or self._top > number * PAGE_SIZE

    def _top_note(self) -> str:
        return "" if self._top is None else f"; the first {self._top:,} coins by market cap are fetched"


def page_limit(top: int | None) -> int:
    """How many pages hold the first `top` coins; None stands for all coins."""
    return PAGES_LIMIT if top is None else min(-(-top // PAGE_SIZE), PAGES_LIMIT)


def _parameters(page: int) -> dict[str, str]:
    return {
        "vs_currency": "usd",
        "order": "market_cap_desc",
        "per_page": str(PAGE_SIZE),
        "page": str(page),
        "price_change_percentage": "1h,24h,7d",
        "precision": "full",
    }


SOURCE = SourceDefinition(
    name=CoinGecko.name,
    settings=CoinGeckoSettings,
    build=lambda settings: CoinGecko(settings.url, settings.plan or "public", settings.key, top=settings.top),
    max_pages=lambda settings: page_limit(settings.top),
    read=to_record,
    read_contracts=read_contracts,
)
