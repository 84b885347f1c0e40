"""The circuit breaker: spares an upstream that gave nothing in its source's last runs."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

# After this many source runs in a row that got nothing from the upstream, a run makes one call. It continues
# only if that call succeeds.
FAILURES = 3
# The scheduler skips such a source for this long. Runs that a user starts do not.
COOL_DOWN = timedelta(minutes=1)


class FinishedRun(msgspec.Struct, frozen=True):
    """When a source run ended, and whether it failed because the upstream gave nothing usable."""

    at: datetime
    upstream_unavailable: bool


class Circuit(msgspec.Struct, frozen=True):
    """How the next run treats a source.

    `probing`: its first call is not retried. `rests_until`: the scheduler skips it until then.
    """

    probing: bool
    rests_until: datetime | None


def circuit(runs: Sequence[FinishedRun], now: datetime) -> Circuit:
    """Return the circuit of a source from its last runs, newest first."""
    newest = runs[:FAILURES]
    if len(newest) < FAILURES or not all(run.upstream_unavailable for run in newest):
        return Circuit(False, None)
    # An end in the future means that a clock was set back. That is no reason to wait.
    rests = timedelta() <= now - newest[0].at < COOL_DOWN
    return Circuit(True, newest[0].at + COOL_DOWN if rests else None)
