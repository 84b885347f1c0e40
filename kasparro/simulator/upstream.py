"""The base of both simulated upstreams: accounts, responses, and records rendered as JSON."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import msgspec

from kasparro.simulator.coins import Api
from kasparro.simulator.market import Market, Quote

JSON = "application/json; charset=utf-8"
PLAIN = "text/plain; charset=utf-8"
HTML = "text/html; charset=UTF-8"


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The key and the limits of one API."""

    key: str | None = None
    """The only key that it accepts; None: every key is wrong."""
    pro: bool = False
    """CoinGecko: the key is a pro key, and every call needs it."""
    per_second: int | None = None
    per_minute: int | None = None
    per_month: int | None = None
    throttled: Literal["json", "plain"] = "json"
    """The body of a 429."""


class Answer(msgspec.Struct, frozen=True):
    """A response."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


class Selection(msgspec.Struct, frozen=True):
    """What a call requests: a part of the listing, and how to render it."""

    start: int
    count: int
    changes: tuple[str, ...] = ()
    """CoinGecko: the requested periods of price changes."""
    full: bool = False
    """CoinGecko: prices with all their digits."""
    paid: bool = False
    """CoinPaprika: with the fields that need a key."""

    @property
    def variant(self) -> tuple[tuple[str, ...], bool, bool]:
        """The options that decide how a record is written."""
        return self.changes, self.full, self.paid


class Upstream(ABC):
    """One API: which calls it rejects, and how it writes its responses."""

    name: ClassVar[Api]
    base: ClassVar[str]
    path: ClassVar[str]

    def __init__(self, market: Market, account: Account) -> None:
        self.market = market
        self.account = account
        self._records: dict[tuple[tuple[str, ...], bool, bool], dict[int, tuple[Quote, bytes]]] = {}
        self._bodies: dict[Selection, bytes] = {}
        self._bodies_of = (0, 0)

    @abstractmethod
    def select(self, headers: Mapping[str, str], parameters: Mapping[str, str]) -> Selection | Answer:
        """The quotes that a call requests, or an error."""

    @abstractmethod
    def contracts(
        self, path: str, headers: Mapping[str, str], parameters: Mapping[str, str]
    ) -> Sequence[object] | Answer:
        """The records of the contract list at a path below the base, or an error."""

    @abstractmethod
    def quotes(self, selection: Selection) -> Sequence[Quote]:
        """The selected quotes in the order of the response."""

    @abstractmethod
    def renderer(self, selection: Selection) -> Callable[[Quote], str]:
        """The function that writes one quote of this selection as JSON."""

    @abstractmethod
    def error(self, status: int, message: str) -> bytes:
        """An error body in the API's shape."""

    @abstractmethod
    def exhausted(self) -> Answer:
        """The response once the month's calls are used up."""

    @abstractmethod
    def headers(self, body: bytes) -> tuple[tuple[str, str], ...]:
        """Headers of a successful response besides its type and length."""

    def throttled(self, retry_after: int) -> Answer:
        headers = (("retry-after", str(retry_after)),)
        if self.account.throttled == "plain":
            return Answer(429, b"Throttled\n", PLAIN, headers)
        return Answer(429, self.error(429, "You have reached the limit of requests."), JSON, headers)

    def not_found(self) -> Answer:
        return Answer(404, self.error(404, "There is nothing at this path."))

    def body(self, selection: Selection) -> bytes:
        """The selected records as a JSON array, cached until the market changes."""
        moment = (self.market.clock.tick, self.market.revision)
        if moment != self._bodies_of:
            self._bodies.clear()
            self._bodies_of = moment
        body = self._bodies.get(selection)
        if body is None:
            body = self._bodies[selection] = array_of(self.records(selection))
        return body

    def records(self, selection: Selection) -> list[bytes]:
        """The selected records; records of unchanged quotes are cached."""
        write = self.renderer(selection)
        written = self._records.setdefault(selection.variant, {})
        records = []
        for quote in self.quotes(selection):
            index = quote.coin.index
            known = written.get(index)
            if known is None or known[0] is not quote:
                known = written[index] = (quote, write(quote).encode())
            records.append(known[1])
        return records


def array_of(records: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(records) + b"]"


def text(value: str) -> str:
    """A JSON string with <, > and & escaped, as both APIs write it."""
    written = msgspec.json.encode(value).decode()
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def null_or(value: str | int | None) -> str:
    """A number text, or null."""
    return "null" if value is None else str(value)
