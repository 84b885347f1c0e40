"""Makes the coins of a simulated market: all their properties that do not change over time."""

import re
import unicodedata
from random import Random
from typing import Literal, TypeAlias

import msgspec

from kasparro.simulator.lookalikes import LOOKALIKES, Lookalike
from kasparro.simulator.seeded_random import seeded_random

Api: TypeAlias = Literal["coinpaprika", "coingecko"]

SUPPLY_SCALE = 4
"""Supplies are integers in units of 10**-SUPPLY_SCALE coins."""

MOST_COINS = 20_000
_SUPPLY_UNIT: int = 10**SUPPLY_SCALE


class CoinHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the APIs report of a coin besides its market values."""

    image: int
    skew: int
    """How far CoinPaprika's price differs from CoinGecko's, in parts per million."""
    ath_percent: int
    """All-time high in percent of the base price; the all-time low is as far below it."""
    ath_date: str
    atl_date: str
    first_data_at: str
    year_change: int
    """Percent change over a year, in hundredths."""
    beta: int
    """Beta, in millionths."""


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    """One coin, with its id in each API (None: that API does not list it)."""

    index: int
    symbol: str
    name: str
    coinpaprika_id: str | None
    coingecko_id: str | None
    mantissa: int
    """The base price is `mantissa / 10**scale` dollars."""
    scale: int
    price_of: int
    """The index of the coin whose price it follows: its own, or that of the coin of which it is a form."""
    chains: tuple[str, ...] = ()
    """The chains on which it has a contract; none for a native coin."""
    priced: bool = True
    volatility: int = 100
    """Price movement in percent of an ordinary coin's."""
    activity: float = 0.42
    """The chance that a tick gives this coin a new price; 0 for abandoned coins."""
    lag_ms: int = 0
    """How much older than its tick the coin's `last_updated` is."""
    circulating: int | None
    total: int | None
    maximum: int | None
    capped: bool = True
    """False: its market cap is unknown (0) and it has no rank."""
    volume: int
    ranked_like_previous: bool = False
    ranks_skipped: int = 0
    roi: tuple[int, str] | None = None
    """Return on investment in hundredths, and its currency."""
    gaps: bool = False
    """CoinPaprika has no optional values for it: it writes empty strings and nulls."""
    history: CoinHistory


# name, symbol, CoinGecko id, price, circulating, total, maximum (millions of coins), day's volume (millions)
_WELL_KNOWN = (
    ("Bitcoin", "BTC", "bitcoin", "109311.2748215", 19.92, 19.92, 21, 43_000),
    ("Ethereum", "ETH", "ethereum", "4012.8716390417", 120.7, 120.7, None, 31_000),
    ("Tether", "USDT", "tether", "1.00031", 174_300, 174_300, None, 118_000),
    ("XRP", "XRP", "ripple", "2.78531904", 59_870, 99_985, 100_000, 5_600),
    ("BNB", "BNB", "binancecoin", "962.40513372", 139.18, 139.18, 200, 1_900),
    ("Solana", "SOL", "solana", "202.173650091", 543.6, 611.7, None, 6_800),
    ("USDC", "USDC", "usd-coin", "0.999782", 73_900, 73_910, None, 14_000),
    ("Dogecoin", "DOGE", "dogecoin", "0.2295104186", 151_064, 151_112, None, 2_480),
    ("Lido Staked Ether", "STETH", "staked-ether", "4010.2290315", 8.51, 8.51, None, 21),
    ("TRON", "TRX", "tron", "0.3371205518", 94_660, 94_663, None, 640),
    ("Cardano", "ADA", "cardano", "0.7790241083", 35_820, 45_000, 45_000, 930),
    ("Wrapped Bitcoin", "WBTC", "wrapped-bitcoin", "109190.88037", 0.1272, 0.1272, 0.1272, 240),
    ("Chainlink", "LINK", "chainlink", "20.8814036215", 678, 1_000, 1_000, 760),
    ("Hyperliquid", "HYPE", "hyperliquid", "45.061138402", 333.9, 1_000, 1_000, 510),
    ("Avalanche", "AVAX", "avalanche-2", "28.4470913306", 422.3, 458.6, 720, 1_010),
    ("Sui", "SUI", "sui", "3.1962803341", 3_570, 10_000, 10_000, 880),
    ("Stellar", "XLM", "stellar", "0.3610447825", 31_640, 50_002, 50_002, 240),
    ("Bitcoin Cash", "BCH", "bitcoin-cash", "549.81702361", 19.93, 19.93, 21, 290),
    ("Hedera", "HBAR", "hedera-hashgraph", "0.2128840517", 42_390, 50_000, 50_000, 250),
    ("LEO Token", "LEO", "leo-token", "9.5320411", 922.4, 985.2, None, 1.3),
    ("Litecoin", "LTC", "litecoin", "104.66318052", 76.3, 84, 84, 460),
    ("Toncoin", "TON", "the-open-network", "2.7050713968", 2_520, 5_140, None, 140),
    ("Shiba Inu", "SHIB", "shiba-inu", "0.000011814057302", 589_244_000, 589_500_000, None, 160),
    ("Monero", "XMR", "monero", "291.40257316", 18.446, 18.446, None, 98),
    ("Polkadot", "DOT", "polkadot", "3.8561924407", 1_630, 1_630, 2_100, 220),
    ("Dai", "DAI", "dai", "0.9998104", 4_280, 4_280, None, 110),
    ("Uniswap", "UNI", "uniswap", "7.6044180352", 600.5, 1_000, 1_000, 310),
    ("Aave", "AAVE", "aave", "271.055639", 15.25, 16, 16, 350),
    ("Pepe", "PEPE", "pepe", "0.0000092641750389", 420_690_000, 420_690_000, 420_690_000, 480),
    ("Internet Computer", "ICP", "internet-computer", "4.2961120458", 538.2, 538.2, None, 62),
)

