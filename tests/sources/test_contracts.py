"""The contract lists of both APIs are read in the shapes that they have, and in no other."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from kasparro.errors import SourceError
from kasparro.sources import coingecko, coinpaprika, contracts
from kasparro.sources.base import ContractReader

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def raw(*items: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(item)) for item in items]


def test_coingecko_lists_contracts_by_platform() -> None:
    found = coingecko.read_contracts(
        "/coins/list",
        raw(
            {"id": "bitcoin", "symbol": "btc", "name": "Bitcoin", "platforms": {}},
            {"id": "odd", "platforms": {"": "", "ethereum": "", "solana": None}},
            {"id": "usd-coin", "platforms": {"ethereum": "0xA0b8 ", "solana": "EPjF"}},
            {"id": "long", "platforms": {"ethereum": "x" * 5_000, "fantom": "0x1"}},
            {"id": "nul", "platforms": {"ethereum": "a\0b"}},
        ),
        NOW,
    )
    assert found is not None
    assert (found.platform, found.lists, found.unread) == (None, None, 0)
    assert found.contracts == [
        ("long", "fantom", "0x1"),
        ("usd-coin", "ethereum", "0xA0b8"),
        ("usd-coin", "solana", "EPjF"),
    ]


def test_coinpaprika_lists_platforms_and_the_contracts_of_each() -> None:
    root = coinpaprika.read_contracts(
        "/contracts", raw("eth-ethereum", "bnb-binance-coin", "../tickers", "a-b"), NOW
    )
    assert root is not None
    assert root.lists == ("/contracts/eth-ethereum", "/contracts/bnb-binance-coin", "/contracts/a-b")
    assert root.unread == 1

    found = coinpaprika.read_contracts(
        "/contracts/eth-ethereum",
        raw(
            {"address": "0xd26", "type": "ERC20", "id": "omg-omg-network", "active": True},
            {"address": "0xOld", "type": "ERC20", "id": "old-coin", "active": False},
            {"address": "", "type": "ERC20", "id": "empty"},
        ),
        NOW,
    )
    assert found is not None
    assert found.platform == "eth-ethereum"
    assert found.contracts == [("omg-omg-network", "eth-ethereum", "0xd26")]


@pytest.mark.parametrize(
    ("read", "path"), [(coingecko.read_contracts, "/coins/markets"), (coinpaprika.read_contracts, "/tickers")]
)
def test_other_paths_are_no_contract_lists(read: ContractReader, path: str) -> None:
    assert read(path, raw({"id": "a"}), NOW) is None


@pytest.mark.parametrize(
    "item", ["text", 1, None, [], {"id": "a"}, {"id": 1, "platforms": {}}, {"id": "a", "platforms": []}]
)
def test_list_of_another_shape_is_an_error(item: Any) -> None:
    good = {"id": "b", "platforms": {"ethereum": "0x1"}}
    with pytest.raises(SourceError, match="2 of 3 items have another shape"):
        coingecko.read_contracts("/coins/list", raw(item, item, good), NOW)
    found = coingecko.read_contracts("/coins/list", raw(item, good), NOW)
    assert found is not None
    assert (len(found.contracts), found.unread) == (1, 1)


def test_list_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "CONTRACTS_LIMIT", 2)
    platforms: Callable[[int], dict[str, str]] = lambda count: {f"p{n}": "0x1" for n in range(count)}  # noqa: E731
    with pytest.raises(SourceError, match="more than 2 contracts"):
        coingecko.read_contracts("/coins/list", raw({"id": "a", "platforms": platforms(3)}), NOW)
