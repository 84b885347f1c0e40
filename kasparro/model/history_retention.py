"""How long the history keeps every record, and which intervals are left of older months."""

from datetime import timedelta
from typing import Literal, TypeAlias

import msgspec

ThinnedTo: TypeAlias = Literal["1h", "1d"]


class Thinning(msgspec.Struct, frozen=True):
    """From this age on, a month has one record for each coin, file and interval."""

    age: timedelta
    interval: ThinnedTo


class HistoryRetention(msgspec.Struct, frozen=True):
    """The steps by which history is thinned as it ages: later steps have longer intervals."""

    steps: tuple[Thinning, ...] = ()

    def interval(self, age: timedelta) -> ThinnedTo | None:
        """What a month of this age is thinned to; None: it keeps every record."""
        reached = [step.interval for step in self.steps if step.age <= age]
        return reached[-1] if reached else None
