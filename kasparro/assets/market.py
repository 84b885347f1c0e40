"""Compares what the market says about two rows. It confirms that they are one coin or rules it out."""

from datetime import timedelta
from decimal import Decimal
from enum import Enum

import msgspec

from kasparro.assets.knowledge import PricePairs
from kasparro.model.asset import Coin

# Prices of one coin at two sources differ by no more than this factor at about the same moment.
AGREES = Decimal("1.05")
# Prices that differ by more than this factor are of two coins: (how far apart the moments are, the factor).
# A price that is older may have moved further.
FAR = (
    (timedelta(hours=1), Decimal(2)),
    (timedelta(hours=6), Decimal(3)),
    (timedelta(days=3), Decimal(10)),
)
SAME_MOMENT = FAR[0][0]
# The price of one coin moves by no more than this factor between two records, in most cases.
CONTINUES = Decimal("1.25")
# Caps that differ by more than the second factor are of two coins. Sources count circulating coins
# differently, so that smaller differences than the first say nothing.
CAP_DIFFERS, CAP_FAR = Decimal(3), Decimal(50)
SUPPLY_AGREES = Decimal("1.02")
# A coin among these ranks is not the same as one whose rank is ten times as high and beyond the second limit.
LEADING_RANK, FAR_RANK = 200, 500
# With so many moments, equal prices are no coincidence, and different ones no momentary error.
MANY_MOMENTS = 20
_PEG = (Decimal("0.97"), Decimal("1.03"))


class Verdict(Enum):
    """What the market says: that two rows are one coin, that they are not, or nothing."""

    AGREES = "for"
    SILENT = "neutral"
    DIFFERS = "against"
    FAR = "veto"


class Finding(msgspec.Struct, frozen=True):
    """A verdict on one figure, with a sentence for a person. `weak` agreement is common by chance."""

    kind: str
    verdict: Verdict
    text: str
    weak: bool = False


def compare_markets(one: Coin, other: Coin, prices: PricePairs = ()) -> list[Finding]:
    """What prices, caps, ranks and supplies say; `prices` are prices of both at the same moments."""
    # A price of zero says nothing.
    prices = [pair for pair in prices if min(pair) > 0]
    findings = [_series(prices)] if prices else []
    if not prices and (price := _price(one, other)) is not None:
        findings.append(price)
    price_agrees = any(each.verdict is Verdict.AGREES for each in findings)
    apart = abs(one.observed_at - other.observed_at)
    if apart <= FAR[-1][0]:
        cap = _cap(one, other)
        if cap is not None and not (price_agrees and cap.verdict is not Verdict.AGREES):
            findings.append(cap)
        elif cap is None and not price_agrees and (rank := _rank(one, other)) is not None:
            findings.append(rank)
    if (supply := _supply(one, other)) is not None:
        findings.append(supply)
    return findings


def ratio(one: Decimal, other: Decimal) -> Decimal:
    """How many times the larger figure is the smaller one. Both are above zero."""
    return max(one, other) / min(one, other)


def _series(prices: PricePairs) -> Finding:
    ratios = [ratio(one, other) for one, other in prices]
    agree = sum(each <= AGREES for each in ratios)
    far = sum(each > FAR[0][1] for each in ratios)
    moments = f"{len(ratios)} moments" if len(ratios) != 1 else "1 moment"
    if agree * 10 >= len(ratios) * 8:
        pegged = all(_PEG[0] <= price <= _PEG[1] for pair in prices for price in pair)
        return Finding("price", Verdict.AGREES, f"prices agree at {agree} of {moments}", weak=pegged)
    if far * 10 >= len(ratios) * 8:
        return Finding(
            "price", Verdict.FAR, f"prices differ by more than {FAR[0][1]} times at {far} of {moments}"
        )
    return Finding("price", Verdict.DIFFERS, f"prices agree at only {agree} of {moments}")


