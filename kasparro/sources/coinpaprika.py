"""CoinPaprika: every ticker in one call (https://docs.coinpaprika.com/api-reference/tickers)."""

from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from urllib.parse import urlsplit

import msgspec
from aiolimiter import AsyncLimiter
from msgspec import Raw

from kasparro.errors import SourceError
from kasparro.model.batch import BATCH_ROWS, Batch, BatchBuilder
from kasparro.model.record import NAME_LIMIT, SYMBOL_LIMIT, Record, identifier, label
from kasparro.settings import Secret
from kasparro.sources import conditional_requests
from kasparro.sources.base import SourceContext
from kasparro.sources.http import RetryLimits, UpstreamClient
from kasparro.sources.json_values import NULL, Crawl, amount, number, rank, when, zero_is_unknown

PATH = "/tickers"
PARAMETERS = {"quotes": "USD"}
CALLS_A_SECOND = 10


class Quote(msgspec.Struct, frozen=True):
    """What a ticker says in one currency. What it always holds has to be there: a field that vanished is no
    value that vanished."""

    price: Raw
    volume_24h: Raw
    market_cap: Raw
    percent_change_1h: Raw = NULL
    percent_change_24h: Raw = NULL
    percent_change_7d: Raw = NULL


class Quotes(msgspec.Struct, frozen=True, rename="upper"):
    """A ticker's quotes, of which we ask for one."""

    usd: Quote


class Ticker(msgspec.Struct, frozen=True):
    """One element of what GET /tickers answers. Missing values may come as empty strings."""

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
    """One ticker in the unified schema. Raises RejectedValue, msgspec.DecodeError or ValueError.

    A cap, circulating or maximum supply of 0 means unknown here; a price of 0 is a price.
    """
    ticker = _DECODE(item)
    usd = ticker.quotes.usd
    observed_at = when(ticker.last_updated, "last_updated", now)
    return Record(
        source_id=identifier(ticker.id),
        symbol=label(ticker.symbol, "symbol", SYMBOL_LIMIT),
        name=label(ticker.name, "name", NAME_LIMIT),
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
    """The source `coinpaprika`."""

    name = "coinpaprika"

    def __init__(self, base_url: str, key: Secret | None, patience: RetryLimits | None = None) -> None:
        self._base_url = base_url
        self._headers = {"Authorization": key.reveal()} if key else {}
        self._patience = patience or RetryLimits()
        # The vendor's limit holds for the vendor's hosts only.
        host = urlsplit(base_url).hostname or ""
        self._limiter = AsyncLimiter(CALLS_A_SECOND, 1) if host.endswith("coinpaprika.com") else None

    async def extract(self, passing: SourceContext) -> AsyncGenerator[Batch, None]:
        """One call, cut into batches. Raises SourceError."""
        known = {page.number: page for page in await passing.pages()}
        earlier, now = known.get(1), passing.clock()
        told = conditional_requests.request_fingerprint(self._base_url, PATH, PARAMETERS)
        patience = msgspec.structs.replace(self._patience, attempts=1) if passing.probing else self._patience
        async with UpstreamClient(
            "CoinPaprika", self._base_url, self._headers, passing, self._limiter
        ) as client:
            answer = await client.get(
                PATH, PARAMETERS, patience, conditional_requests.validators(earlier, told, now)
            )
        walk, builder = Crawl(), BatchBuilder()
        items = answer.items or []
        if answer.items is None:
            builder.repeat(conditional_requests.records(answer, earlier))
        elif not items:
            raise SourceError("CoinPaprika answered an empty list")
        now, sound = answer.received_at, True
        for start in range(0, max(len(items), 1), BATCH_ROWS):
            part = items[start : start + BATCH_ROWS]
            await walk.take(builder, part, partial(to_record, now=now))
            passing.progress(start + len(part), len(items))
            sound = sound and not builder.refused
            # The list is known as a whole, so what stands for it is committed with its end.
            ended = start + BATCH_ROWS >= len(items)
            whole = conditional_requests.settled(
                answer,
                earlier,
                number=1,
                crawl_started_at=now,
                remaining_pages=(),
                now=now,
                is_last=True,
                sound=sound,
                told=told,
            )
            yield builder.take(page=whole if ended else None)
