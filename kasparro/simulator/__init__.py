"""Stand-ins for both market APIs, with faults that can be switched on."""

from kasparro.simulator.archive import write_archives
from kasparro.simulator.server import Simulator
from kasparro.simulator.upstream import Account

__all__ = ["Account", "Simulator", "write_archives"]
