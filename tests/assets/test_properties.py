"""What holds for any rows, in any order."""

from datetime import timedelta
from decimal import Decimal

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.resolve import resolve, resolve_by_labels
from kasparro.assets.rules import Rule, Rules
from kasparro.model.asset import Coin, Contract
from tests.assets.support import NOW, World, coin

_SYMBOLS = st.sampled_from(["BTC", "btc", "ETH", "$GEM", "", None])
_NAMES = st.sampled_from(
    ["Bitcoin", "BITCOIN ", "Bitcoin (old)", "Wrapped Bitcoin", "Gem", "Gem Token", "\u200b", None]
)
_IDS = st.sampled_from(["btc-bitcoin", "bitcoin", "bitcoin-2", "btc", "gem", "gem-gem", "eth", "1"])
_SOURCES = st.sampled_from(["coinpaprika", "coingecko", "csv", "tide"])


@st.composite
def _coins(draw: st.DrawFn) -> Coin:
    return coin(
        f"{draw(_SOURCES)}/{draw(_IDS)}",
        draw(_SYMBOLS),
        draw(_NAMES),
        rank=draw(st.sampled_from([None, 1, 2, 900])),
        price_usd=draw(st.sampled_from(["0", "1", "1.01", "60000", "60001"])),
        listed=draw(st.sampled_from([True, True, False, None])),
        first_seen_at=NOW,
    )


_ROWS = st.lists(_coins(), max_size=12, unique_by=lambda each: each.key)
_CONTRACTS = st.lists(
    st.builds(
        Contract,
        st.sampled_from(["coinpaprika", "coingecko"]),
        _IDS,
        st.sampled_from(["ethereum", "eth-ethereum", "solana"]),
        st.sampled_from(["0xA", "0xa", "0xB", ""]),
    ),
    max_size=6,
)


@given(_ROWS, _CONTRACTS)
def test_links_are_stable_when_nothing_changes(rows: list[Coin], contracts: list[Contract]) -> None:
    # World checks that no two ids of one source share an asset, and that each row is linked or a candidate.
    world = World(*rows, contracts=contracts)
    before = world.partition(), world.knowledge.candidates
    resolution = world.load()
    assert (resolution.links, resolution.ended, resolution.assets) == ([], {}, [])
    assert (world.partition(), world.knowledge.candidates) == before


@given(_ROWS, _CONTRACTS, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    rows: list[Coin], contracts: list[Contract], random: st.DataObject
) -> None:
    shuffled, others = list(rows), list(contracts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    random.shuffle(others)  # type: ignore[attr-defined]
    assert resolve(Knowledge(coins=rows, contracts=contracts)) == resolve(
        Knowledge(coins=shuffled, contracts=others)
    )


@given(_ROWS, _ROWS, _CONTRACTS)
def test_rows_that_are_linked_stay_linked_while_others_arrive(
    first: list[Coin], later: list[Coin], contracts: list[Contract]
) -> None:
    world = World(*first, contracts=contracts)
    linked = {link.key: link.asset for link in world.knowledge.links if link.method != "alone"}
    known = {each.key for each in first}
    world.load(*(each for each in later if each.key not in known))
    replaced = {each.key for each in first if each.listed is False}
    for row, asset in linked.items():
        assert world.asset("/".join(row)) == asset or row in replaced


@given(_ROWS, st.data())
def test_rules_always_win(rows: list[Coin], data: st.DataObject) -> None:
    world = World(*rows)
    by_source = {each.source: each.key for each in rows}
    chosen = tuple(sorted(by_source.values()))
    if len(chosen) < 2:
        return
    linked = data.draw(st.booleans())
    rule = Rule(rows=chosen)
    world.rules = Rules(links=(rule,)) if linked else Rules(parts=(rule,))
    world.load()
    assets = [world.asset("/".join(row)) for row in chosen]
    if linked:
        assert len(set(assets)) == 1
        assert assets[0] is not None
    else:
        given_assets = [asset for asset in assets if asset is not None]
        assert len(set(given_assets)) == len(given_assets)
    resolution = world.load()
    assert (resolution.links, resolution.ended, resolution.assets) == ([], {}, [])


@st.composite
def _coins_that_share_little(draw: st.DrawFn) -> list[Coin]:
    # Of each symbol and name at most a few, so that many decisions follow from labels.
    numbers = draw(st.lists(st.integers(0, 12), min_size=1, max_size=8))
    return [
        coin(
            f"{draw(st.sampled_from(['csv', 'csv', 'csv', 'tide']))}/coin-{number}",
            draw(st.sampled_from([f"C{number}", None])),
            draw(st.sampled_from([f"Coin {number}", "Coin 1", None])),
            listed=draw(st.sampled_from([None, None, True, False])),
        )
        for number in dict.fromkeys(numbers)
    ]


@given(_coins_that_share_little(), _coins_that_share_little(), st.booleans(), st.data())
def test_a_decision_by_labels_is_that_of_any_figures(
    first: list[Coin], later: list[Coin], awaits: bool, data: st.DataObject
) -> None:
    def with_other_figures(each: Coin) -> Coin:
        return msgspec.structs.replace(
            each,
            rank=data.draw(st.sampled_from([None, 1, 2, 900])),
            price_usd=data.draw(st.sampled_from([None, Decimal(1), Decimal(60_000)])),
            circulating_supply=data.draw(st.sampled_from([None, Decimal(21)])),
            observed_at=NOW - timedelta(days=data.draw(st.integers(0, 3))),
            first_seen_at=NOW - timedelta(days=data.draw(st.integers(0, 900))),
        )

    world = World(*first)
    known = {each.key: each for each in (*world.knowledge.coins, *later)}
    awaited = ["coingecko"] if awaits else []
    before = msgspec.structs.replace(world.knowledge, coins=list(known.values()), awaited=awaited)
    after = msgspec.structs.replace(before, coins=[with_other_figures(each) for each in known.values()])

    decided = resolve_by_labels(before)

    assert decided is None or decided == resolve(after)


def test_coins_of_one_archive_are_decided_by_labels() -> None:
    coins = [coin(f"csv/coin-{n}", f"C{n % 5}", f"Coin {n}", rank=n) for n in range(50)]
    assert resolve_by_labels(Knowledge(coins=coins)) == resolve(Knowledge(coins=coins))


def test_ranks_decide_which_of_two_coins_gets_an_id() -> None:
    coins = [coin(f"csv/{n}", "C", "Coin", rank=n) for n in range(2)]
    assert resolve_by_labels(Knowledge(coins=coins)) is None
