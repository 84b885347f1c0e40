"""The simulated CoinPaprika follows the vendor's contract."""

import aiohttp
import pytest

from kasparro.simulator import Account, Simulator
from tests.simulator.client import Client
from tests.simulator.conftest import BASE

FIELDS = "id name symbol rank total_supply max_supply beta_value first_data_at last_updated quotes"
QUOTE_FIELDS = (
    "price volume_24h volume_24h_change_24h market_cap market_cap_change_24h percent_change_15m "
    "percent_change_30m percent_change_1h percent_change_6h percent_change_12h percent_change_24h "
    "percent_change_7d percent_change_30d percent_change_1y ath_price ath_date percent_from_price_ath"
)


async def test_record_has_exactly_the_documented_fields(client: Client) -> None:
    for record in (await client.tickers()).json():
        assert set(record) == set(FIELDS.split())
        assert set(record["quotes"]) == {"USD"}
        assert set(record["quotes"]["USD"]) == set(QUOTE_FIELDS.split())


async def test_records_are_those_of_the_market(simulator: Simulator, client: Client) -> None:
    truth = {quote.id: quote for quote in simulator.market.listing("coinpaprika")}
    served = (await client.tickers(params={"quotes": "USD"})).json()
    assert {record["id"] for record in served} == set(truth)
    for record in served:
        quote, usd = truth[record["id"]], record["quotes"]["USD"]
        assert record["name"] == quote.name
        assert record["symbol"] == quote.symbol
        assert record["rank"] == ("" if quote.rank is None else str(quote.rank))
        assert record["total_supply"] == quote.total_supply
        assert record["max_supply"] == ("" if quote.max_supply is None else quote.max_supply)
        assert record["last_updated"] == quote.last_updated
        assert usd["price"] == quote.price_usd
        assert usd["market_cap"] == quote.market_cap_usd
        assert usd["volume_24h"] == quote.volume_24h_usd
        assert usd["percent_change_1h"] == quote.percent_change_1h
        assert usd["percent_change_24h"] == quote.percent_change_24h
        assert usd["percent_change_7d"] == (quote.percent_change_7d or "")


async def test_missing_values_are_empty_strings_and_nulls(client: Client) -> None:
    records = (await client.tickers()).json()
    assert any(record["max_supply"] == "" for record in records)
    assert any(record["rank"] == "" for record in records)
    assert any(record["first_data_at"] == "" for record in records)
    assert any(record["quotes"]["USD"]["ath_date"] == "" for record in records)
    assert any(record["quotes"]["USD"]["ath_price"] is None for record in records)
    assert any(record["quotes"]["USD"]["price"] is None for record in records)


async def test_records_are_not_ordered_by_rank(client: Client) -> None:
    ranks = [int(record["rank"]) for record in (await client.tickers()).json() if record["rank"]]
    assert ranks != sorted(ranks)


async def test_bytes_change_only_with_the_tick(simulator: Simulator, client: Client) -> None:
    first, second = await client.tickers(), await client.tickers()
    assert first.body == second.body
    simulator.advance()
    assert (await client.tickers()).body != first.body


async def test_free_plan_has_2000_assets_and_a_key_all(
    session: aiohttp.ClientSession,
) -> None:
    account = Account(key="k")
    async with Simulator(coins=2_500, base=BASE, manual=True, coinpaprika=account) as simulator:
        client = Client(simulator, session)
        free = (await client.tickers()).json()
        paid = (await client.tickers(headers={"Authorization": "k"})).json()
        listing = simulator.market.listing("coinpaprika")
    assert len(free) == 2_000
    assert {record["id"] for record in free} == {quote.id for quote in listing[:2_000]}
    assert len(paid) == len(listing) > 2_000
    assert all("circulating_supply" in record for record in paid)
    assert not any("circulating_supply" in record for record in free)


@pytest.mark.parametrize("sent", ["wrong", "Bearer k"])
async def test_wrong_key_is_403(session: aiohttp.ClientSession, sent: str) -> None:
    async with Simulator(coins=30, base=BASE, manual=True, coinpaprika=Account(key="k")) as simulator:
        reply = await Client(simulator, session).tickers(headers={"Authorization": sent})
    assert reply.status == 403
    assert set(reply.json()) == {"error"}


async def test_only_dollar_quotes_are_supported(client: Client) -> None:
    assert (await client.tickers(params={"quotes": "EUR"})).status == 400


async def test_unknown_path_is_404(simulator: Simulator, client: Client) -> None:
    reply = await client.request("GET", f"{simulator.coinpaprika_url}/coins")
    assert (reply.status, set(reply.json())) == (404, {"error"})