_CALM = frozenset({"USDT", "USDC", "DAI"})
_PRICE_OF = {"STETH": 1, "WBTC": 0}
# CoinPaprika's ids keep the names of long ago.
_COINPAPRIKA_IDS = {
    "BNB": "bnb-binance-coin",
    "USDC": "usdc-usd-coin",
    "TON": "toncoin-the-open-network",
}
_CHAINS = {
    "USDT": ("ethereum", "tron", "solana"),
    "USDC": ("ethereum", "solana", "avalanche"),
    "SHIB": ("ethereum", "bsc"),
    "LINK": ("ethereum", "polygon", "fantom"),
    "AAVE": ("ethereum", "polygon"),
} | dict.fromkeys(("STETH", "WBTC", "LEO", "DAI", "UNI", "PEPE"), ("ethereum",))
_RAISED_PUBLICLY = {"ETH": (4_780, "btc"), "LINK": (17_240, "usd"), "TRX": (17_640, "usd")}

# Names and symbols in the style of real ones, in the order in which they enter a market.
_ODD = (
    ("柴犬币", "柴犬"),
    ("Ωmega Δao", "ΩΔ"),
    ("Zero\u200bWidth\u2060 Coin", "ZWC"),
    ('The "Quoted" Coin', "QTE"),
    ("<b>Bold</b> & Finance", "BLD"),
    ("=SUM(A1:A9)", "SUM"),
    ("B At By", "B@"),
    ("Nameless Ticker", ""),
    ("O'Brien's; DROP", "OBD"),
    ("Moon 🚀 Inu", "MOON🚀"),
    (" Leading Space", "LEAD"),
    ("عملة", "UMLA"),
)

# The place of the lookalikes among the coins that are not well known.
_FIRST_LOOKALIKE = 40
_TOKEN_CHAINS = ("ethereum", "bsc", "polygon", "avalanche", "fantom", "arbitrum", "solana", "tron")

_SYLLABLES = (
    "al an ar bel bit bo cal cor da del dex dor el en er fi flux ga gen glo hel in ix ja kan ker la lor "
    "lum mar met mi nex nor nu o or pal par pro qua ra ren rho sa sol syn ta ter tri ul ura va vel vor "
    "wen xan ya yon za zen"
)
_KINDS = ("Coin", "Token", "Protocol", "Finance", "Network", "DAO", "Inu", "AI", "Chain", "Cash", "", "", "")


def make_coins(seed: int, count: int) -> tuple[Coin, ...]:
    """Make `count` coins, the same for the same seed. A larger market begins with a smaller one."""
    if not 1 <= count <= MOST_COINS:
        raise ValueError(f"A market has 1 to {MOST_COINS} coins, not {count}.")
    maker = _CoinMaker(seed)
    return tuple(maker.coin(index) for index in range(count))


