"""Fixed response bodies that are served instead of the market's."""

from collections.abc import Sequence

from kasparro.simulator.coins import Api


class Payloads:
    """Response bodies by API and page."""

    def __init__(self) -> None:
        self._pages: dict[Api, dict[int, bytes]] = {}
        self._complete: set[Api] = set()

    def put(self, api: Api, page: int, body: bytes) -> None:
        """Serve these bytes as this page. Other pages do not change."""
        self._pages.setdefault(api, {})[page] = body

    def replay(self, api: Api, bodies: Sequence[bytes]) -> None:
        """Serve these bodies as the API's first pages, and empty lists as all later pages."""
        self._pages[api] = dict(enumerate(bodies, start=1))
        self._complete.add(api)

    def clear(self) -> None:
        self._pages.clear()
        self._complete.clear()

    def get(self, api: Api, page: int) -> bytes | None:
        body = self._pages.get(api, {}).get(page)
        return b"[]" if body is None and api in self._complete else body
