"""What decides which quotes of an asset count."""

from datetime import timedelta
from decimal import Decimal

import msgspec


class ConsensusLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Which quotes count, and which spread is remarkable.

    A quote that is more than `max_lag` older than the newest one of its asset is stale. An asset whose fresh
    quotes differ by more than `divergence_percent` of their median is diverging.
    """

    max_lag: timedelta = timedelta(hours=1)
    divergence_percent: Decimal = Decimal(5)
