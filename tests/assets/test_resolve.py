"""Which rows become one asset, which do not, and why."""

from datetime import timedelta
from decimal import Decimal
from itertools import permutations

import pytest

from kasparro.assets.knowledge import Relabelled
from kasparro.assets.market import compare_markets
from kasparro.assets.resolve import open_pairs, resolve
from kasparro.model.asset import ALWAYS, Contract
from tests.assets.support import NOW, World, coin, key, texts

BITCOIN = coin(
    "coinpaprika/btc-bitcoin", "BTC", "Bitcoin", rank=1, price_usd="60000", market_cap_usd="1.2e12"
)
BITCOIN_CG = coin("coingecko/bitcoin", "btc", "Bitcoin", rank=1, price_usd="60010", market_cap_usd="1.2e12")
FAKE = coin("coingecko/bitcoin-4", "btc", "Bitcoin", rank=900, price_usd="0.002", market_cap_usd="9e6")


def test_one_coin_of_two_sources_is_one_asset_with_the_id_of_coinpaprika() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    assert world.asset("coinpaprika/btc-bitcoin") == world.asset("coingecko/bitcoin") == "btc-bitcoin"
    link = world.link("coingecko/bitcoin")
    assert link is not None
    assert (link.method, link.symbol, link.name) == ("symbol_and_name", "btc", "Bitcoin")
    assert "names are equal: Bitcoin" in texts(link.evidence)
    assert link.evidence[0]["source_id"] == "btc-bitcoin"


def test_the_order_of_arrival_does_not_change_which_rows_are_one_coin() -> None:
    rows = [
        BITCOIN,
        BITCOIN_CG,
        FAKE,
        coin("csv/btc-bitcoin", "BTC", "Bitcoin", price_usd="17000", observed_at=NOW - timedelta(days=3000)),
        coin("coinpaprika/zel-zelcash", "ZEL", "ZelCash", rank=300),
        coin("coingecko/zelcash", "flux", "Flux", rank=310),
    ]
    expected = World(*rows).partition()
    for order in permutations(rows):
        # A source sends its whole list before anything is decided: the stranger is never its only Bitcoin.
        if order.index(FAKE) < order.index(BITCOIN_CG):
            continue
        world = World()
        for row in order:
            world.load(row)
        assert world.partition() == expected


def test_a_stranger_with_the_name_of_a_leading_coin_is_a_coin_of_its_own() -> None:
    for order in permutations([BITCOIN, BITCOIN_CG, FAKE]):
        world = World(*order)
        assert world.asset("coingecko/bitcoin") == "btc-bitcoin"
        assert world.asset("coingecko/bitcoin-4") == "btc-bitcoin-2"


def test_a_stranger_that_comes_first_does_not_take_the_place_of_the_coin() -> None:
    world = World(BITCOIN, FAKE)
    assert world.asset("coingecko/bitcoin-4") is None
    assert "prices are far apart" in world.candidates("coingecko/bitcoin-4")[0]
    world.load(BITCOIN_CG)
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin"
    assert world.asset("coingecko/bitcoin-4") == "btc-bitcoin-2"


def test_ranks_that_are_far_apart_rule_a_coin_out_if_there_is_no_price() -> None:
    world = World(
        coin("coinpaprika/btc-bitcoin", "BTC", "Bitcoin", rank=1),
        coin("coingecko/x", "btc", "Bitcoin", rank=900),
    )
    assert world.asset("coingecko/x") is None
    assert "ranks are far apart: 900 and 1" in world.candidates("coingecko/x")[0]


