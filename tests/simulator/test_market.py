"""The market is reproducible from its seed and has every oddity of real data."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from kasparro.simulator.clock import Clock
from kasparro.simulator.coins import make_coins
from kasparro.simulator.market import Market, Quote
from tests.simulator.conftest import BASE


def market(*, seed: int = 7, coins: int = 600) -> Market:
    return Market(Clock(BASE, 60_000, manual=True), seed=seed, coins=coins)


@pytest.fixture(scope="module")
def coinpaprika() -> list[Quote]:
    return list(market(coins=2_500).listing("coinpaprika"))


@pytest.fixture(scope="module")
def coingecko() -> list[Quote]:
    return list(market(coins=2_500).listing("coingecko"))


def test_same_seed_gives_the_same_market() -> None:
    assert market().listing("coingecko") == market().listing("coingecko")
    assert market().listing("coingecko") != market(seed=8).listing("coingecko")


@pytest.mark.slow
@pytest.mark.parametrize("ticks", [1, 5, 255, 10_000])
def test_tick_is_the_same_however_reached(ticks: int) -> None:
    stepped, jumped = market(coins=120), market(coins=120)
    jumped.clock.advance(ticks)
    for _ in range(min(ticks, 300)):
        stepped.clock.advance(max(1, ticks // 300))
        stepped.listing("coinpaprika")
    stepped.clock.advance(ticks - stepped.clock.tick)
    assert stepped.listing("coinpaprika") == jumped.listing("coinpaprika")


def test_reset_returns_to_the_first_tick() -> None:
    moved = market()
    first = moved.listing("coingecko")
    moved.clock.advance(3)
    assert moved.listing("coingecko") != first
    moved.clock.reset()
    assert moved.listing("coingecko") == first


def test_larger_market_begins_with_a_smaller_one() -> None:
    assert make_coins(3, 200)[:50] == make_coins(3, 50)


@pytest.mark.parametrize("count", [0, 20_001])
def test_market_has_1_to_20000_coins(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 20000"):
        make_coins(1, count)


def test_two_fifths_of_the_coins_move_in_a_tick() -> None:
    moving = market(coins=2_500)
    before = {quote.id: quote for quote in moving.listing("coingecko")}
    moving.clock.advance()
    after = {quote.id: quote for quote in moving.listing("coingecko")}
    moved = [coin for coin in after if after[coin].last_updated != before[coin].last_updated]
    assert 0.35 < len(moved) / len(after) < 0.48
    assert sum(after[coin].price_usd != before[coin].price_usd for coin in moved) > 0.9 * len(moved)


def test_unmoved_coin_is_the_same_object() -> None:
    still = market()
    first = still.listing("coingecko")
    assert all(a is b for a, b in zip(first, still.listing("coingecko"), strict=True))


def test_running_clock_follows_its_time_source() -> None:
    seconds = 100.0
    clock = Clock(BASE, 2_000, manual=False, monotonic=lambda: seconds)
    seconds = 105.0
    assert (clock.tick, clock.now()) == (2, BASE + timedelta(seconds=5))
    clock.advance(3)
    assert clock.tick == 5


def test_most_coins_are_listed_by_both_apis() -> None:
    coins = make_coins(7, 2_500)
    assert (coins[0].coinpaprika_id, coins[0].coingecko_id) == ("btc-bitcoin", "bitcoin")
    both = sum(coin.coinpaprika_id is not None and coin.coingecko_id is not None for coin in coins)
    assert 0.85 < both / len(coins) < 0.95
    assert any(coin.coinpaprika_id is None for coin in coins)
    assert any(coin.coingecko_id is None for coin in coins)


@pytest.mark.slow
def test_ids_are_unique_and_symbols_are_not(coingecko: list[Quote], coinpaprika: list[Quote]) -> None:
    for listing in (coingecko, coinpaprika):
        assert len({quote.id for quote in listing}) == len(listing)
        assert len({quote.symbol for quote in listing}) < len(listing) * 0.95


def test_case_of_symbols(coingecko: list[Quote], coinpaprika: list[Quote]) -> None:
    assert all(quote.symbol == quote.symbol.lower() for quote in coingecko)
    assert sum(quote.symbol == quote.symbol.upper() for quote in coinpaprika) > 0.9 * len(coinpaprika)
    assert {"B@", ""} <= {quote.symbol for quote in coinpaprika}


def test_names_have_the_oddities_of_real_data(coingecko: list[Quote]) -> None:
    names = "\n".join(quote.name for quote in coingecko)
    assert all(odd in names for odd in ("柴", "Ω", "\u200b", '"', "<b>", "\n=", "'", "\n "))


def test_prices_of_both_apis_are_close(coingecko: list[Quote], coinpaprika: list[Quote]) -> None:
    theirs = {quote.coin.index: Decimal(quote.price_usd) for quote in coinpaprika if quote.price_usd}
    pairs = [
        (Decimal(quote.price_usd), theirs[quote.coin.index])
        for quote in coingecko
        if quote.price_usd and Decimal(quote.price_usd) and quote.coin.index in theirs
    ]
    assert all(abs(a - b) / a < Decimal("0.004") for a, b in pairs)
    assert sum(a != b for a, b in pairs) > 0.99 * len(pairs)


def test_values_have_the_range_of_real_data(coingecko: list[Quote]) -> None:
    prices = [quote.price_usd for quote in coingecko if quote.price_usd is not None]
    assert min(Decimal(price) for price in prices if Decimal(price)) < Decimal("2e-12")
    assert any("e-" in price for price in prices)
    assert any(len(price.replace(".", "").lstrip("0")) > 17 for price in prices), "beyond a float's digits"
    assert "0" in prices
    assert None in [quote.price_usd for quote in coingecko]
    supplies = [
        (Decimal(q.circulating_supply), Decimal(q.total_supply))
        for q in coingecko
        if q.circulating_supply is not None and q.total_supply is not None
    ]
    assert max(circulating for circulating, _ in supplies) > 10**15
    assert any(circulating > total for circulating, total in supplies)
    assert max(Decimal(quote.market_cap_usd or 0) for quote in coingecko) > 10**12


def test_unknown_cap_is_zero_unranked_and_last(coingecko: list[Quote]) -> None:
    unknown = [quote.market_cap_usd == "0.0" for quote in coingecko]
    assert 20 < sum(unknown) < 300
    assert unknown == sorted(unknown)
    assert all((quote.rank is None) == (quote.market_cap_usd == "0.0") for quote in coingecko)


def test_ranks_tie_and_have_gaps(coingecko: list[Quote]) -> None:
    ranks = [quote.rank for quote in coingecko if quote.rank is not None]
    assert ranks == sorted(ranks)
    assert max(Counter(ranks).values()) > 1
    assert set(range(1, max(ranks))) - set(ranks)


def test_coinpaprika_writes_zero_for_unknown(coinpaprika: list[Quote]) -> None:
    assert "0" in [quote.max_supply for quote in coinpaprika]
    assert "0" in [quote.circulating_supply for quote in coinpaprika]
    assert "0" in [quote.market_cap_usd for quote in coinpaprika]


def test_listing_has_times_of_hours_and_weeks_ago(coingecko: list[Quote]) -> None:
    ages = [BASE - datetime.fromisoformat(quote.last_updated) for quote in coingecko]
    assert min(ages) >= timedelta(0)
    assert sum(age < timedelta(minutes=10) for age in ages) > 0.7 * len(ages)
    assert any(timedelta(hours=6) < age < timedelta(hours=8) for age in ages)
    assert sum(age > timedelta(days=14) for age in ages) > 10


def test_coinpaprika_sometimes_omits_a_coin() -> None:
    moving = market(coins=2_500)
    seen: list[set[str]] = []
    for _ in range(6):
        seen.append({quote.id for quote in moving.listing("coinpaprika")})
        moving.clock.advance()
    assert len(seen[0].union(*seen) - seen[0].intersection(*seen)) > 0
    assert min(map(len, seen)) > len(seen[0].union(*seen)) - 20


def test_times_are_in_utc() -> None:
    assert market().clock.now().tzinfo is UTC
    assert all(quote.last_updated.endswith("Z") for quote in market().listing("coinpaprika"))
