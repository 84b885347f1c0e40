"""The sources there are, built from the settings; a new source is registered here."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from kasparro.settings import Settings
from kasparro.sources import coingecko, coinpaprika
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import Source
from kasparro.sources.coingecko import CoinGecko
from kasparro.sources.coinpaprika import CoinPaprika
from kasparro.sources.replay import Reader

_SOURCES: dict[str, Callable[[Settings], Source]] = {
    "coinpaprika": lambda told: CoinPaprika(told.coinpaprika_url, told.coinpaprika_key),
    "coingecko": lambda told: CoinGecko(
        told.coingecko_url, told.coingecko_plan, told.coingecko_key, top=told.coingecko_top
    ),
    "csv": lambda told: Archives(told.archives),
}

# What turns an item of an API's list into a record; of these sources payloads are kept.
READERS: Mapping[str, Reader] = MappingProxyType(
    {CoinPaprika.name: coinpaprika.to_record, CoinGecko.name: coingecko.to_record}
)


def build(settings: Settings, names: Iterable[str]) -> list[Source]:
    """The named sources, ready for a pass."""
    return [_SOURCES[name](settings) for name in names]