def slug(text: str) -> str:
    """The lower-case letters and digits of `text`, with dashes between."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


class _CoinMaker:
    """Makes coins in order, with unique ids."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._symbols: list[str] = []
        self._coinpaprika_ids: set[str] = set()
        self._coingecko_ids: set[str] = set()

    def coin(self, index: int) -> Coin:
        rng = seeded_random(self._seed, "coin", index)
        if index < len(_WELL_KNOWN):
            return self._well_known(index, rng)
        odd = index - len(_WELL_KNOWN)
        if 0 <= odd - _FIRST_LOOKALIKE < len(LOOKALIKES):
            return self._lookalike(index, LOOKALIKES[odd - _FIRST_LOOKALIKE], rng)
        name, symbol = _ODD[odd] if odd < len(_ODD) else self._invent(rng)
        self._symbols.append(symbol)
        listed_by = "both" if odd < 40 else rng.choices(("both", "coinpaprika", "coingecko"), (90, 5, 5))[0]
        mantissa, scale = _price(odd, rng)
        circulating, total, maximum = _supplies(odd, mantissa, scale, rng)
        abandoned = odd == 18 or (odd >= 40 and rng.random() < 0.03)
        return Coin(
            index=index,
            symbol=symbol,
            name=name,
            coinpaprika_id=None
            if listed_by == "coingecko"
            else _unique(f"{slug(symbol)}-{slug(name)}".strip("-") or f"coin-{index}", self._coinpaprika_ids),
            coingecko_id=None
            if listed_by == "coinpaprika"
            else _unique(slug(name) or f"coin-{index}", self._coingecko_ids),
            mantissa=mantissa,
            scale=scale,
            price_of=index,
            chains=_token_chains(seeded_random(self._seed, "chains", index)),
            priced=odd != 20,
            volatility=rng.choice((60, 100, 140, 200)),
            activity=0.0 if abandoned else rng.uniform(0.2, 0.68),
            lag_ms=rng.randrange(14, 90) * 86_400_000 + rng.randrange(86_400_000)
            if abandoned
            else _lag_ms(odd, rng),
            circulating=circulating,
            total=total,
            maximum=maximum,
            capped=odd not in (16, 17) and not (odd >= 40 and rng.random() < 0.04),
            volume=int(10 ** rng.uniform(0.5, 7.5)),
            ranked_like_previous=odd == 22 or rng.random() < 0.01,
            ranks_skipped=1 if odd == 24 or rng.random() < 0.01 else 0,
            gaps=odd in (17, 26) or rng.random() < 0.03,
            history=_history(index, rng),
        )

    def _well_known(self, index: int, rng: Random) -> Coin:
        name, symbol, coingecko_id, price, circulating, total, maximum, volume = _WELL_KNOWN[index]
        whole, _, fraction = price.partition(".")
        self._symbols.append(symbol)
        self._coingecko_ids.add(coingecko_id)
        return Coin(
            index=index,
            symbol=symbol,
            name=name,
            coinpaprika_id=_unique(
                _COINPAPRIKA_IDS.get(symbol, f"{slug(symbol)}-{slug(name)}"), self._coinpaprika_ids
            ),
            coingecko_id=coingecko_id,
            mantissa=int(whole + fraction),
            scale=len(fraction),
            price_of=_PRICE_OF.get(symbol, index),
            chains=_CHAINS.get(symbol, ()),
            volatility=2 if symbol in _CALM else 60,
            lag_ms=rng.randrange(40_000),
            circulating=_millions(circulating) + rng.randrange(_SUPPLY_UNIT),
            total=_millions(total),
            maximum=None if maximum is None else _millions(maximum),
            volume=int(volume * 1_000_000) + rng.randrange(1_000_000),
            roi=_RAISED_PUBLICLY.get(symbol),
            history=_history(index, rng, calm=symbol in _CALM, known=True),
        )

    def _lookalike(self, index: int, spec: Lookalike, rng: Random) -> Coin:
        original = next((place for place, known in enumerate(_WELL_KNOWN) if known[1] == spec.form_of), index)
        whole, _, fraction = (spec.price or _WELL_KNOWN[original][3]).partition(".")
        mantissa, scale = int(whole + fraction), len(fraction)
        calm = spec.form_of in _CALM
        circulating = spec.cap * 10 ** (scale + SUPPLY_SCALE) // mantissa
        self._symbols.append(spec.symbol)
        return Coin(
            index=index,
            symbol=spec.symbol,
            name=spec.name,
            coinpaprika_id=_unique(f"{slug(spec.symbol)}-{slug(spec.name)}", self._coinpaprika_ids)
            if spec.in_coinpaprika
            else None,
            coingecko_id=_unique(spec.coingecko_id or slug(spec.name), self._coingecko_ids),
            mantissa=mantissa,
            scale=scale,
            price_of=original,
            chains=spec.chains,
            volatility=2 if calm else 60,
            lag_ms=rng.randrange(40_000),
            circulating=circulating,
            total=circulating,
            maximum=None,
            volume=spec.cap // 50,
            history=_history(index, rng, calm=calm, known=True),
        )

    def _invent(self, rng: Random) -> tuple[str, str]:
        word = "".join(rng.choices(_SYLLABLES.split(), k=rng.choice((2, 2, 3)))).capitalize()
        name = f"{word} {rng.choice(_KINDS)}".strip()
        if rng.random() < 0.12:
            return name, rng.choice(self._symbols)
        symbol = re.sub(r"[AEIOU]", "", word.upper())[: rng.choice((3, 4, 4, 5))] or word.upper()
        return name, symbol.lower() if rng.random() < 0.02 else symbol