@pytest.mark.parametrize(
    ("source_id", "symbol", "name"),
    [
        ("wrapped-bitcoin", "wbtc", "Wrapped Bitcoin"),
        ("wrapped-bitcoin-2", "btc", "Wrapped Bitcoin"),
        ("bitcoin-wormhole", "btc", "Bitcoin (Wormhole)"),
        ("binance-peg-bitcoin", "btc", "Binance-Peg Bitcoin"),
        ("bridged-bitcoin", "btc", "Bridged Bitcoin (Base)"),
        ("bitcoin-2", "btc", "Bitcoin 2"),
        ("bitcoin-cash-sv", "btc", "Bitcoin Classic"),
    ],
)
def test_a_form_of_a_coin_is_not_the_coin(source_id: str, symbol: str, name: str) -> None:
    world = World(BITCOIN, coin(f"coingecko/{source_id}", symbol, name, price_usd="60000", rank=40))
    assert world.asset(f"coingecko/{source_id}") != "btc-bitcoin"


def test_forms_are_linked_with_the_same_form() -> None:
    world = World(
        coin("coinpaprika/wbtc-wrapped-bitcoin", "WBTC", "Wrapped Bitcoin"),
        coin("coingecko/wrapped-bitcoin", "wbtc", "Wrapped Bitcoin"),
        coin("coinpaprika/btc-bitcoin", "BTC", "Bitcoin"),
    )
    assert world.asset("coingecko/wrapped-bitcoin") == "wbtc-wrapped-bitcoin"


@pytest.mark.parametrize(
    ("paprika", "gecko"),
    [
        (("usdc-usd-coin", "USDC", "USD Coin"), ("usd-coin", "usdc", "USDC")),
        (("zel-zelcash", "ZEL", "ZelCash"), ("zelcash", "flux", "Flux")),
        (("ankr-ankr-network", "ANKR", "Ankr"), ("ankr", "ankr", "Ankr Network")),
        (("bnt-bancor", "BNT", "Bancor"), ("bancor", "bnt", "Bancor Network")),
        (("zel-x", "ZEL", "Zel\u200bCash (old)"), ("zel-cash", "zel", "Zel Cash")),
        (("usdt-tether", "USDT", "Tether"), ("tether", "usd₮", "Tether")),
        (
            ("pol-polygon", "POL", "Polygon"),
            ("polygon-ecosystem-token", "pol", "Polygon (migrated from MATIC)"),
        ),
        (("cafe-café", "CAFE", "Café"), ("cafe", "cafe", "Cafe")),
    ],
)
def test_spellings_and_older_names_are_recognised(
    paprika: tuple[str, str, str], gecko: tuple[str, str, str]
) -> None:
    world = World(coin(f"coinpaprika/{paprika[0]}", *paprika[1:]), coin(f"coingecko/{gecko[0]}", *gecko[1:]))
    assert world.asset(f"coingecko/{gecko[0]}") == world.asset(f"coinpaprika/{paprika[0]}")


def test_a_symbol_alone_links_nothing_and_keeps_no_coin_from_being_an_asset() -> None:
    world = World(
        coin("coinpaprika/agi-singularitynet", "AGI", "SingularityNET"),
        coin("coingecko/delysium", "agi", "Delysium"),
    )
    assert world.asset("coinpaprika/agi-singularitynet") == "agi-singularitynet"
    assert world.asset("coingecko/delysium") == "agi-delysium"


def test_two_coins_of_one_name_are_linked_only_by_what_tells_them_apart() -> None:
    paprika = coin("coinpaprika/gem-gems", "GEM", "Gem", price_usd="2", rank=800)
    one = coin("coingecko/gem-exchange", "gem", "Gem", price_usd="2.01", rank=810)
    two = coin("coingecko/gem-and-trading", "gem", "Gem", price_usd="0.4", rank=2000)
    unpriced = [
        coin(f"{each.source}/{each.source_id}", each.symbol, each.name) for each in (paprika, one, two)
    ]
    world = World(*unpriced)
    assert {world.asset("coingecko/gem-exchange"), world.asset("coingecko/gem-and-trading")} == {None}
    assert "it may be" in world.candidates("coingecko/gem-exchange")[0]
    world.load(paprika, one, two)
    assert world.asset("coingecko/gem-exchange") == "gem-gems"
    assert world.asset("coingecko/gem-and-trading") == "gem-gem"


