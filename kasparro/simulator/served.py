"""Records the bodies that clients received, if asked to, so that tests can compare them with the data."""

from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from kasparro.simulator.coins import Api


class ServedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A response that was sent completely. After a 304, `body` is the body that the client already has."""

    number: int
    """The number of its call among all calls, from 1."""
    api: Api
    page: int
    body: bytes


class ServedResponses:
    """Complete responses in the order of sending; none are recorded unless `record` is set."""

    def __init__(self, *, record: bool) -> None:
        self._record = record
        self._responses = deque[ServedResponse]()

    def __iter__(self) -> Iterator[ServedResponse]:
        return iter(self._responses)

    def add(self, response: ServedResponse) -> None:
        if self._record:
            self._responses.append(response)

    def after(self, number: int) -> Sequence[ServedResponse]:
        """The responses of later calls than this, by call number."""
        later = (response for response in self._responses if response.number > number)
        return sorted(later, key=lambda response: response.number)

    def forget(self, number: int) -> None:
        """Drop the responses of the calls up to this one."""
        self._responses = deque(response for response in self._responses if response.number > number)

    def clear(self) -> None:
        self._responses.clear()
