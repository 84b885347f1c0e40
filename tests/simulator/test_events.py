"""Events change what an id stands for, and the simulator knows which ids are the same coin."""

from decimal import Decimal
from typing import Any

import pytest

from kasparro.simulator import Simulator
from kasparro.simulator.coins import Api
from kasparro.simulator.events import AnyEvent, ChangedId, ImpossibleEvent, Rebrand, ReusedId, StrayPrice
from kasparro.simulator.market import Quote, TrueCoin
from tests.simulator.client import Client

LINK: dict[Api, str] = {"coinpaprika": "link-chainlink", "coingecko": "chainlink"}


def quotes(simulator: Simulator, api: Api) -> dict[str, Quote]:
    return {quote.id: quote for quote in simulator.market.listing(api)}


def price(quote: Quote) -> Decimal:
    assert quote.price_usd is not None
    return Decimal(quote.price_usd)


def true_coin(simulator: Simulator, **ids: str | None) -> TrueCoin:
    """The coin with these ids."""
    (found,) = [
        coin
        for coin in simulator.true_coins()
        if all(getattr(coin, api) == source_id for api, source_id in ids.items())
    ]
    return found


def test_market_has_lookalikes(simulator: Simulator) -> None:
    theirs = quotes(simulator, "coingecko")
    bitcoins = [quote for quote in theirs.values() if (quote.symbol, quote.name) == ("btc", "Bitcoin")]
    assert {quote.id for quote in bitcoins} == {"bitcoin", "bitcoin-2"}
    assert price(theirs["bitcoin-2"]) < 1
    assert true_coin(simulator, coingecko="bitcoin-2").coinpaprika is None
    for form, native in (
        ("weth", "ethereum"),
        ("wrapped-bitcoin", "bitcoin"),
        ("wrapped-avax", "avalanche-2"),
    ):
        assert abs(price(theirs[form]) / price(theirs[native]) - 1) < Decimal("0.01")
        assert true_coin(simulator, coingecko=form).form_of == theirs[native].coin.index
    ours = quotes(simulator, "coinpaprika")
    assert {"portal-portal", "portal-portal-2", "nova-nova", "nva-nova", "mrt-merit-network"} <= ours.keys()
    assert {"portal", "portal-2", "nova", "nova-2", "merit-network"} <= theirs.keys()


def test_fake_bitcoin_is_at_rank_900_of_the_demo() -> None:
    simulator = Simulator(seed=1, manual=True)
    rank = quotes(simulator, "coingecko")["bitcoin-2"].rank
    assert rank is not None
    assert 850 < rank < 950


@pytest.mark.parametrize("api", LINK)
async def test_rebrand_changes_only_the_labels(simulator: Simulator, client: Client, api: Api) -> None:
    before = quotes(simulator, api)[LINK[api]]
    simulator.trigger(Rebrand(api=api, id=LINK[api], symbol="CHN", name="Chainlike"))

    after = quotes(simulator, api)[LINK[api]]
    assert (after.symbol.upper(), after.name) == ("CHN", "Chainlike")
    assert price(after) == pytest.approx(price(before), rel=Decimal("0.01"))
    other: Api = "coingecko" if api == "coinpaprika" else "coinpaprika"
    assert quotes(simulator, other)[LINK[other]].name == "Chainlink"
    served = await client.tickers() if api == "coinpaprika" else await client.markets()
    assert [coin["name"] for coin in served.json() if coin["id"] == LINK[api]] == ["Chainlike"]


def test_reused_id_stands_for_another_coin(simulator: Simulator) -> None:
    before = quotes(simulator, "coingecko")["chainlink"]
    simulator.trigger(ReusedId(api="coingecko", id="chainlink"))

    after = quotes(simulator, "coingecko")["chainlink"]
    assert after.coin.index != before.coin.index
    assert (after.symbol, after.name) != (before.symbol, before.name)
    assert after.last_updated >= before.last_updated
    newcomer = true_coin(simulator, coingecko="chainlink")
    assert newcomer.coinpaprika is not None
    assert newcomer.former == []
    former = true_coin(simulator, coinpaprika="link-chainlink")
    assert former.coingecko is None
    assert [(known.api, known.id) for known in former.former] == [("coingecko", "chainlink")]
    listed = dict(simulator.market.listed("coingecko"))
    assert listed["chainlink"].index == after.coin.index