def test_an_old_and_a_new_coin_of_one_name_are_left_open() -> None:
    world = World(
        coin("coinpaprika/btt-bittorrent", "BTT", "BitTorrent"),
        coin("coingecko/bittorrent-old", "bttold", "BitTorrent [OLD]"),
        coin("coingecko/bittorrent", "btt", "BitTorrent"),
    )
    assert world.asset("coingecko/bittorrent") is None
    assert "scores 0.89, below 0.9" in world.candidates("coingecko/bittorrent")[0]


# Contracts


def test_a_contract_links_coins_with_different_names() -> None:
    world = World(
        coin("coinpaprika/adx-adex", "ADX", "AdEx"),
        coin("coingecko/heyaura", "aura", "heyAura"),
        contracts=[
            Contract("coinpaprika", "adx-adex", "eth-ethereum", "0xADE00C28244d5CE17D72E40330B1c318cD12B7c3"),
            Contract("coingecko", "heyaura", "ethereum", "0xade00c28244d5ce17d72e40330b1c318cd12b7c3"),
        ],
    )
    link = world.link("coingecko/heyaura")
    assert link is not None
    assert (link.asset, link.method) == ("adx-adex", "contract")
    assert "no other coin of either source has their contracts" in texts(link.evidence)


def test_addresses_of_other_chains_compare_with_case() -> None:
    address = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
    for other, linked in ((address, True), (address.lower(), False)):
        world = World(
            coin("coinpaprika/aa-one", "AA", "One"),
            coin("coingecko/two", "bb", "Two"),
            contracts=[
                Contract("coinpaprika", "aa-one", "sol-solana", address),
                Contract("coingecko", "two", "solana", other),
            ],
        )
        assert (world.asset("coingecko/two") == "aa-one") is linked


def test_contracts_that_coinpaprika_folds_into_the_native_coin_link_no_form() -> None:
    forms = [
        coin("coingecko/wrapped-avax", "wavax", "Wrapped AVAX"),
        coin("coingecko/binance-peg-avalanche", "avax", "Binance-Peg Avalanche"),
        coin("coingecko/weth", "weth", "WETH"),
        coin("coingecko/avax-universal", "uavax", "Avalanche (Universal)"),
        coin("coingecko/avax-wormhole", "avax", "AVAX (Wormhole)"),
    ]
    folded = [
        Contract("coinpaprika", "avax-avalanche", "bnb-binance-coin", f"0x{number:040x}")
        for number in range(5)
    ] + [Contract("coinpaprika", "eth-ethereum", "avax-avalanche", f"0x{9:040x}")]
    own = [
        Contract("coingecko", each.source_id, "binance-smart-chain", f"0x{number:040x}")
        for number, each in enumerate(forms)
    ] + [Contract("coingecko", "weth", "avalanche", f"0x{9:040X}")]
    avalanche = coin("coinpaprika/avax-avalanche", "AVAX", "Avalanche")
    ethereum = coin("coinpaprika/eth-ethereum", "ETH", "Ethereum")
    natives = [
        coin("coingecko/avalanche-2", "avax", "Avalanche"),
        coin("coingecko/ethereum", "eth", "Ethereum"),
    ]
    world = World(avalanche, ethereum, *forms, *natives, contracts=folded + own)
    assert world.asset("coingecko/avalanche-2") == "avax-avalanche"
    assert world.asset("coingecko/ethereum") == "eth-ethereum"
    # The native coins may be missing at CoinGecko: no form takes their place.
    world = World(avalanche, ethereum, *forms, contracts=folded + own)
    for each in forms:
        assert world.asset(f"coingecko/{each.source_id}") not in {"avax-avalanche", "eth-ethereum"}
    # Nor if it is the only coin that shares the native coin's contracts.
    for each in forms:
        world = World(avalanche, ethereum, each, contracts=folded + own)
        assert world.asset(f"coingecko/{each.source_id}") not in {"avax-avalanche", "eth-ethereum"}


