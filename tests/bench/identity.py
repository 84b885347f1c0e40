"""How well and how fast rows of two sources are linked: recorded lists, and pairs that people confirmed.

The lists are not part of the project. They are read where the maintainers keep them, beside the project.
"""

import csv
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.resolve import resolve
from kasparro.model.asset import FOREVER, Coin, Contract, Key, Link
from tests.support.documents import ROOT

SHARED = ROOT.parent / "shared" / "data"
_LISTED_AT = datetime(2026, 5, 12, tzinfo=UTC)


class Lists(msgspec.Struct, frozen=True):
    """Two lists of coins, and the ids of CoinGecko of the same coins by the ids of CoinPaprika."""

    coins: list[Coin]
    pairs: dict[str, str]


class Quality(msgspec.Struct, frozen=True):
    """What was linked of the pairs. An error is CoinPaprika's id, the right id and the linked id."""

    right: int
    wrong: list[tuple[str, str, str]]
    missing: list[tuple[str, str, str]]

    @property
    def precision(self) -> float:
        """The share of right links among the links of these coins."""
        return self.right / (self.right + len(self.wrong))

    @property
    def recall(self) -> float:
        """The share of pairs that are linked."""
        return self.right / (self.right + len(self.wrong) + len(self.missing))


def read_lists() -> Lists | None:
    """The recorded lists, with symbols, names and ids alone, and the pairs whose ids both lists have.

    None if they are not on this machine.
    """
    if not SHARED.exists():
        return None
    coins = [*_coins("coinpaprika", "coinpaprika_coins"), *_coins("coingecko", "coingecko_list")]
    known = {coin.key for coin in coins}
    with (SHARED / "identity" / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        pairs = {
            row["coinpaprika_id"]: row["coingecko_id"]
            for row in csv.DictReader(file, delimiter="\t")
            if {("coinpaprika", row["coinpaprika_id"]), ("coingecko", row["coingecko_id"])} <= known
        }
    return Lists(coins, pairs)


def measure(lists: Lists, contracts: list[Contract]) -> tuple[Quality, Knowledge]:
    """Link the lists and compare the links with the pairs."""
    knowledge = Knowledge(coins=lists.coins, contracts=contracts)
    resolution = resolve(knowledge)
    assets = {asset.asset: asset for asset in resolution.assets}
    linked = msgspec.structs.replace(
        knowledge, links=resolution.links, assets=assets, candidates=resolution.candidates
    )
    return _compare(lists, linked.links), linked


def _compare(lists: Lists, links: Sequence[Link]) -> Quality:
    rows: dict[str, dict[str, str]] = {}
    for link in links:
        if link.valid_until == FOREVER:
            rows.setdefault(link.asset, {})[link.source] = link.source_id
    found = {row["coinpaprika"]: row["coingecko"] for row in rows.values() if len(row) == 2}
    wrong, missing = [], []
    for paprika, gecko in lists.pairs.items():
        if (linked := found.get(paprika)) is None:
            missing.append((paprika, gecko, ""))
        elif linked != gecko:
            wrong.append((paprika, gecko, linked))
    return Quality(len(lists.pairs) - len(wrong) - len(missing), wrong, missing)


def pair_contracts(lists: Lists, share: int = 3) -> list[Contract]:
    """Contracts of the kinds that the two sources publish, for every `share`-th pair.

    Each coin has a contract that both sources know. CoinPaprika also has the contracts of two other coins of
    CoinGecko with a similar name, as if they were wrapped forms that it folds into this coin.
    """
    by_symbol: dict[str, list[Key]] = {}
    for coin in lists.coins:
        if coin.source == "coingecko":
            by_symbol.setdefault((coin.symbol or "").lower(), []).append(coin.key)
    symbols = {coin.key: (coin.symbol or "").lower() for coin in lists.coins}
    contracts = []
    for number, (paprika, gecko) in enumerate(sorted(lists.pairs.items())):
        if number % share:
            continue
        address = f"0x{number:040x}"
        contracts.append(Contract("coinpaprika", paprika, "eth-ethereum", address.upper().replace("X", "x")))
        contracts.append(Contract("coingecko", gecko, "ethereum", address))
        strangers = (
            [key for key in by_symbol[symbols["coinpaprika", paprika]] if key[1] != gecko]
            if (symbols["coinpaprika", paprika] in by_symbol)
            else []
        )
        for position, (_, stranger) in enumerate(strangers[:2], start=1):
            folded = f"0x{position:02x}{number:038x}"
            contracts.append(Contract("coinpaprika", paprika, "bnb-binance-coin", folded))
            contracts.append(Contract("coingecko", stranger, "binance-smart-chain", folded))
    return contracts


async def main() -> None:
    """Print the quality with and without contracts, every error, and how long a resolution takes."""
    if (lists := read_lists()) is None:
        print(f"identity: no lists in {SHARED}")
        return
    for title, contracts in (
        ("names, symbols and ids alone", []),
        ("contracts of every third coin", pair_contracts(lists)),
    ):
        began = time.perf_counter()
        quality, linked = measure(lists, contracts)
        first_s = time.perf_counter() - began
        began = time.perf_counter()
        resolve(linked)
        again_s = time.perf_counter() - began
        print(f"identity, {title}: {len(lists.pairs)} pairs in {len(lists.coins):,} rows")
        print(f"  precision {quality.precision:.3f}, recall {quality.recall:.3f}")
        print(f"  first resolution {first_s:.1f} s, again {again_s:.1f} s")
        for kind, errors in (("wrong", quality.wrong), ("missing", quality.missing)):
            for paprika, gecko, instead in errors:
                print(f"  {kind}: {paprika} is {gecko}" + (f", linked to {instead}" if instead else ""))


def _coins(source: str, folder: str) -> list[Coin]:
    (path,) = Path(SHARED / folder).iterdir()
    return [
        Coin(
            source=source,
            source_id=each["id"],
            symbol=each["symbol"],
            name=each["name"],
            observed_at=_LISTED_AT,
            first_seen_at=_LISTED_AT,
            listed=True,
        )
        for each in json.loads(path.read_bytes())
    ]
