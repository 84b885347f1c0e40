"""Defines the faults of a simulated upstream, and records which faults are active."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from kasparro.simulator.coins import Api
from kasparro.simulator.seeded_random import seeded_random

if TYPE_CHECKING:
    from random import Random

_Positive: TypeAlias = Annotated[int, msgspec.Meta(gt=0)]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all faults have in common: the API, the page and the number of calls that they affect."""

    api: Api
    times: _Positive | None = None
    """How many calls it affects; None: all calls until it is removed."""
    page: _Positive | None = None
    """The only page that it affects; None: all pages. CoinPaprika's calls are for page 1, and calls of
    contract lists for no page."""
    path: str | None = None
    """The only path below the API's base URL that it affects, with all paths below it; None: all paths."""
    probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """The probability that it affects a call. The random numbers depend on the simulator's seed."""


class Status(Fault, frozen=True, tag="status"):
    """A response with this status."""

    code: Annotated[int, msgspec.Meta(ge=200, le=599)]
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Seconds for a `Retry-After` header."""
    retry_after_as: Literal["seconds", "date"] = "seconds"
    body: Literal["json", "plain", "html", "cdn-1015", "cdn-1020"] = "json"


class Html(Fault, frozen=True, tag="html"):
    """A web page with status 200 instead of data."""


class Truncated(Fault, frozen=True, tag="truncated"):
    """Only the start of the response, with the `Content-Length` of the whole; then the connection closes."""

    fraction: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5


class Slow(Fault, frozen=True, tag="slow"):
    """The response is sent slowly, in small pieces."""

    bytes_per_second: _Positive = 1_000


class Hang(Fault, frozen=True, tag="hang"):
    """The request is read and never answered."""


class Reset(Fault, frozen=True, tag="reset"):
    """The connection is reset without a response."""


class Empty(Fault, frozen=True, tag="empty"):
    """Status 200 with no body."""


class NotAnArray(Fault, frozen=True, tag="not-an-array"):
    """A JSON object instead of an array."""


class ContentType(Fault, frozen=True, tag="content-type"):
    """The right body with another content type."""

    value: str = "text/html; charset=UTF-8"


class GzipGarbage(Fault, frozen=True, tag="gzip-garbage"):
    """Bytes that are declared as gzip but are not."""


class Huge(Fault, frozen=True, tag="huge"):
    """A chunked body of this size: an array that contains only spaces."""

    megabytes: _Positive = 100


class Redirect(Fault, frozen=True, tag="redirect"):
    """A redirect, for instance to another host."""

    location: str
    code: Literal[301, 302, 303, 307, 308] = 302


BadRecord: TypeAlias = Literal[
    "missing-id",
    "null-id",
    "string-price",
    "negative-price",
    "future",
    "long-number",
    "long-name",
    "nan",
    "not-an-object",
    "duplicate",
    "lone-surrogate",
    "nul",
]


class BadRecords(Fault, frozen=True, tag="bad-records"):
    """Bad records of these kinds in addition to the good records, which do not change.

    Each bad record is a copy of the first record of the response with one defect and the id `bad-<kind>`.
    `duplicate` is an exact copy. With `nan` or `lone-surrogate`, the whole response is invalid JSON for a
    strict parser.
    """

    records: Annotated[list[BadRecord], msgspec.Meta(min_length=1)]


class SchemaDrift(Fault, frozen=True, tag="schema-drift"):
    """A field of every record is renamed, dropped, set to null, changed to another type, or copied.

    Dots in `field` separate the names of nested objects.
    """

    field: Annotated[str, msgspec.Meta(min_length=1)]
    change: Literal["rename", "drop", "null", "retype", "copy"]
    to: str = "renamed"
    """The new name for `rename`, or the name of the copy for `copy`."""


class ScaledPrices(Fault, frozen=True, tag="scaled-prices"):
    """Prices, market caps and volumes are multiplied by this factor, as if in another currency."""

    factor: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")] = "0.92"


class LostCoins(Fault, frozen=True, tag="lost-coins"):
    """Each affected response lacks some of its records: `coins` of them, from the position `first` on."""

    coins: _Positive = 1
    first: _Positive = 1


class ShortList(Fault, frozen=True, tag="short-list"):
    """The list ends after this number of coins; later pages are empty."""

    coins: Annotated[int, msgspec.Meta(ge=0)]


class PageShift(Fault, frozen=True, tag="page-shift"):
    """Pages shift between calls, as when the market moves during a crawl.

    The first call is unchanged. Call n begins `by * (n - 1)` coins earlier, so that coins repeat. With a
    negative `by`, coins are missed.
    """

    by: int = 1


Damage: TypeAlias = BadRecords | LostCoins | SchemaDrift | ScaledPrices
"""Faults of the records themselves, applied in the order they were added."""

Content: TypeAlias = Damage | PageShift | ShortList
"""Faults of the content. All active ones apply to a call."""

Delivery: TypeAlias = (
    Status
    | Html
    | Truncated
    | Slow
    | Hang
    | Reset
    | Empty
    | NotAnArray
    | ContentType
    | GzipGarbage
    | Huge
    | Redirect
)
"""Faults of the delivery. The first active one applies to a call."""

AnyFault: TypeAlias = Content | Delivery


class ActiveFault(msgspec.Struct, kw_only=True):
    """An active fault, and how many calls it has affected."""

    id: int
    fault: AnyFault
    hits: int = 0


class CallFaults(msgspec.Struct, frozen=True):
    """The faults that affect one call."""

    content: tuple[Damage, ...] = ()
    shift: int = 0
    list_length: int | None = None
    delivery: Delivery | None = None


class Faults:
    """The active faults, in the order in which they were added."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._active: dict[int, ActiveFault] = {}
        self._chances: dict[int, Random] = {}
        self._last_id = 0

    def add(self, fault: AnyFault) -> ActiveFault:
        self._last_id += 1
        active = self._active[self._last_id] = ActiveFault(id=self._last_id, fault=fault)
        self._chances[active.id] = seeded_random(self._seed, "fault", active.id)
        return active

    def remove(self, fault_id: int) -> bool:
        return self._active.pop(fault_id, None) is not None

    def clear(self) -> None:
        """Remove all faults. The next fault gets the id 1 again, and so the same random numbers."""
        self._active.clear()
        self._chances.clear()
        self._last_id = 0

    def active(self) -> list[ActiveFault]:
        return list(self._active.values())

    def for_call(self, api: Api, path: str, page: int | None) -> CallFaults:
        """The faults that affect the next call for this path and page, which counts towards their `times`."""
        content: list[Damage] = []
        shift = 0
        list_length: int | None = None
        delivery: Delivery | None = None
        for active in self.active():
            fault = active.fault
            if fault.api != api or fault.page not in (None, page):
                continue
            if fault.path is not None and not f"{path}/".startswith(f"{fault.path}/"):
                continue
            if delivery is not None and isinstance(fault, Delivery):
                continue
            if fault.probability < 1 and self._chances[active.id].random() >= fault.probability:
                continue
            if isinstance(fault, PageShift):
                shift += fault.by * active.hits
            elif isinstance(fault, ShortList):
                list_length = fault.coins if list_length is None else min(list_length, fault.coins)
            elif isinstance(fault, Damage):
                content.append(fault)
            else:
                delivery = fault
            active.hits += 1
            if active.hits == fault.times:
                self.remove(active.id)
        return CallFaults(tuple(content), shift, list_length, delivery)


def parse_faults(body: bytes) -> list[AnyFault]:
    """Parse one fault or a list of faults from JSON. Raises msgspec.ValidationError."""
    parsed: Any = msgspec.json.decode(body)
    return msgspec.convert(parsed if isinstance(parsed, list) else [parsed], list[AnyFault])
