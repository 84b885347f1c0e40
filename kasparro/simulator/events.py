"""Events that change which coin an id stands for, what it is called, or what it seems to cost."""

from typing import Annotated, TypeAlias

import msgspec

from kasparro.simulator.coins import Api


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Something that happens to the coin that has this id in this API."""

    api: Api
    id: str


class Rebrand(Event, frozen=True, tag="rebrand"):
    """The API gives the coin another symbol and name. Id, price and contracts stay."""

    symbol: str
    name: str


class ReusedId(Event, frozen=True, tag="reused-id"):
    """The id stands for another coin, which the API did not list before. The earlier coin is gone from it."""

    by: str | None = None
    """The other coin's id in the other API; None: the largest coin that only the other API lists."""


class ChangedId(Event, frozen=True, tag="changed-id"):
    """The coin gets a new id. The API does not know the old one any more."""

    to: Annotated[str, msgspec.Meta(min_length=1)]


class StrayPrice(Event, frozen=True, tag="stray-price"):
    """The API multiplies the coin's price and market cap by a factor for some time."""

    factor: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")] = "3"
    minutes: Annotated[int, msgspec.Meta(gt=0)] = 60


AnyEvent: TypeAlias = Rebrand | ReusedId | ChangedId | StrayPrice


class ImpossibleEvent(ValueError):
    """The market has no such coin, or the event does not fit it."""