def test_of_several_coins_that_share_a_contract_the_one_with_the_name_is_linked() -> None:
    bridged = [
        coin("coingecko/bridged-usdc-polygon-pos-bridge", "usdc.e", "Bridged USDC (Polygon PoS Bridge)"),
        coin("coingecko/usdc-wormhole", "usdc", "USDC (Wormhole)"),
        coin("coingecko/axlusdc", "axlusdc", "Axelar Bridged USDC"),
    ]
    rows = [
        *bridged,
        coin("coingecko/usd-coin", "usdc", "USDC"),
        coin("coinpaprika/usdc-usd-coin", "USDC", "USD Coin"),
    ]
    contracts = [
        Contract("coinpaprika", "usdc-usd-coin", "matic-polygon", f"0x{n:040x}") for n in range(4)
    ] + [
        Contract("coingecko", each.source_id, "polygon-pos", f"0x{n:040x}") for n, each in enumerate(rows[:4])
    ]
    world = World(*rows, contracts=contracts)
    assert world.asset("coingecko/usd-coin") == "usdc-usd-coin"
    assert world.link("coingecko/usd-coin").method == "contract"  # type: ignore[union-attr]
    assert all(world.asset(f"coingecko/{each.source_id}") != "usdc-usd-coin" for each in bridged)


def test_contracts_that_come_later_link_coins_that_stood_alone() -> None:
    world = World(coin("coinpaprika/adx-adex", "ADX", "AdEx"), coin("coingecko/heyaura", "aura", "heyAura"))
    assert world.asset("coingecko/heyaura") == "aura-heyaura"
    address = f"0x{7:040x}"
    resolution = world.load(
        contracts=[
            Contract("coinpaprika", "adx-adex", "eth-ethereum", address),
            Contract("coingecko", "heyaura", "ethereum", address),
        ]
    )
    assert world.asset("coingecko/heyaura") == "adx-adex"
    assert resolution.ended == {key("coingecko/heyaura"): ALWAYS}
    assert not world.load().links


# Rows of archives


@pytest.mark.parametrize(
    ("row", "symbol", "name"),
    [
        ("bitcoin", None, None),
        ("btc-bitcoin", None, None),
        ("bitcoin-btc", None, None),
        ("btc-bitcoin", "BTC", "Bitcoin"),
        ("1", "BTC", "Bitcoin"),
    ],
)
def test_a_row_of_an_archive_joins_by_its_id_or_by_symbol_and_name(
    row: str, symbol: str | None, name: str | None
) -> None:
    old = {"observed_at": NOW - timedelta(days=3000), "price_usd": "900"}
    world = World(BITCOIN, BITCOIN_CG, coin(f"csv/{row}", symbol, name, **old))
    assert world.asset(f"csv/{row}") == "btc-bitcoin"


def test_a_bare_symbol_needs_a_leading_coin_and_prices_that_agree() -> None:
    bare = coin("csv/btc", observed_at=NOW - timedelta(days=3000), price_usd="17000")
    world = World(BITCOIN, BITCOIN_CG, FAKE, bare)
    assert world.asset("csv/btc") is None
    assert "0.8, below 0.9" in world.candidates("csv/btc")[0]
    resolution = resolve(world.knowledge)
    pairs = open_pairs(world.knowledge, resolution)
    assert (key("coinpaprika/btc-bitcoin"), key("csv/btc")) in pairs
    prices = {pair: [(BITCOIN.price_usd, BITCOIN.price_usd)] * 3 for pair in pairs}
    world.load(prices=prices)
    assert world.asset("csv/btc") == "btc-bitcoin"
    assert world.link("csv/btc").method == "symbol_and_price"  # type: ignore[union-attr]


def test_a_bare_symbol_that_several_leading_coins_have_stays_open() -> None:
    world = World(
        coin("coinpaprika/uni-uniswap", "UNI", "Uniswap", rank=30, price_usd="5"),
        coin("coinpaprika/uni-unicorn", "UNI", "Unicorn", rank=40, price_usd="5"),
        coin("csv/uni", price_usd="5"),
    )
    assert world.asset("csv/uni") not in {"uni-uniswap", "uni-unicorn"}


