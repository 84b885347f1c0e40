"""The ways an upstream can go wrong, as data, and which of them are switched on."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from kasparro.simulator.market import Api
from kasparro.simulator.seeded_random import seeded_random

if TYPE_CHECKING:
    from random import Random

_Positive: TypeAlias = Annotated[int, msgspec.Meta(gt=0)]


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What every fault says: whose calls it strikes, how often, and on which page."""

    api: Api
    times: _Positive | None = None
    """How many calls it strikes; ``None``: until it is removed."""
    page: _Positive | None = None
    """The only page it strikes; CoinPaprika's calls are page 1."""
    probability: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """The chance to strike a call, drawn from the simulator's seed."""


class Status(Fault, frozen=True, tag="status"):
    """An answer with this status."""

    code: Annotated[int, msgspec.Meta(ge=200, le=599)]
    retry_after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Seconds for a ``Retry-After`` header."""
    retry_after_as: Literal["seconds", "date"] = "seconds"
    body: Literal["json", "plain", "html", "cdn-1020"] = "json"


class Html(Fault, frozen=True, tag="html"):
    """A web page with status 200 in place of data."""


class Truncated(Fault, frozen=True, tag="truncated"):
    """The first part of the answer under the whole one's ``Content-Length``, then the line is cut."""

    keep: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.5


class Slow(Fault, frozen=True, tag="slow"):
    """The answer, dripping."""

    bytes_per_second: _Positive = 1_000


class Hang(Fault, frozen=True, tag="hang"):
    """The request is read and never answered."""


class Reset(Fault, frozen=True, tag="reset"):
    """The connection is reset in place of an answer."""


class Empty(Fault, frozen=True, tag="empty"):
    """Status 200 with no body."""


class NotAnArray(Fault, frozen=True, tag="not-an-array"):
    """A JSON object where an array is due."""


class ContentType(Fault, frozen=True, tag="content-type"):
    """The right body under another content type."""

    value: str = "text/html; charset=UTF-8"


class GzipGarbage(Fault, frozen=True, tag="gzip-garbage"):
    """Bytes declared as gzip that are not."""


class Huge(Fault, frozen=True, tag="huge"):
    """A chunked body of so many megabytes: blanks within an array."""

    megabytes: _Positive = 100


class Redirect(Fault, frozen=True, tag="redirect"):
    """A redirect, to another host for instance."""

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
    """Records of these kinds among the good ones, which stay as they are.

    Each is made from the answer's first record under an id of its own, ``bad-<kind>``; ``duplicate`` is that
    record again. ``nan`` and ``lone-surrogate`` are not JSON: strict readers lose the whole answer by them.
    """

    records: Annotated[list[BadRecord], msgspec.Meta(min_length=1)]


class SchemaDrift(Fault, frozen=True, tag="schema-drift"):
    """A field of every record is renamed, dropped, null, of another type or there twice; dots lead into
    objects."""

    field: Annotated[str, msgspec.Meta(min_length=1)]
    change: Literal["rename", "drop", "null", "retype", "copy"]
    to: str = "renamed"
    """The new name under ``rename``, the copy's under ``copy``."""


class ScaledPrices(Fault, frozen=True, tag="scaled-prices"):
    """Prices, caps and volumes are this many times what they are, as in another currency, exactly."""

    factor: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?$")] = "0.92"


class ListCut(Fault, frozen=True, tag="list-cut"):
    """The list ends after so many coins; pages beyond are empty."""

    keep: Annotated[int, msgspec.Meta(ge=0)]


class PageShift(Fault, frozen=True, tag="page-shift"):
    """Pages slide between calls, as when the market moves during a walk.

    The first call is true; each later one begins ``by`` coins earlier than the one before it would have, so
    that coins repeat; with a negative ``by`` coins go missing.
    """

    by: int = 1


Damage: TypeAlias = BadRecords | SchemaDrift | ScaledPrices
"""Faults of the records themselves, applied in the order they were added."""

Content: TypeAlias = Damage | PageShift | ListCut
"""Faults of what is said; all that are on apply to a call."""

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
"""Faults of how it is said; the first that is on applies to a call."""

AnyFault: TypeAlias = Content | Delivery


class Armed(msgspec.Struct, kw_only=True):
    """A fault that is switched on, and how often it has struck."""

    id: int
    fault: AnyFault
    struck: int = 0


class Strike(msgspec.Struct, frozen=True):
    """The faults that one call meets."""

    content: tuple[Damage, ...] = ()
    shift: int = 0
    cut: int | None = None
    delivery: Delivery | None = None


class Faults:
    """The faults that are switched on, in the order they were added."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._armed: dict[int, Armed] = {}
        self._chances: dict[int, Random] = {}
        self._last_id = 0

    def add(self, fault: AnyFault) -> Armed:
        self._last_id += 1
        armed = self._armed[self._last_id] = Armed(id=self._last_id, fault=fault)
        self._chances[armed.id] = seeded_random(self._seed, "fault", armed.id)
        return armed

    def remove(self, fault_id: int) -> bool:
        return self._armed.pop(fault_id, None) is not None

    def clear(self) -> None:
        """Switch everything off; the next fault is number 1 again, so that its chances repeat too."""
        self._armed.clear()
        self._chances.clear()
        self._last_id = 0

    def armed(self) -> list[Armed]:
        return list(self._armed.values())

    def strike(self, api: Api, page: int | None) -> Strike:
        """What the next call of this page meets; counts against ``times``."""
        content: list[Damage] = []
        shift = 0
        cut: int | None = None
        delivery: Delivery | None = None
        for armed in self.armed():
            fault = armed.fault
            if fault.api != api or fault.page not in (None, page):
                continue
            if delivery is not None and isinstance(fault, Delivery):
                continue
            if fault.probability < 1 and self._chances[armed.id].random() >= fault.probability:
                continue
            if isinstance(fault, PageShift):
                shift += fault.by * armed.struck
            elif isinstance(fault, ListCut):
                cut = fault.keep if cut is None else min(cut, fault.keep)
            elif isinstance(fault, Damage):
                content.append(fault)
            else:
                delivery = fault
            armed.struck += 1
            if armed.struck == fault.times:
                self.remove(armed.id)
        return Strike(tuple(content), shift, cut, delivery)


def parse_faults(body: bytes) -> list[AnyFault]:
    """One fault or a list of them, from JSON; ``msgspec.ValidationError`` says what is wrong."""
    parsed: Any = msgspec.json.decode(body)
    return msgspec.convert(parsed if isinstance(parsed, list) else [parsed], list[AnyFault])