def _price(one: Coin, other: Coin) -> Finding | None:
    if not one.price_usd or not other.price_usd or one.price_usd < 0 or other.price_usd < 0:
        return None
    apart = abs(one.observed_at - other.observed_at)
    limit = next((factor for span, factor in FAR if apart <= span), None)
    if limit is None:
        return None
    times = ratio(one.price_usd, other.price_usd)
    both = f"{_figure(one.price_usd)} and {_figure(other.price_usd)}"
    if times > limit:
        return Finding("price", Verdict.FAR, f"prices are far apart at about the same moment: {both}")
    if apart > SAME_MOMENT:
        return None
    if times <= AGREES:
        pegged = all(_PEG[0] <= coin.price_usd <= _PEG[1] for coin in (one, other) if coin.price_usd)
        return Finding("price", Verdict.AGREES, f"prices agree at about the same moment: {both}", weak=pegged)
    return Finding("price", Verdict.DIFFERS, f"prices differ at about the same moment: {both}")


def _cap(one: Coin, other: Coin) -> Finding | None:
    # A cap of zero means unknown at both sources.
    if not one.market_cap_usd or not other.market_cap_usd:
        return None
    times = ratio(one.market_cap_usd, other.market_cap_usd)
    both = f"{_figure(one.market_cap_usd)} and {_figure(other.market_cap_usd)}"
    if times > CAP_FAR:
        return Finding("market_cap", Verdict.FAR, f"market caps are far apart: {both}")
    if times <= AGREES:
        return Finding("market_cap", Verdict.AGREES, f"market caps agree: {both}")
    if times > CAP_DIFFERS:
        return Finding("market_cap", Verdict.DIFFERS, f"market caps differ: {both}")
    return None


def _rank(one: Coin, other: Coin) -> Finding | None:
    if not one.rank or not other.rank:
        return None
    low, high = sorted((one.rank, other.rank))
    if low <= LEADING_RANK and high > max(FAR_RANK, 10 * low):
        return Finding("rank", Verdict.FAR, f"ranks are far apart: {one.rank} and {other.rank}")
    return None


def _supply(one: Coin, other: Coin) -> Finding | None:
    if not one.circulating_supply or not other.circulating_supply:
        return None
    times = ratio(one.circulating_supply, other.circulating_supply)
    both = f"{_figure(one.circulating_supply)} and {_figure(other.circulating_supply)}"
    if times <= SUPPLY_AGREES:
        round_number = one.circulating_supply.normalize().as_tuple().digits == (1,)
        return Finding("supply", Verdict.AGREES, f"circulating supplies agree: {both}", weak=round_number)
    return None


def continues(before: Coin, after: Coin) -> Verdict:
    """Whether a later record continues an earlier one of the same coin, by price and supply."""
    verdicts = [
        each
        for each in (_price_moved(before, after), _supply_moved(before, after))
        if each is not Verdict.SILENT
    ]
    if Verdict.FAR in verdicts:
        return Verdict.FAR
    return Verdict.AGREES if verdicts else Verdict.SILENT


def _price_moved(before: Coin, after: Coin) -> Verdict:
    apart = abs(after.observed_at - before.observed_at)
    if not before.price_usd or not after.price_usd or apart > FAR[-1][0]:
        return Verdict.SILENT
    limit = next(factor for span, factor in FAR if apart <= span)
    times = ratio(before.price_usd, after.price_usd)
    return Verdict.FAR if times > limit else Verdict.AGREES if times <= CONTINUES else Verdict.SILENT


def _supply_moved(before: Coin, after: Coin) -> Verdict:
    if not before.circulating_supply or not after.circulating_supply:
        return Verdict.SILENT
    times = ratio(before.circulating_supply, after.circulating_supply)
    return Verdict.FAR if times > 3 else Verdict.AGREES if times <= SUPPLY_AGREES else Verdict.SILENT


def _figure(value: Decimal) -> str:
    # Shortened for people; the comparison uses all digits.
    return f"{float(value):.4g}" if value < 1000 else f"{float(value):,.0f}"