def test_an_id_that_is_the_symbol_of_another_leading_coin_is_no_id() -> None:
    # `link` is an id of CoinGecko and the symbol of Chainlink.
    world = World(
        coin("coingecko/link", "fnsa", "LINK", rank=300, price_usd="30"),
        coin("coingecko/chainlink", "link", "Chainlink", rank=15, price_usd="14"),
        coin("csv/link", price_usd="2", observed_at=NOW - timedelta(days=2000)),
    )
    assert world.asset("csv/link") is None


def test_a_bare_row_founds_no_asset_until_all_sources_have_been_loaded() -> None:
    world = World(coin("csv/bitcoin"), awaited={"coinpaprika"})
    assert world.asset("csv/bitcoin") is None
    assert world.candidates("csv/bitcoin") == ["it says too little until coinpaprika has been loaded"]
    world.load(BITCOIN, awaited=())
    assert world.asset("csv/bitcoin") == "btc-bitcoin"


def test_a_coin_that_only_an_archive_knows_is_an_asset() -> None:
    world = World(BITCOIN, coin("csv/old-coin"), coin("csv/oc-old-coin", "OC", "Old Coin Two"))
    assert world.asset("csv/old-coin") == "old-coin"
    assert world.asset("csv/oc-old-coin") == "oc-old-coin-two"


def test_two_rows_of_archives_never_share_an_asset() -> None:
    world = World(BITCOIN, coin("csv/btc-bitcoin", "BTC", "Bitcoin"), coin("csv/bitcoin"))
    assert [world.asset(row) for row in ("csv/btc-bitcoin", "csv/bitcoin")].count("btc-bitcoin") == 1


# Changes over time


def test_links_are_stable() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    before = {link.key: link.asset for link in world.knowledge.links}
    better = coin("coingecko/btc-bitcoin", "btc", "Bitcoin", rank=1, price_usd="60000")
    world.load(better)
    assert {row: asset for row, asset in before.items() if world.asset("/".join(row)) != asset} == {}
    assert "coingecko/bitcoin is linked to that coin" in world.candidates("coingecko/btc-bitcoin")[0]
    resolution = world.load()
    assert (resolution.links, resolution.ended, resolution.assets) == ([], {}, [])


def test_a_rebrand_is_confirmed_and_the_asset_keeps_its_id() -> None:
    matic = coin("coinpaprika/matic-polygon", "MATIC", "Polygon", price_usd="0.7", circulating_supply="9e9")
    pol = coin(
        "coinpaprika/matic-polygon",
        "POL",
        "Polygon Ecosystem Token",
        price_usd="0.71",
        circulating_supply="9e9",
    )
    world = World(matic, coin("coingecko/matic-network", "matic", "Polygon", price_usd="0.7"))
    resolution = world.load(pol, relabelled={pol.key: Relabelled(matic, NOW)})
    assert not resolution.ended
    link = world.link("coinpaprika/matic-polygon")
    assert link is not None
    assert (link.asset, link.symbol, link.name) == ("matic-polygon", "POL", "Polygon Ecosystem Token")
    assert "price and supply continued" in texts(link.evidence)
    assert world.knowledge.assets["matic-polygon"].symbol == "POL"
    assert not world.conflicts()


def test_a_reused_id_leaves_the_asset_and_is_a_conflict() -> None:
    before = coin("coingecko/mars", "mars", "Mars Token", price_usd="4", circulating_supply="1e8")
    after = coin("coingecko/mars", "xyz", "Xyzzy Chain", price_usd="0.0001", circulating_supply="9e12")
    world = World(coin("coinpaprika/mars-mars-token", "MARS", "Mars Token", price_usd="4"), before)
    since = NOW + timedelta(minutes=5)
    resolution = world.load(after, relabelled={after.key: Relabelled(before, since)})
    assert resolution.ended == {after.key: since}
    assert world.asset("coingecko/mars") == "xyz-xyzzy-chain"
    assert world.link("coingecko/mars").valid_from == since  # type: ignore[union-attr]
    assert world.conflicts() == ["coingecko/mars"]
    assert world.asset("coinpaprika/mars-mars-token") == "mars-mars-token"
    world.load()
    assert world.conflicts() == ["coingecko/mars"]


