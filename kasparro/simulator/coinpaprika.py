"""The simulated CoinPaprika: the whole market in one array, not ordered by rank."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from kasparro.simulator.contracts import coinpaprika_list, coinpaprika_platforms
from kasparro.simulator.market import DAY_MS, HOUR_MS, MINUTE_MS, Quote, percent
from kasparro.simulator.number_format import GO, numeral
from kasparro.simulator.upstream import Answer, Selection, Upstream, null_or, text

FREE_PLAN_ASSETS = 2_000
_SHUFFLE = 7_919  # a prime, so that steps of this size visit every position once
_WINDOWS = (
    ("15m", 15 * MINUTE_MS),
    ("30m", 30 * MINUTE_MS),
    ("1h", HOUR_MS),
    ("6h", 6 * HOUR_MS),
    ("12h", 12 * HOUR_MS),
    ("24h", DAY_MS),
    ("7d", 7 * DAY_MS),
    ("30d", 30 * DAY_MS),
)


class CoinPaprika(Upstream):
    name = "coinpaprika"
    base = "/coinpaprika/v1"
    path = "/tickers"

    def select(self, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Selection | Answer:
        if (error := self._key_error(headers)) is not None:
            return error
        key = headers.get("authorization")
        if parameters.get("quotes", "USD") != "USD":
            return Answer(400, self.error(400, "quotes: the simulator supports only USD."))
        if key is None:
            return Selection(0, FREE_PLAN_ASSETS)
        return Selection(0, len(self.market.coins), paid=True)

    def contracts(
        self, path: str, headers: Mapping[str, str], parameters: Mapping[str, str]
    ) -> Sequence[object] | Answer:
        del parameters
        records: Sequence[object] | None = None
        if path == "/contracts":
            records = coinpaprika_platforms()
        elif path.startswith("/contracts/"):
            records = coinpaprika_list(self.market, path.removeprefix("/contracts/"))
        return self.not_found() if records is None else self._key_error(headers) or records

    def _key_error(self, headers: Mapping[str, str]) -> Answer | None:
        key = headers.get("authorization")
        if key is None or key == self.account.key:
            return None
        return Answer(403, self.error(403, "The API key is not valid."))

    def quotes(self, selection: Selection) -> Sequence[Quote]:
        listing = self.market.window(self.name, selection.start, selection.count)
        return sorted(listing, key=lambda quote: (quote.coin.index + 1) * _SHUFFLE % 20_011)

    def renderer(self, selection: Selection) -> Callable[[Quote], str]:
        return self._paid if selection.paid else self._free

    def error(self, status: int, message: str) -> bytes:
        return msgspec.json.encode({"error": message})

    def exhausted(self) -> Answer:
        return Answer(402, self.error(402, "You have used up the calls of this month."))

    def headers(self, body: bytes) -> tuple[tuple[str, str], ...]:
        return ()

    def _free(self, quote: Quote) -> str:
        return self._write(quote, "")

    def _paid(self, quote: Quote) -> str:
        return self._write(quote, f'"circulating_supply":{null_or(quote.circulating_supply)},')

    def _write(self, quote: Quote, circulating: str) -> str:
        coin, history = quote.coin, quote.coin.history
        changes = {
            window: self.market.change(coin, quote.moved_ms, length, 2, GO) for window, length in _WINDOWS
        }
        changes["1y"] = numeral(history.year_change, 2, GO)
        if coin.gaps:
            changes |= dict.fromkeys(("7d", "30d", "1y"), '""')
            high = '"ath_price":null,"ath_date":"","percent_from_price_ath":null'
        else:
            top = coin.mantissa * history.ath_percent
            below = percent(quote.price[0], top * 10 ** quote.price[1] // 10 ** (coin.scale + 2), 2, GO)
            high = (
                f'"ath_price":{numeral(top, coin.scale + 2, GO)},"ath_date":"{history.ath_date}Z",'
                f'"percent_from_price_ath":{below}'
            )
        windows = ",".join(f'"percent_change_{window}":{change}' for window, change in changes.items())
        day = numeral(history.beta % 4001 - 2000, 2, GO)
        cap_day = self.market.change(coin, quote.moved_ms, DAY_MS, 2, GO) if coin.capped else "0"
        return (
            f'{{"id":{text(quote.id)},"name":{text(quote.name)},"symbol":{text(quote.symbol)},'
            f'"rank":{_or_empty(quote.rank)},{circulating}'
            f'"total_supply":{null_or(quote.total_supply)},"max_supply":{_or_empty(quote.max_supply)},'
            f'"beta_value":{_or_empty(None if coin.gaps else numeral(history.beta, 6, GO))},'
            f'"first_data_at":"{"" if coin.gaps else history.first_data_at + "Z"}",'
            f'"last_updated":"{quote.last_updated}","quotes":{{"USD":{{'
            f'"price":{null_or(quote.price_usd)},"volume_24h":{quote.volume_24h_usd},'
            f'"volume_24h_change_24h":{day},"market_cap":{quote.market_cap_usd},'
            f'"market_cap_change_24h":{cap_day},{windows},{high}}}}}}}'
        )


def _or_empty(value: str | int | None) -> str:
    """A number as text, or the empty string that CoinPaprika writes for a missing value."""
    return '""' if value is None else str(value)
