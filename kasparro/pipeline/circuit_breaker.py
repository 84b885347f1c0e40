"""The circuit breaker: how a pass treats a source, from how its last passes ended."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

# After so many passes in a row to which the upstream gave nothing at all, a pass makes one call, and goes on
# only where that is answered.
FAILURES = 3
# The loop leaves such a source alone for this long; whoever asks for a run has it asked all the same.
COOL_DOWN = timedelta(minutes=1)


class Ended(msgspec.Struct, frozen=True):
    """How a pass ended: when, and whether it failed because the upstream gave nothing to use."""

    at: datetime
    upstream_unavailable: bool


class Circuit(msgspec.Struct, frozen=True):
    """How to treat a source: `probing`, its first call is not repeated; `rests_until`, it is left alone by
    the loop until then.
    """

    probing: bool
    rests_until: datetime | None


def circuit(passes: Sequence[Ended], now: datetime) -> Circuit:
    """How to treat a source whose newest passes, the newest first, ended so."""
    newest = passes[:FAILURES]
    if len(newest) < FAILURES or not all(ended.upstream_unavailable for ended in newest):
        return Circuit(False, None)
    # An end in the future is a clock that was set back: no reason to wait.
    rests = timedelta() <= now - newest[0].at < COOL_DOWN
    return Circuit(True, newest[0].at + COOL_DOWN if rests else None)
