"""The `kasparro` program with shortened intervals and timeouts: `python -m tests.chaos.service serve`."""

from datetime import timedelta

import msgspec

from kasparro.cli.commands import main
from kasparro.pipeline import circuit_breaker, scheduler
from kasparro.sources import registry
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.http import RetryLimits
from kasparro.store import locks, pool

# Set at import, so that processes which `--workers` starts have them too.
# In place of 5, 5 and 15 s.
scheduler.CHECK_S = 0.5
locks.HEARTBEAT_S = 0.5
locks.LEASE_S = 5.0
# In place of a minute.
circuit_breaker.COOL_DOWN = timedelta(seconds=1)
# In place of 30 s.
pool.LOCK_TIMEOUT_S = 1

_QUICK = RetryLimits(attempts=3, total_s=4, initial_s=0.1, longest_s=0.4)
_BUILD = {
    "coinpaprika": lambda settings: CoinPaprika(settings.url, settings.key, _QUICK),
    "coingecko": lambda settings: CoinGecko(settings.url, settings.plan, settings.key, _QUICK),
}
_sources = registry.definitions()
for _name, _build in _BUILD.items():
    _sources[_name] = msgspec.structs.replace(_sources[_name], build=_build)

if __name__ == "__main__":
    main()
