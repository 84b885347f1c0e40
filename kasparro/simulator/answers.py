"""The data that callers got whole, kept on request for who checks what became of it."""

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from kasparro.simulator.market import Api


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that went out whole. ``body`` is what the caller now knows: that of a 304 too."""

    number: int
    """Its call's place among all calls, from 1."""
    api: Api
    page: int
    body: bytes


class Answers:
    """Whole answers by their calls; none are kept unless ``keep`` says so."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._given: deque[Given] = deque()

    def __iter__(self) -> Iterator[Given]:
        return iter(self._given)

    def add(self, given: Given) -> None:
        if self._keep:
            self._given.append(given)

    def after(self, number: int) -> Sequence[Given]:
        """Those of later calls than this, by their calls."""
        return sorted((one for one in self._given if one.number > number), key=lambda one: one.number)

    def forget(self, number: int) -> None:
        """Drop those of the calls up to this one."""
        self._given = deque(one for one in self._given if one.number > number)

    def clear(self) -> None:
        self._given.clear()
