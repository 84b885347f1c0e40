"""Stand-ins for both market APIs, with faults that can be switched on."""

from kasparro.simulator.server import Simulator
from kasparro.simulator.upstream import Account

__all__ = ["Account", "Simulator"]
