"""Sample payloads of our own making, in the shapes that the APIs send."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from kasparro.model.record import Record
from kasparro.sources.json_array import split_array

FOLDER = Path(__file__).parents[1] / "sources" / "payloads"


def sample(name: str) -> bytes:
    """The bytes of one sample payload."""
    return (FOLDER / name).read_bytes()


def records(name: str, read: Callable[[msgspec.Raw, datetime], Record], now: datetime) -> list[Record]:
    """The records of a sample payload."""
    return [read(item, now) for item in split_array(sample(name))]
