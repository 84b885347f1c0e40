"""Counts an API's calls against its plan. Failed and rejected calls count too, as in the real APIs."""

from datetime import timedelta
from typing import Literal, TypeAlias

from kasparro.simulator.clock import Clock
from kasparro.simulator.upstream import Account

Excess: TypeAlias = Literal["month"] | int
"""The limit that a call exceeds: the month's calls, or a rate (then the seconds to wait)."""


class Quota:
    def __init__(self, account: Account, clock: Clock) -> None:
        self._clock = clock
        rates = ((1, account.per_second), (60, account.per_minute))
        self._rates = [(timedelta(seconds=seconds), limit) for seconds, limit in rates if limit is not None]
        self._per_month = account.per_month
        self.reset()

    def reset(self) -> None:
        started = self._clock.now()
        self._windows = [(started, 0) for _ in self._rates]
        self._month = (started.year, started.month)
        self._month_calls = 0

    def count(self) -> Excess | None:
        """Count a call; gives the limit that it exceeds, if any."""
        now = self._clock.now()
        if (now.year, now.month) != self._month:
            self._month, self._month_calls = (now.year, now.month), 0
        self._month_calls += 1
        wait = 0
        for index, (length, limit) in enumerate(self._rates):
            started, calls = self._windows[index]
            if now - started >= length:
                started, calls = now, 0
            self._windows[index] = (started, calls + 1)
            if calls >= limit:
                left = started + length - now
                wait = max(wait, -(-left // timedelta(seconds=1)))
        if self._per_month is not None and self._month_calls > self._per_month:
            return "month"
        return wait or None
