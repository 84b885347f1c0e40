"""CoinGecko: the market list, page by page (https://docs.coingecko.com/reference/coins-markets)."""

from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.errors import NothingToDo, SourceError
from kasparro.model.batch import Batch, BatchBuilder
from kasparro.model.record import NAME_LIMIT, SYMBOL_LIMIT, Record, identifier, label
from kasparro.settings import CoinGeckoPlan, Secret
from kasparro.sources import conditional_requests, page_schedule
from kasparro.sources.base import SourceContext
from kasparro.sources.http import RetryLimits, UpstreamClient, UpstreamError
from kasparro.sources.json_values import NULL, Crawl, amount, number, rank, when, zero_is_unknown

PATH = "/coins/markets"
PAGE_SIZE = 250
# Three times the list of 2026: a walk that goes on beyond is an upstream that never sends a short page.
PAGES_LIMIT = 220
KEY_HEADERS: dict[CoinGeckoPlan, str] = {"demo": "x-cg-demo-api-key", "pro": "x-cg-pro-api-key"}
CALLS_A_MINUTE: dict[CoinGeckoPlan, int] = {"public": 5, "demo": 30, "pro": 250}
# An upstream that has answered in this walk is worth waiting for: its 429s ask for up to two minutes.
ON_THE_WAY = RetryLimits(attempts=6, total_s=180, longest_s=30)


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
    """One market in the unified schema. Raises RejectedValue, msgspec.DecodeError or ValueError.

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
        has_source_time=observed_at is not None,
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
        self,
        base_url: str,
        plan: CoinGeckoPlan,
        key: Secret | None,
        patience: RetryLimits | None = None,
        *,
        top: int | None = None,
    ) -> None:
        self._base_url = base_url
        self._top = top
        self._headers = {KEY_HEADERS[plan]: key.reveal()} if key and plan in KEY_HEADERS else {}
        self._first = patience or RetryLimits()
        self._later = patience or ON_THE_WAY
        # The vendor's limit holds for the vendor's hosts only.
        host = urlsplit(base_url).hostname or ""
        # Evenly spaced: a burst of a minute's calls beside the minute's rate would be twice as many.
        spaced = AsyncLimiter(1, 60 / CALLS_A_MINUTE[plan])
        self._limiter = spaced if host.endswith("coingecko.com") else None

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        """The pages that are due, a batch a page: where nothing limits the calls, all to the end of the list
        or the bound.

        A page that is lost costs that page; the first, or two in a row, end the walk. Raises SourceError,
        and NothingToDo where the month's calls leave none for this pass.
        """
        began, month = passing.clock(), await passing.month()
        most = page_limit(self._top)
        known = {page.number: page for page in page_schedule.bounded(await passing.pages(), most)}
        plan = page_schedule.plan([*known.values()], began, month, passing.interval, most=most)
        if month is not None and not plan.pages:
            raise NothingToDo(
                f"of the {month.limit:,} calls of {began:%B %Y} {month.remaining:,} are left, spread over "
                f"the rest of it; the next is due at {plan.next_at:%Y-%m-%d %H:%M:%S} UTC"
            )
        walk, builder, course = Crawl(), BatchBuilder(), page_schedule.PageQueue(plan, known.values())
        passing.planned, passing.bound = course.planned, self._top
        patience = msgspec.structs.replace(self._first, attempts=1) if passing.probing else self._first
        async with UpstreamClient(
            "CoinGecko", self._base_url, self._headers, passing, self._limiter
        ) as client:
            while (number := course.next()) is not None:
                earlier, now, parameters = known.get(number), passing.clock(), _parameters(number)
                limit = self._items_limit(number)
                # Part of a page is another answer to remember than all of it.
                told = conditional_requests.request_fingerprint(
                    self._base_url, PATH, parameters | ({"items": str(limit)} if limit is not None else {})
                )
                try:
                    answer = await client.get(
                        PATH,
                        parameters,
                        patience,
                        conditional_requests.validators(earlier, told, now),
                        items_limit=limit,
                    )
                except UpstreamError as error:
                    if not course.fetched or course.lost_last or not error.passing:
                        raise error.at(f"page {number}") from error
                    passing.problem(f"page {number}: {error}")
                    course.lose(number)
                    continue
                patience = self._later
                records = conditional_requests.records(answer, earlier)
                if number == 1 and not records:
                    raise SourceError("page 1: CoinGecko answered an empty list")
                last = records < (PAGE_SIZE if limit is None else limit)
                course.take(number, last=last or number == most)
                if answer.items is None:
                    builder.repeat(records)
                else:
                    await walk.take(builder, answer.items, partial(to_record, now=answer.received_at))
                passing.note = course.note() + self._bound_note()
                passing.progress(len(course.fetched), course.total)
                yield builder.take(
                    page=conditional_requests.settled(
                        answer,
                        earlier,
                        number=number,
                        crawl_started_at=plan.resumes or began,
                        remaining_pages=course.remaining_pages,
                        now=now,
                        is_last=last,
                        sound=answer.items is None or not (builder.refused or builder.repeated),
                        told=told,
                    )
                )
                if number == PAGES_LIMIT and not last and self._reaches_beyond(PAGES_LIMIT):
                    passing.problem(f"stopped after {number} pages: the upstream never sent a short one")

    def _items_limit(self, number: int) -> int | None:
        # How many items of a page are within the bound; None for all of them.
        if self._top is None or self._reaches_beyond(number):
            return None
        left = self._top - (number - 1) * PAGE_SIZE
        return left if left < PAGE_SIZE else None

    def _reaches_beyond(self, number: int) -> bool:
        return self._top is None or self._top > number * PAGE_SIZE

    def _bound_note(self) -> str:
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
