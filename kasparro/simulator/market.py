"""The simulated market: what each API reports of each coin at the current tick."""

from array import array
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, assert_never

import msgspec

from kasparro.simulator.clock import Clock
from kasparro.simulator.coins import SUPPLY_SCALE, Api, Coin, make_coins
from kasparro.simulator.events import (
    AnyEvent,
    ChangedId,
    ImpossibleEvent,
    Rebrand,
    ReusedId,
    StrayPrice,
)
from kasparro.simulator.number_format import GO, RUBY, Notation, numeral, shortened
from kasparro.simulator.price_model import MILLION, PriceModel, PricePath
from kasparro.simulator.seeded_random import seeded_random

Decimal: TypeAlias = tuple[int, int]
"""A mantissa and its scale: `mantissa / 10**scale`."""

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_NOTATION: dict[Api, Notation] = {"coinpaprika": GO, "coingecko": RUBY}
_MEMORY = 256  # ticks searched for a coin's last move; the chance of a longer pause is below 1e-24
_FLICKER = 0.999  # a draw above it hides the coin from CoinPaprika for that tick
# The largest coins are on every list.
_STEADY = 200


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """One coin as one API reports it. Values are JSON number texts, as served at full precision.

    None: the API writes null or an empty string, or omits the field. A zero is the API's zero, whether it
    means zero or unknown.
    """

    coin: Coin
    id: str
    symbol: str
    name: str
    rank: int | None
    price_usd: str | None
    market_cap_usd: str | None
    volume_24h_usd: str
    circulating_supply: str | None
    total_supply: str | None
    max_supply: str | None
    percent_change_1h: str | None
    percent_change_24h: str | None
    percent_change_7d: str | None
    last_updated: str
    price: Decimal
    moved_ms: int
    """When the price changed last, in milliseconds since the market's base."""


class FormerId(msgspec.Struct, frozen=True):
    """An id that stood for a coin until that moment."""

    api: Api
    id: str
    until: datetime


class TrueCoin(msgspec.Struct, frozen=True, kw_only=True):
    """One coin, with the ids that stand for it now and those that did."""

    coin: int
    symbol: str
    name: str
    coinpaprika: str | None
    coingecko: str | None
    former: list[FormerId]
    form_of: int | None
    """The coin of which it is a wrapped or bridged form; that is another coin."""


class _Stray(msgspec.Struct, frozen=True):
    """A price that is wrong from one tick until another, by this factor in millionths."""

    factor: int
    since: int
    until: int


