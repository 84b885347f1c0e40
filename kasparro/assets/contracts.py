"""Makes contracts of different sources comparable: one name for a chain, one spelling for an address."""

import csv
from collections.abc import Iterable
from importlib import resources

import msgspec

from kasparro.model.asset import Contract, Key

# A contract: the chain and the address.
Place = tuple[str, str]


class _Chain(msgspec.Struct, frozen=True):
    name: str
    folds_case: bool


def _read_chains() -> dict[tuple[str, str], _Chain]:
    chains: dict[tuple[str, str], _Chain] = {}
    text = resources.files(__package__).joinpath("chains.csv").read_text("utf-8")
    for row in csv.DictReader(text.splitlines()):
        chain = _Chain(row["chain"], row["case"] == "insensitive")
        for source in ("coinpaprika", "coingecko"):
            chains |= dict.fromkeys(((source, platform) for platform in row[source].split()), chain)
    return chains


_CHAINS = _read_chains()
_EVM_LENGTH = len("0x") + 40


def place(contract: Contract) -> Place | None:
    """The contract in a form that can be compared; None if it has no address.

    A platform that chains.csv lacks is a chain of its own name, so that a source that uses the names of
    another source needs no line there.
    """
    address = contract.address.strip()
    if not address:
        return None
    platform = contract.platform.strip().lower()
    chain = _CHAINS.get((contract.source, platform))
    looks_evm = len(address) == _EVM_LENGTH and address[:2].lower() == "0x"
    if looks_evm or (chain is not None and chain.folds_case):
        address = address.lower()
    return chain.name if chain else platform, address


def places_by_row(contracts: Iterable[Contract]) -> dict[Key, frozenset[Place]]:
    """The contracts of each row."""
    found: dict[Key, set[Place]] = {}
    for contract in contracts:
        if (known := place(contract)) is not None:
            found.setdefault((contract.source, contract.source_id), set()).add(known)
    return {key: frozenset(places) for key, places in found.items()}
