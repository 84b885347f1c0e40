"""The view Archives: what was loaded from which file under which coin, and what would settle the rest."""

from typing import Annotated, Any

import msgspec
from starlette.requests import Request

from kasparro.store.archive_queries import ArchiveFilters
from kasparro.store.data_version import version_of
from kasparro.web import reports
from kasparro.web.openapi.pagination import PAGE_LIMIT
from kasparro.web.routes.page import View, linker
from kasparro.web.schemas import ArchiveState
from kasparro.web.service import Service

ROWS = 50
STATES: tuple[ArchiveState, ...] = ("loaded", "incomplete", "rejected", "forgotten")


class ArchivesQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of the view: search, filters and page."""

    # A form without a script sends an empty search.
    q: Annotated[str, msgspec.Meta(max_length=200)] = ""
    state: ArchiveState | None = None
    problem: bool | None = None
    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT // ROWS)] = 1


async def archives(service: Service, request: Request, query: ArchivesQuery) -> dict[str, Any]:
    """What the template shows."""
    filters = ArchiveFilters(
        states=(query.state,) if query.state else None, problem=query.problem, text=query.q or None
    )
    async with service.read_connection(request) as connection:
        data_version = await version_of(connection)
        runs = await reports.recent_runs(connection, limit=1)
        found = await reports.archives(connection, filters, limit=ROWS, offset=ROWS * (query.page - 1))
    totals = found.totals
    return {
        "title": "Archives",
        "data_version": data_version,
        "newest": next(iter(runs.items), None),
        "query": query,
        "link": linker(query),
        "archives": found.items,
        "totals": totals,
        "known": sum(getattr(totals, state) for state in STATES),
        "states": [state for state in STATES if getattr(totals, state) or query.state == state],
        "total": found.total,
        "pages": -(-found.total // ROWS),
        "first": ROWS * (query.page - 1) + 1,
    }


VIEW = View(
    path="/page/archives",
    handler=archives,
    template="archives.html",
    label="Archives",
    module="archives",
    query=ArchivesQuery,
    caching="revalidate",
    # It counts records of the history.
    slow=lambda query: True,
)
