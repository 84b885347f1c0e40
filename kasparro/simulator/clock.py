"""The simulator's clock: ticks from a base time, moved by the wall clock or by calls of `advance`."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta


class Clock:
    """Counts ticks of `tick_ms` since `base`.

    A manual clock moves only by `advance`. A running clock follows `monotonic`, and `advance` moves it
    further.
    """

    def __init__(
        self,
        base: datetime,
        tick_ms: int,
        *,
        manual: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if base.tzinfo is None:
            raise ValueError("The base time needs a time zone.")
        if tick_ms < 1:
            raise ValueError("A tick lasts at least one millisecond.")
        self.base = base
        self.tick_ms = tick_ms
        self._monotonic = None if manual else monotonic
        self.reset()

    @property
    def elapsed_ms(self) -> int:
        since_start = 0 if self._monotonic is None else int((self._monotonic() - self._started) * 1000)
        return since_start + self._advanced_ms

    @property
    def tick(self) -> int:
        return self.elapsed_ms // self.tick_ms

    def now(self) -> datetime:
        return self.at(self.elapsed_ms)

    def at(self, elapsed_ms: int) -> datetime:
        return self.base + timedelta(milliseconds=elapsed_ms)

    def advance(self, ticks: int = 1) -> None:
        if ticks < 0:
            raise ValueError("Time only moves forward; reset() returns to the base time.")
        self._advanced_ms += ticks * self.tick_ms

    def reset(self) -> None:
        self._started = 0.0 if self._monotonic is None else self._monotonic()
        self._advanced_ms = 0
