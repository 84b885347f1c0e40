"""GET /archives: what was loaded from which archive, and what was rejected."""

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kasparro.store.archive_queries import ArchiveFilters
from kasparro.web import reports
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi.endpoint import Endpoint, json_response
from kasparro.web.openapi.pagination import PageQuery, Pagination
from kasparro.web.schemas import Archive, ArchiveState, ArchiveTotals
from kasparro.web.service import Service


class ArchivesQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /archives."""

    state: Annotated[
        Annotated[tuple[ArchiveState, ...], msgspec.Meta(max_length=4)],
        msgspec.Meta(
            description="Only archives in one of these states; a comma list, or repeated.",
            examples=[["incomplete", "rejected"]],
        ),
    ] = ()
    problem: Annotated[
        bool | None,
        msgspec.Meta(
            description="`true`: archives that the newest run rejected, as a whole or from one row on. "
            "`false`: all others.",
            examples=[True],
        ),
    ] = None
    q: Annotated[
        Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None,
        msgspec.Meta(
            description="Only archives whose name contains this text, in any case.", examples=["btc"]
        ),
    ] = None

    @property
    def filters(self) -> ArchiveFilters:
        """What the query selects."""
        return ArchiveFilters(states=self.state or None, problem=self.problem, text=self.q)


class ArchivesPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of archives, by name."""

    data: list[Archive]
    pagination: Pagination
    totals: ArchiveTotals


async def archives(service: Service, request: Request, query: ArchivesQuery) -> Response:
    """GET /archives."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        after = paging.decode_cursor(query, path, signing_key)
        page = await reports.archives(
            connection,
            query.filters,
            limit=query.limit,
            offset=paging.offset(query),
            after=None if after is None else tuple(after),
        )
    pagination = paging.pagination(query, path, signing_key, total=page.total, last=page.last)
    headers = paging.link_header(query, path, pagination)
    return json_response(
        ArchivesPage(data=page.items, pagination=pagination, totals=page.totals), headers=headers
    )


ENDPOINT = Endpoint(
    path="/archives",
    handler=archives,
    summary="Archives: what is loaded and what was rejected",
    description="Each archive with its state, its coin and its rows; for a rejected one the reason, and the "
    "lines of its overrides that would settle it. Of the files that a run rejected, at most 1,000 are kept, "
    "for KASPARRO_PAYLOAD_RETENTION.",
    tag="operations",
    query=ArchivesQuery,
    response=ArchivesPage,
    # It counts records of the history.
    slow=lambda query: True,
    headers=paging.LINK_HEADER,
)
