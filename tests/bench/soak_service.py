"""`kasparro serve` on the simulated clock of the soak: `python -m tests.bench.soak_service PORT`."""

import mmap
import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvicorn

from kasparro import logs
from kasparro.pipeline.history_upkeep import HistoryUpkeep
from kasparro.pipeline.scheduler import Scheduler
from kasparro.sources import registry
from kasparro.store.bootstrap import prepare
from kasparro.store.pool import Database
from kasparro.supervision import Supervisor
from kasparro.web.app import create_app
from kasparro.web.server import uvicorn_config

# Names the file that has the present moment.
CLOCK_FILE = "SOAK_CLOCK_FILE"
# The upkeep of the history looks for work every five minutes. An hour of the soak takes less than a second.
UPKEEP_PAUSE_S = 1.0
# In reality, the pools close their connections between two runs. Here they do so in the pauses of the soak.
IDLE_LIMIT_S = 1.0


class SharedClock:
    """The present moment, in milliseconds since 1970, in a file that several processes map."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)

    @classmethod
    def create(cls, path: Path) -> "SharedClock":
        """A clock in a new file."""
        path.write_bytes(bytes(8))
        return cls(path)

    def set(self, moment: datetime) -> None:
        """Set the moment for all processes."""
        self._memory[:8] = round(moment.timestamp() * 1000).to_bytes(8, "little")

    def __call__(self) -> datetime:
        """The present moment."""
        return datetime.fromtimestamp(int.from_bytes(self._memory[:8], "little") / 1000, UTC)


def main() -> None:
    """Serve until a signal. The settings are in the environment."""
    settings = registry.load_settings({**os.environ, "PORT": sys.argv[1]})
    logs.configure(settings)
    if settings.database_url is None:
        raise SystemExit("DATABASE_URL is missing")
    clock = SharedClock(Path(os.environ[CLOCK_FILE]))
    supervisor = Supervisor()
    database = Database(settings.database_url.reveal(), idle_limit_s=IDLE_LIMIT_S)
    app = create_app(
        settings,
        database=database,
        scheduler=Scheduler(
            settings, database, prepare=partial(prepare, database), clock=clock, supervisor=supervisor
        ),
        supervisor=supervisor,
        upkeep=HistoryUpkeep(
            database,
            settings.history_retention,
            supervisor=supervisor,
            clock=clock,
            pause_s=UPKEEP_PAUSE_S,
        ),
    )
    config = uvicorn_config(app, 1)
    config.host, config.port = settings.host, settings.port
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