@pytest.mark.parametrize("is_alone", [False, True])
def test_an_id_that_means_its_coin_again_gets_its_asset_again(*, is_alone: bool) -> None:
    others = [] if is_alone else [coin("coinpaprika/mars-mars-token", "MARS", "Mars Token", price_usd="4")]
    mars = coin("coingecko/mars", "mars", "Mars Token", price_usd="4", circulating_supply="1e8")
    xyz = coin("coingecko/mars", "xyz", "Xyzzy Chain", price_usd="0.0001", circulating_supply="9e12")
    world = World(*others, mars)
    since, until = NOW + timedelta(minutes=5), NOW + timedelta(minutes=9)
    world.load(xyz, relabelled={xyz.key: Relabelled(mars, since)})

    world.load(mars, relabelled={mars.key: Relabelled(xyz, until)})

    assert world.asset("coingecko/mars") == "mars-mars-token"
    assert world.link("coingecko/mars").valid_from == until  # type: ignore[union-attr]
    assert not world.load().links


def test_new_labels_without_other_evidence_are_a_conflict_until_something_decides() -> None:
    world = World(coin("coingecko/mars", "mars", "Mars Token"))
    resolution = world.load(coin("coingecko/mars", "xyz", "Xyzzy Chain"))
    assert not resolution.ended
    assert world.conflicts() == ["coingecko/mars"]
    assert world.asset("coingecko/mars") == "mars-mars-token"
    world.load(coin("coinpaprika/x", "AA", "Other"))
    assert world.conflicts() == ["coingecko/mars"]


def test_the_name_in_an_id_does_not_confirm_other_labels() -> None:
    world = World(coin("coinpaprika/mars-mars-token", "MARS", "Mars"), coin("coingecko/mars", "mars", "Mars"))
    world.load(coin("coingecko/mars", "xyz", "Xyzzy Chain"))
    assert world.conflicts() == ["coingecko/mars"]


def test_another_spelling_of_a_label_is_no_conflict() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    world.load(coin("coingecko/bitcoin", "BTC", "BITCOIN ", rank=1, price_usd="60010"))
    link = world.link("coingecko/bitcoin")
    assert link is not None
    assert (link.symbol, link.name) == ("BTC", "BITCOIN ")
    assert not world.conflicts()


def test_a_new_id_takes_over_from_one_that_is_no_longer_listed() -> None:
    world = World(
        coin("coinpaprika/mm-million", "MM", "Million", price_usd="2"),
        coin("coingecko/million", "mm", "Million", price_usd="2", circulating_supply="1e6"),
    )
    old = coin("coingecko/million", "mm", "Million", price_usd="2", circulating_supply="1e6", listed=False)
    later = NOW + timedelta(hours=1)
    new = coin(
        "coingecko/million-token",
        "mm",
        "Million",
        price_usd="2.02",
        circulating_supply="1e6",
        observed_at=later,
        first_seen_at=later,
    )
    resolution = world.load(old, new)
    assert world.asset("coingecko/million-token") == "mm-million"
    assert world.asset("coingecko/million") is None
    assert resolution.ended[old.key] == world.link("coingecko/million-token").valid_from  # type: ignore[union-attr]
    assert old.observed_at < resolution.ended[old.key] <= new.observed_at
    resolution = world.load()
    assert (resolution.links, resolution.ended) == ([], {})