class Market:
    """The coins and their state at the clock's tick, computed on demand."""

    def __init__(self, clock: Clock, *, seed: int, coins: int) -> None:
        self.clock = clock
        self.seed = seed
        self.coins = make_coins(seed, coins)
        self._price_model = PriceModel(seed, coins)
        self._tick: int | None = None
        self._moved = array("q", [0]) * coins  # the tick of each coin's last move
        self._prices: list[int] = [0] * coins
        self._caps: list[int] = [0] * coins
        self._hidden: frozenset[int] = frozenset()
        self._ranked: dict[Api, list[tuple[int, int | None]]] = {}
        self._quotes: dict[tuple[Api, int], Quote] = {}
        self.revision = 0
        """Changes with every event, which may come within a tick."""
        self.reset()
        self._active = frozenset(coin.index for coin in self.coins if coin.activity)
        for coin in self.coins:
            if not coin.activity:
                self._move(coin.index, 0)

    def reset(self) -> None:
        """Return to the market before all events."""
        self.events: list[AnyEvent] = []
        self._ids: dict[Api, dict[int, str]] = {
            "coinpaprika": {coin.index: coin.coinpaprika_id for coin in self.coins if coin.coinpaprika_id},
            "coingecko": {coin.index: coin.coingecko_id for coin in self.coins if coin.coingecko_id},
        }
        self._former: dict[int, list[FormerId]] = {}
        self._labels: dict[tuple[Api, int], tuple[str, str]] = {}
        self._strays: dict[tuple[Api, int], _Stray] = {}
        self._forced: dict[int, set[int]] = {}
        self._forget()

    def trigger(self, event: AnyEvent) -> None:
        """Let an event happen now. Raises ImpossibleEvent."""
        index, tick = self._index(event.api, event.id), self.clock.tick
        ids = self._ids[event.api]
        match event:
            case Rebrand():
                self._labels[event.api, index] = (event.symbol, event.name)
            case ReusedId():
                newcomer = self._newcomer(event)
                self._retire(event.api, index)
                ids[newcomer] = event.id
                index = newcomer
            case ChangedId():
                if event.to in ids.values():
                    raise ImpossibleEvent(f"{event.api} has a coin with the id {event.to!r} already")
                self._retire(event.api, index)
                ids[index] = event.to
            case StrayPrice():
                until = tick + -(-event.minutes * MINUTE_MS // self.clock.tick_ms)
                whole, _, fraction = event.factor.partition(".")
                factor = int(whole + f"{fraction:0<6}")
                self._strays[event.api, index] = _Stray(factor, tick, until)
                self._forced.setdefault(index, set()).add(until)
            case _:
                assert_never(event)
        # The API reports the coin with a new time.
        self._forced.setdefault(index, set()).add(tick)
        self.events.append(event)
        self._forget()

    def listed(self, api: Api) -> list[tuple[str, Coin]]:
        """All ids of an API in their order, each with its coin; also coins that a response leaves out."""
        return sorted(
            ((source_id, self.coins[index]) for index, source_id in self._ids[api].items()),
            key=lambda pair: pair[0],
        )

    def labels(self, api: Api, coin: Coin) -> tuple[str, str]:
        """Symbol and name of a coin in an API."""
        return self._labels.get((api, coin.index), (coin.symbol, coin.name))

    def true_coins(self) -> list[TrueCoin]:
        """Which ids are the same coin."""
        return [
            TrueCoin(
                coin=coin.index,
                symbol=coin.symbol,
                name=coin.name,
                coinpaprika=self._ids["coinpaprika"].get(coin.index),
                coingecko=self._ids["coingecko"].get(coin.index),
                former=self._former.get(coin.index, []),
                form_of=None if coin.price_of == coin.index else coin.price_of,
            )
            for coin in self.coins
        ]

    def _index(self, api: Api, source_id: str) -> int:
        for index, known in self._ids[api].items():
            if known == source_id:
                return index
        raise ImpossibleEvent(f"{api} has no coin with the id {source_id!r}")

    def _newcomer(self, event: ReusedId) -> int:
        """The coin that takes the id over."""
        ids = self._ids[event.api]
        other: Api = "coingecko" if event.api == "coinpaprika" else "coinpaprika"
        if event.by is not None:
            index = self._index(other, event.by)
            if index in ids:
                raise ImpossibleEvent(f"{event.api} lists {event.by!r} of {other} already")
            return index
        self._update()
        free = [i for i in self._ids[other] if i not in ids and i in self._active and self._caps[i]]
        if not free:
            raise ImpossibleEvent(f"{event.api} lists every coin of {other}")
        return max(free, key=lambda index: self._caps[index])

    def _retire(self, api: Api, index: int) -> None:
        former = FormerId(api, self._ids[api].pop(index), self.clock.now())
        self._former.setdefault(index, []).append(former)

    def _forget(self) -> None:
        """Forget what was computed: the next reader gets the market with the events."""
        self.revision += 1
        self._tick = None
        self._quotes.clear()
        self._ranked.clear()

    def listing(self, api: Api) -> Sequence[Quote]:
        """All coins that the API lists at this tick, by market cap, without any fault."""
        return self.window(api, 0, len(self.coins))

    def window(self, api: Api, start: int, count: int) -> Sequence[Quote]:
        """A part of `listing`. An unchanged coin is the same object as at an earlier tick."""
        self._update()
        return [self._quote(api, index, rank) for index, rank in self._order(api)[start : start + count]]

    def change(self, coin: Coin, moved_ms: int, ago_ms: int, decimals: int, notation: Notation) -> str:
        """The change of the coin's price in percent over the `ago_ms` before `moved_ms`."""
        now, then = self._factor(coin, moved_ms), self._factor(coin, moved_ms - ago_ms)
        return percent(now, then, decimals, notation)

    def price_at(self, coin: Coin, elapsed_ms: int) -> int:
        """The coin's price at that time, which may be before the market's base, times `10**coin.scale`."""
        return coin.mantissa * self._factor(coin, elapsed_ms) // MILLION

    def price_before(self, quote: Quote, ago_ms: int) -> Decimal:
        """The coin's price `ago_ms` before its last move."""
        now, then = (
            self._factor(quote.coin, quote.moved_ms),
            self._factor(quote.coin, quote.moved_ms - ago_ms),
        )
        mantissa, scale = quote.price
        return mantissa * then // now, scale

    def _factor(self, coin: Coin, elapsed_ms: int) -> int:
        """The coin's price at that time, in millionths of its base price."""
        return MILLION + self._price_model.at(elapsed_ms).level(coin.price_of, coin.volatility)

    def _update(self) -> None:
        """Update prices, caps and ranks to the clock's tick."""
        tick = self.clock.tick
        if tick == self._tick:
            return
        known = self._tick if self._tick is not None and self._tick < tick else tick - _MEMORY
        since = max(known, tick - _MEMORY)
        waiting = set(self._active)
        for moment in range(tick, since, -1):
            draws = self._draws(moment)
            movers = [index for index in waiting if draws[index] < self.coins[index].activity]
            waiting.difference_update(movers)
            for index in movers:
                self._move(index, moment)
            if not waiting:
                break
        for index, ticks in self._forced.items():
            forced = max((moment for moment in ticks if moment <= tick), default=-1)
            if forced > self._moved[index]:
                self._move(index, forced)
        draws = self._draws(tick)
        self._hidden = frozenset(i for i in range(_STEADY, len(self.coins)) if draws[i] > _FLICKER)
        self._ranked.clear()
        self._tick = tick

    def _draws(self, tick: int) -> list[float]:
        rng = seeded_random(self.seed, "tick", tick)
        return [rng.random() for _ in self.coins]

    def _move(self, index: int, tick: int) -> None:
        coin = self.coins[index]
        price = self.price_at(coin, tick * self.clock.tick_ms)
        self._moved[index] = tick
        self._prices[index] = price
        if coin.capped and coin.priced and coin.circulating is not None:
            self._caps[index] = price * coin.circulating // 10 ** (coin.scale + SUPPLY_SCALE)
        else:
            self._caps[index] = 0

    def _order(self, api: Api) -> list[tuple[int, int | None]]:
        """Indexes and ranks of the coins that the API lists, by market cap; unknown caps come last."""
        order = self._ranked.get(api)
        if order is None:
            hidden = self._hidden if api == "coinpaprika" else frozenset()
            listed = [self.coins[index] for index in self._ids[api] if index not in hidden]
            listed.sort(key=lambda coin: (-self._caps[coin.index], coin.index))
            order = []
            rank = 0
            for coin in listed:
                if not coin.ranked_like_previous or rank == 0:
                    rank += 1 + coin.ranks_skipped
                unranked = self._caps[coin.index] == 0 and (api == "coingecko" or coin.gaps)
                order.append((coin.index, None if unranked else rank))
            self._ranked[api] = order
        return order

    def _quote(self, api: Api, index: int, rank: int | None) -> Quote:
        known = self._quotes.get((api, index))
        moved_ms = self._moved[index] * self.clock.tick_ms
        if known is None or known.moved_ms != moved_ms:
            make = self._coingecko if api == "coingecko" else self._coinpaprika
            known = make(self.coins[index], rank, moved_ms)
        elif known.rank == rank:
            return known
        else:
            known = msgspec.structs.replace(known, rank=rank)
        self._quotes[api, index] = known
        return known

    def _coingecko(self, coin: Coin, rank: int | None, moved_ms: int) -> Quote:
        stray = self._stray("coingecko", coin)
        price = _scaled((self._prices[coin.index], coin.scale), stray)
        cap = self._caps[coin.index] * stray // MILLION
        symbol, name = self.labels("coingecko", coin)
        path = self._price_model.at(moved_ms)
        return Quote(
            coin=coin,
            id=self._ids["coingecko"][coin.index],
            symbol=symbol.lower(),
            name=name,
            rank=rank,
            price_usd=numeral(*price, RUBY) if coin.priced else None,
            market_cap_usd=str(cap) if cap else "0.0",
            volume_24h_usd=str(_volume(coin, path)),
            circulating_supply=None if coin.circulating is None else _ruby_supply(coin.circulating),
            total_supply=None if coin.total is None else _ruby_supply(coin.total),
            max_supply=None if coin.maximum is None else _ruby_supply(coin.maximum),
            percent_change_1h=self.change(coin, moved_ms, HOUR_MS, 13, RUBY),
            percent_change_24h=self.change(coin, moved_ms, DAY_MS, 13, RUBY),
            percent_change_7d=None if coin.gaps else self.change(coin, moved_ms, 7 * DAY_MS, 13, RUBY),
            last_updated=stamp(self._updated(coin, moved_ms, seconds_off=0), "milliseconds"),
            price=price,
            moved_ms=moved_ms,
        )

    def _coinpaprika(self, coin: Coin, rank: int | None, moved_ms: int) -> Quote:
        stray = self._stray("coinpaprika", coin)
        price = _scaled(_skewed(self._prices[coin.index], coin), stray)
        symbol, name = self.labels("coinpaprika", coin)
        path = self._price_model.at(moved_ms)
        unit: int = 10**SUPPLY_SCALE
        volume = _volume(coin, path) * 100 + coin.index % 100
        return Quote(
            coin=coin,
            id=self._ids["coinpaprika"][coin.index],
            symbol=symbol,
            name=name,
            rank=rank,
            price_usd=numeral(*price, GO) if coin.priced else None,
            market_cap_usd=str(self._caps[coin.index] * (MILLION + coin.history.skew) * stray // MILLION**2),
            volume_24h_usd=numeral(volume, 2, GO),
            circulating_supply=str((coin.circulating or 0) // unit),
            total_supply=str((coin.total or 0) // unit),
            max_supply=None if coin.gaps else str((coin.maximum or 0) // unit),
            percent_change_1h=self.change(coin, moved_ms, HOUR_MS, 2, GO),
            percent_change_24h=self.change(coin, moved_ms, DAY_MS, 2, GO),
            percent_change_7d=None if coin.gaps else self.change(coin, moved_ms, 7 * DAY_MS, 2, GO),
            last_updated=stamp(self._updated(coin, moved_ms, seconds_off=coin.index % 7), "seconds"),
            price=price,
            moved_ms=moved_ms,
        )

    def _stray(self, api: Api, coin: Coin) -> int:
        """By which factor the API's price is wrong now, in millionths."""
        stray = self._strays.get((api, coin.index))
        tick = self.clock.tick
        return stray.factor if stray is not None and stray.since <= tick < stray.until else MILLION

    def _updated(self, coin: Coin, moved_ms: int, *, seconds_off: int) -> datetime:
        moment = 0 if coin.activity == 0 else moved_ms
        return self.clock.at(moment - coin.lag_ms) - timedelta(seconds=seconds_off)


def percent(now: int, then: int, decimals: int, notation: Notation) -> str:
    """The change from `then` to `now` in percent, truncated to this number of decimals."""
    return numeral((now - then) * 10 ** (decimals + 2) // max(then, 1), decimals, notation)


def stamp(moment: datetime, precision: Literal["seconds", "milliseconds"]) -> str:
    """RFC 3339 in UTC with a Z, as both APIs write it."""
    return moment.isoformat(timespec=precision).replace("+00:00", "Z")


def _skewed(price: int, coin: Coin) -> Decimal:
    """CoinPaprika's price: slightly different, with eight decimals or six significant digits."""
    mantissa, scale = price * (MILLION + coin.history.skew), coin.scale + 6
    decimals = max(8, shortened(mantissa, scale, 6)[1])
    return (mantissa // 10 ** (scale - decimals), decimals) if scale > decimals else (mantissa, scale)


def _scaled(price: Decimal, factor: int) -> Decimal:
    return price if factor == MILLION else (price[0] * factor, price[1] + 6)


def _ruby_supply(units: int) -> str:
    """CoinGecko's supplies are floats: integers end in .0."""
    written = numeral(units, SUPPLY_SCALE, RUBY)
    return written if "." in written or "e" in written else f"{written}.0"


def _volume(coin: Coin, path: PricePath) -> int:
    return coin.volume * (MILLION + 6 * path.level(coin.index, 100)) // MILLION
