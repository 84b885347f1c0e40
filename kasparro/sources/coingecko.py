"""CoinGecko: the market list, page by page (https://docs.coingecko.com/reference/coins-markets)."""

from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.batch import Batch, BatchBuilder
from kasparro.errors import SourceError
from kasparro.record import NAME_LIMIT, SYMBOL_LIMIT, Record, identifier, label
from kasparro.settings import Plan, Secret
from kasparro.sources.base import Pass
from kasparro.sources.http import Client, Patience, UpstreamError
from kasparro.sources.wire import NULL, Walk, amount, number, rank, when, zero_is_unknown

PAGE_SIZE = 250
# Three times the list of 2026: a walk that goes on beyond is an upstream that never sends a short page.
PAGES_LIMIT = 220
KEY_HEADERS: dict[Plan, str] = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
CALLS_A_MINUTE: dict[Plan, int] = {"public": 5, "demo": 30, "pro": 250}
# An upstream that has answered in this walk is worth waiting for: its 429s ask for up to two minutes.
ON_THE_WAY = Patience(attempts=6, total_s=180, longest_s=30)


class Market(msgspec.Struct, frozen=True):
    """One element of what GET /coins/markets answers. What it always holds has to be there, if only as null:
    a field that vanished is no value that vanished."""

    id: str
    symbol: str
    name: str
    current_price: Raw
    market_cap: Raw
    market_cap_rank: Raw
    total_volume: Raw
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
    """One market in the unified schema. Raises Refused, msgspec.DecodeError or ValueError.

    A cap of 0 beside a null rank means unknown.
    """
    market = _DECODE(item)
    place = rank(market.market_cap_rank, "market_cap_rank")
    cap = amount(market.market_cap, "market_cap")
    change_24h = number(
        market.price_change_percentage_24h_in_currency, "price_change_percentage_24h_in_currency"
    )
    observed_at = when(market.last_updated, "last_updated", now)
    return Record(
        source_id=identifier(market.id),
        symbol=label(market.symbol, "symbol", SYMBOL_LIMIT),
        name=label(market.name, "name", NAME_LIMIT),
        observed_at=observed_at or now,
        reported=observed_at is not None,
        rank=place,
        price_usd=amount(market.current_price, "current_price"),
        market_cap_usd=zero_is_unknown(cap) if place is None else cap,
        volume_24h_usd=amount(market.total_volume, "total_volume"),
        circulating_supply=amount(market.circulating_supply, "circulating_supply"),
        total_supply=amount(market.total_supply, "total_supply"),
        max_supply=amount(market.max_supply, "max_supply"),
        percent_change_1h=number(
            market.price_change_percentage_1h_in_currency, "price_change_percentage_1h_in_currency"
        ),
        percent_change_24h=(
            change_24h
            if change_24h is not None
            else number(market.price_change_percentage_24h, "price_change_percentage_24h")
        ),
        percent_change_7d=number(
            market.price_change_percentage_7d_in_currency, "price_change_percentage_7d_in_currency"
        ),
    )


class CoinGecko:
    """The source `coingecko`."""

    name = "coingecko"

    def __init__(
        self, base_url: str, plan: Plan, key: Secret | None, patience: Patience | None = None
    ) -> None:
        self._base_url = base_url
        self._headers = {KEY_HEADERS[plan]: key.reveal()} if key and plan in KEY_HEADERS else {}
        self._first = patience or Patience()
        self._later = patience or ON_THE_WAY
        # The vendor's limit holds for the vendor's hosts only.
        host = urlsplit(base_url).hostname or ""
        self._limiter = AsyncLimiter(CALLS_A_MINUTE[plan], 60) if host.endswith("coingecko.com") else None

    async def extract(self, passing: Pass) -> AsyncGenerator[Batch, None]:
        """Pages until a short one, a batch a page. A page that is lost costs that page; the first, or two in
        a row, end the walk. Raises SourceError.
        """
        walk, builder = Walk(), BatchBuilder()
        lost_before = False
        async with Client(
            "CoinGecko", self._base_url, self._headers, passing.count_call, self._limiter
        ) as client:
            for page in range(1, PAGES_LIMIT + 1):
                try:
                    items = await client.get(
                        "/coins/markets", _parameters(page), self._first if page == 1 else self._later
                    )
                except UpstreamError as error:
                    if page == 1 or lost_before or not error.passing:
                        raise SourceError(f"page {page}: {error}") from error
                    passing.problem(f"page {page}: {error}")
                    lost_before = True
                    continue
                if page == 1 and not items:
                    raise SourceError("page 1: CoinGecko answered an empty list")
                lost_before = False
                now = passing.clock()
                await walk.take(builder, items, partial(to_record, now=now))
                passing.progress(page, None)
                yield builder.take()
                if len(items) < PAGE_SIZE:
                    return
        passing.problem(f"stopped after {PAGES_LIMIT} pages: the upstream never sent a short one")


def _parameters(page: int) -> dict[str, str]:
    return {
        "vs_currency": "usd",
        "order": "market_cap_desc",
        "per_page": str(PAGE_SIZE),
        "page": str(page),
        "price_change_percentage": "1h,24h,7d",
        "precision": "full",
    }
