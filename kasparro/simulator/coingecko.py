"""The simulated CoinGecko: the market in pages, by market cap. No response gives the number of pages."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import md5

import msgspec

from kasparro.simulator.contracts import coingecko_list
from kasparro.simulator.market import DAY_MS, Decimal, Quote, percent
from kasparro.simulator.number_format import RUBY, numeral, shortened
from kasparro.simulator.upstream import JSON, Answer, Selection, Upstream, null_or, text

_MOST_PER_PAGE = 250
_CHANGES = ("1h", "24h", "7d")
_PARAMETERS = frozenset(
    (
        "vs_currency",
        "order",
        "per_page",
        "page",
        "price_change_percentage",
        "precision",
        "sparkline",
        "locale",
    )
)


class CoinGecko(Upstream):
    name = "coingecko"
    base = "/coingecko/api/v3"
    path = "/coins/markets"

    def select(self, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Selection | Answer:
        return self._key_error(headers) or self._selection(parameters)

    def contracts(
        self, path: str, headers: Mapping[str, str], parameters: Mapping[str, str]
    ) -> Sequence[object] | Answer:
        if path != "/coins/list":
            return self.not_found()
        if unknown := sorted(parameters.keys() - {"include_platform"}):
            return self._invalid(f"Unknown parameter {unknown[0]}")
        platforms = parameters.get("include_platform") == "true"
        return self._key_error(headers) or coingecko_list(self.market, platforms=platforms)

    def _key_error(self, headers: Mapping[str, str]) -> Answer | None:
        accepted = "x-cg-pro-api-key" if self.account.pro else "x-cg-demo-api-key"
        sent = {name: headers[name] for name in ("x-cg-demo-api-key", "x-cg-pro-api-key") if name in headers}
        if sent == {accepted: self.account.key} or (not sent and not self.account.pro):
            return None
        status = {
            "timestamp": self.market.clock.now().isoformat(timespec="milliseconds"),
            "error_code": 10002,
            "error_message": f"API key missing or wrong: send a valid key in {accepted}.",
        }
        return Answer(401, msgspec.json.encode({"status": status}))

    def _selection(self, parameters: Mapping[str, str]) -> Selection | Answer:
        if unknown := sorted(parameters.keys() - _PARAMETERS):
            return self._invalid(f"Unknown parameter {unknown[0]}")
        if "vs_currency" not in parameters:
            return self._invalid("Missing parameter vs_currency")
        if parameters["vs_currency"].lower() != "usd":
            return self._invalid("invalid vs_currency")
        if parameters.get("order", "market_cap_desc") != "market_cap_desc":
            return self._invalid("order: the simulator supports only market_cap_desc")
        per_page = _whole(parameters.get("per_page", "100"))
        if per_page is None or not 1 <= per_page <= _MOST_PER_PAGE:
            return self._invalid(f"per_page takes 1 to {_MOST_PER_PAGE}")
        page = _whole(parameters.get("page", "1"))
        if page is None or page < 1:
            return self._invalid("page counts from 1")
        changes = tuple(filter(None, parameters.get("price_change_percentage", "").split(",")))
        if not set(changes) <= set(_CHANGES):
            return self._invalid(f"price_change_percentage takes {','.join(_CHANGES)}")
        precision = parameters.get("precision", "")
        if precision not in ("", "full"):
            return self._invalid("precision: the simulator supports only full")
        return Selection((page - 1) * per_page, per_page, changes=changes, full=precision == "full")

    def quotes(self, selection: Selection) -> Sequence[Quote]:
        return self.market.window(self.name, selection.start, selection.count)

    def renderer(self, selection: Selection) -> Callable[[Quote], str]:
        return partial(self._write, changes=selection.changes, full=selection.full)

    def error(self, status: int, message: str) -> bytes:
        return msgspec.json.encode({"status": {"error_code": status, "error_message": message}})

    def exhausted(self) -> Answer:
        now = self.market.clock.now()
        month = now.year * 12 + now.month
        resets_at = datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
        headers = (("retry-after", str(int((resets_at - now).total_seconds()) + 1)),)
        return Answer(429, self.error(429, "You have used up the calls of this month."), JSON, headers)

    def headers(self, body: bytes) -> tuple[tuple[str, str], ...]:
        return (
            ("cache-control", "public, max-age=30"),
            ("vary", "Accept-Encoding, Origin"),
            ("etag", f'W/"{md5(body, usedforsecurity=False).hexdigest()}"'),
        )

    def _invalid(self, message: str) -> Answer:
        return Answer(422, msgspec.json.encode({"error": message}))

    def _write(self, quote: Quote, *, changes: tuple[str, ...], full: bool) -> str:
        coin, history, priced = quote.coin, quote.coin.history, quote.price_usd is not None

        def price(value: Decimal) -> str:
            return numeral(*(value if full else shortened(*value, 6)), RUBY) if priced else "null"

        mantissa, scale = quote.price
        yesterday = self.market.price_before(quote, DAY_MS)
        high = (max(mantissa, yesterday[0]) * 1_004, scale + 3)
        low = (min(mantissa, yesterday[0]) * 996, scale + 3)
        day = self.market.change(coin, quote.moved_ms, DAY_MS, 5, RUBY) if priced else "null"
        cap = int(quote.market_cap_usd or 0) if coin.capped and quote.market_cap_usd != "0.0" else None
        cap_day = None if cap is None else str(cap * (mantissa - yesterday[0]) // max(mantissa, 1))
        diluted = None
        if cap is not None and coin.total is not None and coin.circulating:
            diluted = str(cap * (coin.maximum or coin.total) // coin.circulating)
        top = coin.mantissa * history.ath_percent * 100
        bottom = coin.mantissa * 10**6 // history.ath_percent
        current, extreme = mantissa * 10**4, (scale + 4)
        roi = "null"
        if coin.roi is not None:
            earned, currency = coin.roi
            roi = (
                f'{{"times":{numeral(earned, 2, RUBY)},"currency":"{currency}",'
                f'"percentage":{numeral(earned, 0, RUBY)}.0}}'
            )
        known = {
            "1h": quote.percent_change_1h,
            "24h": quote.percent_change_24h,
            "7d": quote.percent_change_7d,
        }
        extra = "".join(
            f',"price_change_percentage_{window}_in_currency":{null_or(known[window]) if priced else "null"}'
            for window in changes
        )
        return (
            f'{{"id":{text(quote.id)},"symbol":{text(quote.symbol)},"name":{text(quote.name)},'
            f'"image":"https://coin-images.coingecko.com/coins/images/{history.image}/large/{coin.index}.png",'
            f'"current_price":{price(quote.price)},"market_cap":{null_or(quote.market_cap_usd)},'
            f'"market_cap_rank":{null_or(quote.rank)},"fully_diluted_valuation":{null_or(diluted)},'
            f'"total_volume":{quote.volume_24h_usd},"high_24h":{price(high)},"low_24h":{price(low)},'
            f'"price_change_24h":{price((mantissa - yesterday[0], scale))},'
            f'"price_change_percentage_24h":{day},"market_cap_change_24h":{null_or(cap_day)},'
            f'"market_cap_change_percentage_24h":{"null" if cap is None else day},'
            f'"circulating_supply":{null_or(quote.circulating_supply)},'
            f'"total_supply":{null_or(quote.total_supply)},"max_supply":{null_or(quote.max_supply)},'
            f'"ath":{price((top, extreme))},"ath_change_percentage":{percent(current, top, 5, RUBY)},'
            f'"ath_date":"{history.ath_date}.635Z","atl":{price((bottom, extreme))},'
            f'"atl_change_percentage":{percent(current, bottom, 5, RUBY)},'
            f'"atl_date":"{history.atl_date}.000Z",'
            f'"roi":{roi},"last_updated":"{quote.last_updated}"{extra}}}'
        )


def _whole(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
