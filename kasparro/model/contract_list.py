"""A list of contracts as a source sent it: what sources read and the store keeps."""

from datetime import datetime

import msgspec


class ContractList(msgspec.Struct, frozen=True, kw_only=True):
    """The contracts of one response of a source.

    `path` is the path below the base URL and identifies the list. `contracts` have source_id, platform and
    address. A list of one `platform` replaces the contracts of that platform, a list without one (None) those
    of the source. `lists`, if not None, are the paths of the source's other lists; such a list has no
    contracts of its own. `unread` items had no usable contract.
    """

    path: str
    received_at: datetime
    platform: str | None = None
    contracts: list[tuple[str, str, str]] = []
    lists: tuple[str, ...] | None = None
    unread: int = 0