def test_a_new_id_takes_over_though_the_old_one_is_written_differently_at_the_same_time() -> None:
    """The link of the old id is confirmed and ends in one resolution."""
    world = World(coin("coingecko/million", "mm", "Million", price_usd="2", circulating_supply="1e6"))
    asset, later = world.asset("coingecko/million"), NOW + timedelta(hours=1)
    figures = {"price_usd": "2", "circulating_supply": "1e6"}

    world.load(
        coin("coingecko/million", "MM", "MILLION", listed=False, **figures),
        coin("coingecko/mm2", "mm", "Million", observed_at=later, first_seen_at=later, **figures),
    )

    assert (world.asset("coingecko/million"), world.asset("coingecko/mm2")) == (None, asset)
    (old,) = [link for link in world.knowledge.links if link.source_id == "million"]
    assert (old.symbol, old.name, old.asset) == ("MM", "MILLION", asset)
    resolution = world.load()
    assert (resolution.links, resolution.ended) == ([], {})


def test_a_retired_id_keeps_its_asset() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    resolution = world.load(
        coin("coingecko/bitcoin", "btc", "Bitcoin", rank=1, price_usd="60010", listed=False)
    )
    assert not resolution.ended
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin"


def test_ids_of_assets_are_never_given_again() -> None:
    world = World(coin("coinpaprika/foo-foo", "FOO", "Foo"))
    world.load(coin("coingecko/other", "foo-foo", None), coin("csv/foo-foo-2", "X", "Y"))
    assert len(world.knowledge.assets) == 3


def test_a_price_that_is_wrong_for_an_hour_delays_a_link_and_ends_none() -> None:
    stray = coin("coingecko/bitcoin", "btc", "Bitcoin", price_usd="180000", rank=1)
    world = World(BITCOIN, stray)
    assert world.asset("coingecko/bitcoin") is None
    world.load(BITCOIN_CG)
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin"
    resolution = world.load(stray)
    assert (resolution.links, resolution.ended) == ([], {})


def test_two_coins_of_one_name_are_distinguished_by_price_and_supply() -> None:
    figures = {"price_usd": "0.47", "circulating_supply": "968422"}
    world = World(
        coin("coinpaprika/ycl-yacal", "YCL", "Yacal", **figures),
        coin("coingecko/yacal", "ycl", "Yacal"),
        coin("coingecko/yacal-2", "ycl", "Yacal", **figures),
    )
    assert world.asset("coingecko/yacal-2") == "ycl-yacal"


def test_labels_that_an_archive_gives_later_are_confirmed() -> None:
    world = World(BITCOIN, coin("csv/bitcoin"))
    assert world.asset("csv/bitcoin") == "btc-bitcoin"
    world.load(coin("csv/bitcoin", "BTC", "Bitcoin"))
    link = world.link("csv/bitcoin")
    assert link is not None
    assert (link.asset, link.symbol, link.name) == ("btc-bitcoin", "BTC", "Bitcoin")


def test_other_sources_are_linked_like_the_built_in_ones() -> None:
    world = World(BITCOIN, BITCOIN_CG, coin("tide/XBT", "BTC", "Bitcoin", price_usd="60001", listed=None))
    assert world.asset("tide/XBT") == "btc-bitcoin"


def test_a_symbol_that_a_source_gives_to_all_its_coins_says_nothing() -> None:
    many = [coin(f"coingecko/coin{number}", "x", f"Name{number}", rank=number) for number in range(600)]
    few = [coin(f"coinpaprika/x-name{number}", "X", f"Name{number}", rank=number) for number in range(600)]
    world = World(*many, *few)
    assert all(world.asset(f"coingecko/coin{number}") == f"x-name{number}" for number in range(1, 600))


def test_no_asset_has_the_id_of_a_path() -> None:
    assert (
        World(coin("coingecko/candidates", "", "Candidates")).asset("coingecko/candidates") == "candidates-2"
    )


def test_prices_of_zero_say_nothing() -> None:
    findings = compare_markets(BITCOIN, BITCOIN_CG, [(Decimal(0), Decimal(0))])
    assert [found.text for found in findings if found.kind == "price"] == [
        "prices agree at about the same moment: 60,000 and 60,010"
    ]