def test_changed_id_stands_for_the_same_coin(simulator: Simulator) -> None:
    before = quotes(simulator, "coinpaprika")["link-chainlink"]
    simulator.trigger(ChangedId(api="coinpaprika", id="link-chainlink", to="chn-chainlike"))

    after = quotes(simulator, "coinpaprika")
    assert "link-chainlink" not in after
    assert after["chn-chainlike"].coin is before.coin
    assert true_coin(simulator, coinpaprika="chn-chainlike", coingecko="chainlink").coin == before.coin.index


def test_price_goes_astray_for_an_hour_at_one_api(simulator: Simulator) -> None:
    simulator.trigger(StrayPrice(api="coingecko", id="bitcoin", factor="2.5"))
    factors = []
    for _ in range(62):
        stray, true = (
            quotes(simulator, "coingecko")["bitcoin"],
            quotes(simulator, "coinpaprika")["btc-bitcoin"],
        )
        factors.append(round(price(stray) / price(true), 1))
        simulator.advance()

    assert factors == [Decimal("2.5")] * 60 + [Decimal(1)] * 2


def test_events_within_a_tick_show_at_once(simulator: Simulator) -> None:
    simulator.trigger(StrayPrice(api="coinpaprika", id="btc-bitcoin"))
    first = price(quotes(simulator, "coinpaprika")["btc-bitcoin"])
    simulator.trigger(StrayPrice(api="coinpaprika", id="btc-bitcoin", factor="0.5"))
    second = price(quotes(simulator, "coinpaprika")["btc-bitcoin"])
    assert round(first / second, 6) == 6


def test_reset_takes_all_events_back(simulator: Simulator) -> None:
    before = simulator.market.listing("coingecko")
    simulator.trigger(ReusedId(api="coingecko", id="chainlink"))
    simulator.trigger(ChangedId(api="coingecko", id="bitcoin", to="btc"))
    simulator.advance(3)
    simulator.reset()

    assert simulator.market.events == []
    assert simulator.market.listing("coingecko") == before
    assert all(coin.former == [] for coin in simulator.true_coins())


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Rebrand(api="coingecko", id="nothing", symbol="a", name="A"), "no coin with the id 'nothing'"),
        (ChangedId(api="coingecko", id="bitcoin", to="ethereum"), "has a coin with the id 'ethereum'"),
        (ReusedId(api="coingecko", id="bitcoin", by="eth-ethereum"), "lists 'eth-ethereum' of coinpaprika"),
    ],
)
def test_impossible_event_is_rejected(simulator: Simulator, event: AnyEvent, message: str) -> None:
    with pytest.raises(ImpossibleEvent, match=message):
        simulator.trigger(event)
    assert simulator.market.events == []


async def test_control_triggers_events_and_knows_the_truth(simulator: Simulator, client: Client) -> None:
    event: dict[str, Any] = {"kind": "changed-id", "api": "coingecko", "id": "bitcoin", "to": "btc"}
    assert (await client.control("POST", "events", json=event)).status == 201
    assert (await client.control("GET", "events")).json() == [event]
    coins = (await client.control("GET", "coins")).json()
    assert [coin["coinpaprika"] for coin in coins if coin["coingecko"] == "btc"] == ["btc-bitcoin"]
    (former,) = [known for coin in coins for known in coin["former"]]
    assert former == {"api": "coingecko", "id": "bitcoin", "until": "2026-06-01T12:00:00Z"}
    for wrong in (event, {**event, "kind": "explode"}, {"kind": "rebrand", "api": "coingecko"}):
        assert (await client.control("POST", "events", json=wrong)).status == 400
