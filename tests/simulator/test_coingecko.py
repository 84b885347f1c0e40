"""The simulated CoinGecko follows the vendor's contract."""

import aiohttp
import pytest

from kasparro.simulator import Account, Simulator
from kasparro.simulator.faults import PageShift
from tests.simulator.client import Client
from tests.simulator.conftest import BASE

FIELDS = (
    "id symbol name image current_price market_cap market_cap_rank fully_diluted_valuation total_volume "
    "high_24h low_24h price_change_24h price_change_percentage_24h market_cap_change_24h "
    "market_cap_change_percentage_24h circulating_supply total_supply max_supply ath ath_change_percentage "
    "ath_date atl atl_change_percentage atl_date roi last_updated"
)
CHANGES = {f"price_change_percentage_{window}_in_currency" for window in ("1h", "24h", "7d")}


async def test_record_has_exactly_the_documented_fields(client: Client) -> None:
    assert all(set(record) == set(FIELDS.split()) for record in (await client.markets()).json())


async def test_price_changes_are_sent_on_request(client: Client) -> None:
    reply = await client.markets(price_change_percentage="1h,24h,7d")
    assert all(set(record) == CHANGES | set(FIELDS.split()) for record in reply.json())


async def test_records_are_those_of_the_market(simulator: Simulator, client: Client) -> None:
    truth = simulator.market.listing("coingecko")
    served = []
    for page in range(1, 4):
        served += (await client.markets(page=page, price_change_percentage="1h,24h,7d")).json()
    assert [
        (
            record["id"],
            record["symbol"],
            record["name"],
            record["market_cap_rank"],
            record["current_price"],
            record["market_cap"],
            record["total_volume"],
            record["circulating_supply"],
            record["total_supply"],
            record["max_supply"],
            record["last_updated"],
        )
        for record in served
    ] == [
        (
            quote.id,
            quote.symbol,
            quote.name,
            None if quote.rank is None else str(quote.rank),
            quote.price_usd,
            quote.market_cap_usd,
            quote.volume_24h_usd,
            quote.circulating_supply,
            quote.total_supply,
            quote.max_supply,
            quote.last_updated,
        )
        for quote in truth
    ]
    for record, quote in zip(served, truth, strict=True):
        if quote.price_usd is not None:
            assert record["price_change_percentage_1h_in_currency"] == quote.percent_change_1h
            assert record["price_change_percentage_24h_in_currency"] == quote.percent_change_24h
            assert record["price_change_percentage_7d_in_currency"] == quote.percent_change_7d


async def test_without_full_precision_prices_have_six_digits(client: Client) -> None:
    short = (await client.markets(precision="")).json()[0]["current_price"]
    full = (await client.markets()).json()[0]["current_price"]
    assert full.startswith(short)
    assert len(short) <= 7 < len(full)


async def test_some_coins_have_a_return_on_investment(client: Client) -> None:
    returns = [record["roi"] for record in (await client.markets()).json() if record["roi"] is not None]
    assert returns
    assert all(set(roi) == {"times", "currency", "percentage"} for roi in returns)


async def test_markup_is_escaped(client: Client) -> None:
    body = (await client.markets()).body
    assert b"\\u003cb\\u003eBold" in body
    assert b"<b>" not in body


async def test_list_ends_with_a_short_page_then_empty_pages(simulator: Simulator, client: Client) -> None:
    sizes = [len((await client.markets(page=page)).json()) for page in range(1, 6)]
    left = len(simulator.market.listing("coingecko")) - 500
    assert sizes == [250, 250, left, 0, 0]
    assert 0 < left < 250


async def test_pages_of_one_tick_have_every_coin_once(simulator: Simulator, client: Client) -> None:
    crawled = [coin for page in range(1, 7) for coin in (await client.markets(per_page=100, page=page)).ids]
    assert crawled == [quote.id for quote in simulator.market.listing("coingecko")]


async def test_no_header_gives_the_number_of_pages(client: Client) -> None:
    assert not {"link", "total", "per-page"} & set((await client.markets()).headers)


@pytest.mark.slow
async def test_moving_market_shifts_pages_during_a_crawl(simulator: Simulator, client: Client) -> None:
    crawled = []
    for page in range(1, 60):
        crawled += (await client.markets(per_page=10, page=page)).ids
        simulator.advance(30)
    assert len(set(crawled)) < len(crawled)


@pytest.mark.parametrize(("by", "second"), [(3, slice(7, 17)), (-3, slice(13, 23))])
async def test_page_shift_fault(simulator: Simulator, client: Client, by: int, second: slice) -> None:
    simulator.add_fault(PageShift(api="coingecko", by=by))
    order = [quote.id for quote in simulator.market.listing("coingecko")]
    assert (await client.markets(per_page=10, page=1)).ids == order[:10]
    assert (await client.markets(per_page=10, page=2)).ids == order[second]


async def test_bytes_change_only_with_the_tick(simulator: Simulator, client: Client) -> None:
    first, second = await client.markets(), await client.markets()
    assert first.body == second.body
    simulator.advance()
    assert (await client.markets()).body != first.body


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"vs_currency": "doubloon"}, "vs_currency"),
        ({"per_page": 0}, "per_page"),
        ({"per_page": 251}, "per_page"),
        ({"page": 0}, "page"),
        ({"page": "-1"}, "page"),
        ({"order": "volume_desc"}, "order"),
        ({"price_change_percentage": "3h"}, "price_change_percentage"),
        ({"precision": "3.5"}, "precision"),
        ({"pages": 1}, "pages"),
    ],
)
async def test_error_names_the_wrong_parameter(
    client: Client, parameters: dict[str, str | int], message: str
) -> None:
    reply = await client.markets(headers=None, **parameters)
    assert reply.status == 422
    assert message in reply.json()["error"]


async def test_currency_is_required(simulator: Simulator, client: Client) -> None:
    reply = await client.request("GET", f"{simulator.coingecko_url}/coins/markets")
    assert (reply.status, reply.json()) == (422, {"error": "Missing parameter vs_currency"})


async def test_cache_headers_and_conditional_request(simulator: Simulator, client: Client) -> None:
    first = await client.markets()
    assert first.headers["cache-control"] == "public, max-age=30"
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    again = await client.markets(headers={"If-None-Match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    simulator.advance()
    assert (await client.markets(headers={"If-None-Match": tag})).status == 200


async def test_unknown_path_is_404(simulator: Simulator, client: Client) -> None:
    reply = await client.request("GET", f"{simulator.coingecko_url}/coins/nothing")
    assert (reply.status, reply.json()["status"]["error_code"]) == (404, "404")


@pytest.mark.parametrize(
    ("account", "headers", "status"),
    [
        (Account(), {}, 200),
        (Account(), {"x-cg-demo-api-key": "any"}, 401),
        (Account(key="k"), {}, 200),
        (Account(key="k"), {"x-cg-demo-api-key": "k"}, 200),
        (Account(key="k"), {"x-cg-demo-api-key": "wrong"}, 401),
        (Account(key="k"), {"x-cg-pro-api-key": "k"}, 401),
        (Account(key="k", pro=True), {"x-cg-pro-api-key": "k"}, 200),
        (Account(key="k", pro=True), {}, 401),
    ],
)
async def test_key_must_match_account_and_plan(
    session: aiohttp.ClientSession, account: Account, headers: dict[str, str], status: int
) -> None:
    async with Simulator(coins=30, base=BASE, manual=True, coingecko=account) as simulator:
        reply = await Client(simulator, session).markets(headers=headers)
    assert reply.status == status
    if status == 401:
        assert reply.json()["status"]["error_code"] == "10002"
