"""The contracts of the simulated coins, as each API lists them."""

from collections.abc import Iterator
from random import Random

import msgspec

from kasparro.simulator.coins import Coin
from kasparro.simulator.market import Market
from kasparro.simulator.seeded_random import seeded_random

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Chain(msgspec.Struct, frozen=True):
    """A chain with its id in each API, and CoinPaprika's type of its contracts."""

    coingecko: str
    coinpaprika: str
    kind: str


CHAINS = {
    "ethereum": Chain("ethereum", "eth-ethereum", "ERC20"),
    "bsc": Chain("binance-smart-chain", "bnb-binance-coin", "BEP20"),
    "polygon": Chain("polygon-pos", "matic-polygon", "ERC20"),
    "avalanche": Chain("avalanche", "avax-avalanche", "ERC20"),
    "fantom": Chain("fantom", "ftm-fantom", "ERC20"),
    "arbitrum": Chain("arbitrum-one", "arb-arbitrum", "ERC20"),
    "solana": Chain("solana", "sol-solana", "SPL"),
    "tron": Chain("tron", "trx-tron", "TRC20"),
}


def coingecko_list(market: Market, *, platforms: bool) -> list[dict[str, object]]:
    """All coins of CoinGecko by id, each with its contracts."""
    records = []
    for source_id, coin in market.listed("coingecko"):
        symbol, name = market.labels("coingecko", coin)
        record: dict[str, object] = {"id": source_id, "symbol": symbol.lower(), "name": name}
        if platforms:
            found = {
                CHAINS[chain].coingecko: _address(market, coin, chain).lower_evm for chain in coin.chains
            }
            # Some coins without a contract have an empty one.
            record["platforms"] = found or ({"": ""} if coin.index % 37 == 5 else {})
        records.append(record)
    return records


def coinpaprika_platforms() -> list[str]:
    """The ids of the chains that CoinPaprika has contracts of."""
    return sorted(chain.coinpaprika for chain in CHAINS.values())


def coinpaprika_list(market: Market, platform: str) -> list[dict[str, object]] | None:
    """The contracts of one chain by coin; None if there is no such chain.

    A coin that CoinPaprika does not list gives its contract to the coin of which it is a form.
    """
    chain = next((name for name, chain in CHAINS.items() if chain.coinpaprika == platform), None)
    if chain is None:
        return None
    ids = {coin.index: source_id for source_id, coin in market.listed("coinpaprika")}
    records: list[dict[str, object]] = []
    for coin in market.coins:
        source_id = ids.get(coin.index) or ids.get(coin.price_of)
        if source_id is not None and chain in coin.chains:
            records.append(
                {
                    "address": _address(market, coin, chain).text,
                    "type": CHAINS[chain].kind,
                    "id": source_id,
                    "active": coin.activity > 0,
                }
            )
    return records


class _Address(msgspec.Struct, frozen=True):
    text: str

    @property
    def lower_evm(self) -> str:
        """CoinGecko writes addresses that compare without case in lower case."""
        return self.text.lower() if self.text.startswith("0x") else self.text


def _address(market: Market, coin: Coin, chain: str) -> _Address:
    rng = seeded_random(market.seed, "contract", coin.index, chain)
    if chain == "solana":
        return _Address("".join(_letters(rng, _BASE58, 44)))
    if chain == "tron":
        return _Address("T" + "".join(_letters(rng, _BASE58, 33)))
    # CoinPaprika writes the mixed case of EIP-55.
    return _Address("0x" + "".join(_letters(rng, "0123456789abcdefABCDEF", 40)))


def _letters(rng: Random, alphabet: str, count: int) -> Iterator[str]:
    return (rng.choice(alphabet) for _ in range(count))
