"""A scheduler that starts no run, for tests of the routes that show and use it."""

from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from kasparro.errors import RunInProgress


class FakeScheduler:
    """Pretends to start run 7 when triggered, and reports it in progress from then on."""

    def __init__(self) -> None:
        self.next_run_at = datetime(2030, 1, 1, tzinfo=UTC)
        self.is_leader = True
        self.working = False
        self.entered = False

    async def __aenter__(self) -> Self:
        self.entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.entered = False

    async def trigger(self) -> int:
        if self.working:
            raise RunInProgress("run 7 is at work")
        self.working = True
        return 7
