"""The contract lists have the shapes of the real ones, and their trap: forms of a coin."""

from kasparro.simulator import Simulator
from kasparro.simulator.faults import LostCoins, ShortList, Status
from tests.simulator.client import Client, Reply

# In a market of 600 coins.
FORMS = {
    "weth": "ethereum",
    "arbitrum-bridged-weth-arbitrum-one": "ethereum",
    "wrapped-avax": "avalanche-2",
    "binance-peg-avalanche": "avalanche-2",
    "bridged-usdc-polygon-pos-bridge": "usd-coin",
    "wrapped-solana": "solana",
}


async def coingecko_list(simulator: Simulator, client: Client, **parameters: str) -> Reply:
    return await client.request(
        "GET", f"{simulator.coingecko_url}/coins/list", params={"include_platform": "true", **parameters}
    )


async def coinpaprika(simulator: Simulator, client: Client, path: str) -> Reply:
    return await client.request("GET", f"{simulator.coinpaprika_url}{path}")


async def test_coingecko_lists_each_form_as_a_coin_of_its_own(simulator: Simulator, client: Client) -> None:
    coins = {coin["id"]: coin for coin in (await coingecko_list(simulator, client)).json()}

    assert coins.keys() == {source_id for source_id, _ in simulator.market.listed("coingecko")}
    assert all(set(coin) == {"id", "symbol", "name", "platforms"} for coin in coins.values())
    assert coins["bitcoin"]["platforms"] == {}
    assert coins["bitcoin-2"] | {"platforms": None} == {
        "id": "bitcoin-2",
        "symbol": "btc",
        "name": "Bitcoin",
        "platforms": None,
    }
    assert set(coins["usd-coin"]["platforms"]) == {"ethereum", "solana", "avalanche"}
    assert all(len(coins[form]["platforms"]) == 1 for form in FORMS)
    assert {"": ""} in [coin["platforms"] for coin in coins.values()]


async def test_coinpaprika_gives_the_contracts_of_forms_for_the_coin_itself(
    simulator: Simulator, client: Client
) -> None:
    theirs = {coin["id"]: coin for coin in (await coingecko_list(simulator, client)).json()}
    platforms = (await coinpaprika(simulator, client, "/contracts")).json()
    contracts = {
        platform: (await coinpaprika(simulator, client, f"/contracts/{platform}")).json()
        for platform in platforms
    }

    assert {"eth-ethereum", "bnb-binance-coin", "matic-polygon", "avax-avalanche"} <= set(platforms)
    for form, address in {
        "wrapped-avax": ("avax-avalanche", "avax-avalanche"),
        "binance-peg-avalanche": ("bnb-binance-coin", "avax-avalanche"),
        "weth": ("eth-ethereum", "eth-ethereum"),
        "bridged-usdc-polygon-pos-bridge": ("matic-polygon", "usdc-usd-coin"),
    }.items():
        platform, native = address
        (contract,) = theirs[form]["platforms"].values()
        (found,) = [c for c in contracts[platform] if c["address"].lower() == contract]
        assert (found["id"], set(found)) == (native, {"address", "type", "id", "active"})
    # Addresses that compare without case are written in another case.
    evm = [contract["address"] for contract in contracts["eth-ethereum"]]
    assert any(address != address.lower() for address in evm)


async def test_only_known_lists_exist(simulator: Simulator, client: Client) -> None:
    assert (await coinpaprika(simulator, client, "/contracts/no-chain")).status == 404
    assert (await coinpaprika(simulator, client, "/contract")).status == 404
    assert (await coingecko_list(simulator, client, page="1")).status == 422
    without = await coingecko_list(simulator, client, include_platform="false")
    assert set(without.json()[0]) == {"id", "symbol", "name"}


async def test_faults_can_be_for_one_path(simulator: Simulator, client: Client) -> None:
    simulator.add_fault(Status(api="coinpaprika", path="/contracts", code=429))
    simulator.add_fault(ShortList(api="coingecko", path="/coins/list", coins=9))
    simulator.add_fault(LostCoins(api="coingecko", path="/coins/list", coins=4))
    simulator.add_fault(Status(api="coingecko", page=1, code=500))

    assert (await client.tickers()).status == 200
    assert (await coinpaprika(simulator, client, "/contracts")).status == 429
    assert (await coinpaprika(simulator, client, "/contracts/eth-ethereum")).status == 429
    assert len((await coingecko_list(simulator, client)).json()) == 5
    assert (await client.markets()).status == 500


async def test_wrong_key_is_rejected(simulator: Simulator, client: Client) -> None:
    reply = await client.request(
        "GET", f"{simulator.coinpaprika_url}/contracts", headers={"Authorization": "wrong"}
    )
    assert reply.status == 403
    reply = await client.request(
        "GET", f"{simulator.coingecko_url}/coins/list", headers={"x-cg-demo-api-key": "wrong"}
    )
    assert reply.status == 401