def _token_chains(rng: Random) -> tuple[str, ...]:
    """No chain for a third of the coins, one for most others."""
    if rng.random() < 0.35:
        return ()
    count = rng.choices((1, 2, 3), (84, 11, 5))[0]
    return tuple(rng.sample(_TOKEN_CHAINS, count, counts=(24, 14, 5, 3, 1, 3, 9, 1)))


def _price(odd: int, rng: Random) -> tuple[int, int]:
    if odd == 12:
        return 12, 13  # 1.2e-12
    if odd == 13:
        return 0, 0
    if odd == 14:
        return 123_456_789_012_345_678_123_456_789, 18
    digits = rng.choice((4, 6, 9, 12, 15, 17, 20))
    magnitude = rng.choice((-11, -8, -6, -5, -4, -3, -2, -2, -1, -1, -1, 0, 0, 1, 2, 3))
    mantissa = rng.randrange(10 ** (digits - 1), 10**digits) | 1
    scale = digits - 1 - magnitude
    return (mantissa, scale) if scale >= 0 else (mantissa * 10**-scale, 0)


def _supplies(odd: int, mantissa: int, scale: int, rng: Random) -> tuple[int | None, int | None, int | None]:
    """Circulating, total and maximum supply. The market cap falls with the coin's index."""
    cap = int(2.4e9 * rng.uniform(0.6, 1.6) / (1 + odd / 12) ** 1.7) + 900
    circulating = max(cap * 10 ** (scale + SUPPLY_SCALE) // max(mantissa, 1), _SUPPLY_UNIT)
    if rng.random() < 0.5:
        circulating -= circulating % _SUPPLY_UNIT
    circulating = max(circulating, _SUPPLY_UNIT)
    total: int | None = circulating + circulating * rng.choice((0, 0, 5, 20, 90)) // 100
    if odd == 15 or rng.random() < 0.02:
        total = circulating * 97 // 100  # more in circulation than in total, as in real data
    elif odd in (17, 19) or rng.random() < 0.03:
        total = None
    maximum = None if total is None or rng.random() < 0.5 else total + total * rng.choice((0, 0, 10)) // 100
    return (None if odd == 21 else circulating), total, maximum


def _lag_ms(odd: int, rng: Random) -> int:
    """Mostly seconds, for some coins hours: one response spans seven hours of `last_updated`."""
    if odd == 19 or rng.random() < 0.12:
        return rng.randrange(600_000, 7 * 3_600_000)
    return rng.randrange(240_000)


def _history(index: int, rng: Random, *, calm: bool = False, known: bool = False) -> CoinHistory:
    born = rng.randrange(2012, 2025)
    return CoinHistory(
        image=index + 1,
        skew=rng.choice((-1, 1)) * rng.randrange(20, 300 if calm else 3000),
        ath_percent=105 if calm else rng.randrange(120, 260) if known else int(150 * 10 ** rng.uniform(0, 2)),
        ath_date=_date(2025, rng),
        atl_date=_date(born, rng),
        first_data_at=_date(born, rng),
        year_change=rng.randrange(-60, 60) if calm else rng.randrange(-9_800, 24_000),
        beta=rng.randrange(-400_000, 1_900_000),
    )


def _date(year: int, rng: Random) -> str:
    """A random time in that year, without fraction and zone."""
    day = f"{year}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}"
    return f"{day}T{rng.randrange(24):02d}:{rng.randrange(60):02d}:{rng.randrange(60):02d}"


def _millions(coins: float) -> int:
    return round(coins * 1_000_000) * _SUPPLY_UNIT


def _unique(wanted: str, taken: set[str]) -> str:
    candidate, number = wanted, 2
    while candidate in taken:
        candidate, number = f"{wanted}-{number}", number + 1
    taken.add(candidate)
    return candidate
