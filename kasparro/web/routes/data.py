"""GET /data and GET /data/{source}/{source_id}: the newest record of each coin of each source."""

from decimal import Decimal
from typing import Annotated
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kasparro.sources import registry
from kasparro.store import queries
from kasparro.store.selection import Filters, Selection
from kasparro.web.http.context import context_of
from kasparro.web.http.problems import Problem, not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi import parameters
from kasparro.web.openapi.endpoint import Endpoint
from kasparro.web.openapi.pagination import Pagination
from kasparro.web.routes import row_lists
from kasparro.web.routes.row_lists import Labels, RowsQuery
from kasparro.web.schemas import Field, Moment, Sort, SourceName
from kasparro.web.service import Service

Fields = Annotated[
    Annotated[tuple[Field, ...], msgspec.Meta(max_length=50)],
    msgspec.Meta(
        description="Return only these fields, in the order of the full row; a comma list, or repeated. "
        "Unset: all fields but `rank_observed_at`, `listed_at` and `quoted_in`.",
        examples=[["source", "symbol", "price_usd"]],
    ),
]
AsOf = Annotated[
    parameters.MomentOrDay | None,
    msgspec.Meta(
        description="Return the newest records at this moment, from history. A date means the end of that "
        "day in UTC. Coins without a record until then are left out. `asset`, `first_seen_at` and "
        "`listed_at` are the current ones, and so are `listed` and `listed_since`.",
        examples=["2024-06-01", "2024-06-01T12:00:00Z"],
    ),
]


class RowQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of one row."""

    as_of: AsOf = None
    fields: Fields = ()


class DataQuery(RowsQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /data: filters, order, fields and page."""

    cursor: Annotated[
        paging.Cursor | None,
        msgspec.Meta(
            description="The position to continue from: `next_cursor` of a response to the same query. "
            "Repeat the other parameters. All pages show the rows as they were at the first page, each row "
            "exactly once, whatever is loaded meanwhile. A cursor is valid for at least an hour. With "
            "`as_of`, it is always valid if sorted by `source`, and otherwise until something is loaded. "
            "Excludes `page`.",
            examples=["ksQI8O3oAkq0kZCpY29pbmdlY2tvp2JpdGNvaW6xQ2n_6vY2PqTkRn1c8T7e"],
        ),
    ] = None
    source: Annotated[
        Annotated[tuple[SourceName, ...], msgspec.Meta(max_length=20)],
        msgspec.Meta(
            description="Rows of these sources; a comma list, or repeated.", examples=[["coingecko"]]
        ),
    ] = ()
    id: Annotated[
        Labels,
        msgspec.Meta(
            description="Rows with these source_ids; a comma list, or repeated.", examples=[["bitcoin"]]
        ),
    ] = ()
    updated_since: Annotated[
        Moment | None,
        msgspec.Meta(
            description="Rows that changed at this moment or later.", examples=["2024-06-01T12:00:00Z"]
        ),
    ] = None
    listed: Annotated[
        bool | None,
        msgspec.Meta(
            description="`true`: rows of coins that the newest whole list of their source has. `false`: rows "
            "of coins that it lacks. A coin may be missing from one list and be back in the next; "
            "`listed_since` takes that into account. Archives list no coins, so neither value "
            "selects their rows.",
            examples=[True],
        ),
    ] = None
    listed_since: Annotated[
        Moment | None,
        msgspec.Meta(
            description="Rows of coins that their source listed at this moment or later, with the same "
            "values or others. On later pages of a cursor, coins that are listed again meanwhile may be "
            "added.",
            examples=["2024-06-01T12:00:00Z"],
        ),
    ] = None
    as_of: AsOf = None
    sort: Annotated[
        Sort | None,
        msgspec.Meta(
            description="The field to sort by; `-` in front means descending. Rows without a value come last "
            "in both directions; source and source_id break ties. In the order by `rank`, coins that "
            "their source lists come first among equal ranks. Unset: `rank`, or `source` with `as_of`, "
            "because any other order must then look up every coin.",
            examples=["-market_cap_usd"],
        ),
    ] = None
    fields: Fields = ()

    def selection(self) -> Selection:
        """The rows, order and fields that the query selects."""
        conditions = self.conditions()
        if self.id and not self.source:
            # The primary key begins with the source. With all sources given, it also finds ids.
            conditions["sources"] = registry.names()
        sort = self.sort or ("rank" if self.as_of is None else "source")
        return Selection(filters=Filters(**conditions), sort=sort, fields=self.fields, as_of=self.as_of)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest record of one coin from one source; with `fields`, only those."""

    source: SourceName | UnsetType = UNSET
    source_id: Annotated[
        str | UnsetType, msgspec.Meta(description="The id that the source gives the coin.")
    ] = UNSET
    asset: Annotated[str | UnsetType | None, msgspec.Meta(description="The coin across sources.")] = UNSET
    symbol: Annotated[
        str | UnsetType | None,
        msgspec.Meta(description="The newest value that the source has given; a file may lack the column."),
    ] = UNSET
    name: Annotated[
        str | UnsetType | None,
        msgspec.Meta(description="The newest value that the source has given; a file may lack the column."),
    ] = UNSET
    rank: Annotated[
        int | UnsetType | None,
        msgspec.Meta(
            description="The newest rank that the source has given. If the newest file has no ranks, it is "
            "older than `observed_at`; `rank_observed_at` is its moment."
        ),
    ] = UNSET
    price_usd: Decimal | UnsetType | None = UNSET
    market_cap_usd: Decimal | UnsetType | None = UNSET
    volume_24h_usd: Decimal | UnsetType | None = UNSET
    circulating_supply: Decimal | UnsetType | None = UNSET
    total_supply: Decimal | UnsetType | None = UNSET
    max_supply: Decimal | UnsetType | None = UNSET
    percent_change_1h: Decimal | UnsetType | None = UNSET
    percent_change_24h: Decimal | UnsetType | None = UNSET
    percent_change_7d: Decimal | UnsetType | None = UNSET
    observed_at: Annotated[Moment | UnsetType, msgspec.Meta(description="The moment of the values.")] = UNSET
    first_seen_at: Annotated[
        Moment | UnsetType, msgspec.Meta(description="When this source first reported this coin.")
    ] = UNSET
    updated_at: Annotated[Moment | UnsetType, msgspec.Meta(description="When the row last changed.")] = UNSET
    rank_observed_at: Annotated[
        Moment | UnsetType | None,
        msgspec.Meta(description="The moment of `rank`; only if `fields` names it."),
    ] = UNSET
    listed_at: Annotated[
        Moment | UnsetType | None,
        msgspec.Meta(
            description="When the source last listed the coin, with these values or others; only if `fields` "
            "names it. Null for archives, which list no coins."
        ),
    ] = UNSET
    quoted_in: Annotated[
        str | UnsetType | None,
        msgspec.Meta(
            description="The currency of the prices as the source gives them: `USD`, or in archives a coin "
            "that counts as US dollars by an override, such as `USDT`; only if `fields` names it. A comma "
            "list if the file has prices in several. Null if an earlier version of Kasparro loaded the file.",
            examples=["USDT"],
        ),
    ] = UNSET


class DataPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of records."""

    data: list[Record]
    pagination: Pagination


class RecordPath(msgspec.Struct, frozen=True, kw_only=True):
    """The path of a record."""

    source: Annotated[SourceName, msgspec.Meta(examples=["coingecko"])]
    source_id: Annotated[str, msgspec.Meta(description="Percent-encoded, `/` too.", examples=["bitcoin"])]


async def page(service: Service, request: Request, query: DataQuery) -> Response:
    """GET /data."""
    return await row_lists.page(service, request, query, query.selection())


def record_key(request: Request) -> tuple[str, str | None]:
    """The source and the id in the path; None if no coin can have this id.

    Raises Problem (404) if there is no such source, and (400) if the path is not UTF-8.
    """
    source, source_id = request.path_params["source"], request.path_params["source_id"]
    if source not in registry.names():
        raise not_found("There is no such source.", parameter="source", allowed=", ".join(registry.names()))
    if "\ufffd" in source_id:
        # The server replaces bytes that are not UTF-8 with this character.
        try:
            unquote_to_bytes(request.scope["raw_path"]).decode()
        except UnicodeDecodeError:
            raise Problem(400, "The path is not UTF-8.", parameter="source_id") from None
    # No text in PostgreSQL contains NUL.
    return source, None if "\x00" in source_id else source_id


def no_such_coin(source: str) -> Problem:
    """The problem of an id that no record of the source has."""
    return not_found(f"{source} has no record with this id.", parameter="source_id")


async def row(service: Service, request: Request, query: RowQuery) -> Response:
    """GET /data/{source}/{source_id}."""
    source, source_id = record_key(request)
    found = None
    if source_id is not None:
        async with service.read_connection(request) as connection:
            found = await queries.row(connection, source, source_id, fields=query.fields, as_of=query.as_of)
            context_of(request.scope).data_version = None if found is None else found.version
    if found is None:
        raise no_such_coin(source)
    if found.line is None:
        first = parameters.format_value(found.first_observed_at)
        raise not_found(
            f"{source} has no record with this id until {parameters.format_value(query.as_of)}. "
            f"The first record is of {first}.",
            parameter="as_of",
            allowed=f"a time from {first} on",
        )
    return Response(found.line, media_type="application/json")


def _is_live(query: DataQuery | RowQuery) -> bool:
    # Each run moves listed_at, and a file that gives the same figures in another currency changes quoted_in:
    # neither makes a data version.
    return (
        not {"listed_at", "quoted_in"}.isdisjoint(query.fields)
        or getattr(query, "listed_since", None) is not None
    )


def _may_be_slow(query: DataQuery) -> bool:
    # These may take long: a text search, a large or deep page, an order or a filter without an index, and
    # as_of if it must look up every coin's history. The slow pool keeps them away from all other queries.
    if row_lists.may_be_slow(query):
        return True
    if query.as_of is not None:
        return query.sort not in {None, "source"} or not row_lists.given_filters(query) <= {"source", "id"}
    if query.id or query.asset or query.symbol:
        return False
    filters = row_lists.given_filters(query)
    if query.listed:
        filters.remove("listed")
    # An index has the rows in these orders; source, rank and listed=true leave out few of the rows.
    return query.sort not in {None, "rank", "source"} or not filters <= {"source", "rank_min", "rank_max"}


ENDPOINTS = (
    Endpoint(
        path="/data",
        handler=page,
        summary="The newest record of each coin of each source",
        description="A page of records, filtered and sorted. Numbers have every digit of the source.",
        tag="data",
        query=DataQuery,
        response=DataPage,
        caching="version",
        live=_is_live,
        slow=_may_be_slow,
        headers=paging.LINK_HEADER,
    ),
    Endpoint(
        path="/data/{source}/{source_id:path}",
        handler=row,
        summary="One record",
        description="The newest record of one coin from one source.",
        tag="data",
        path_params=RecordPath,
        query=RowQuery,
        response=Record,
        problems=(400, 404, 500, 503),
        caching="version",
        live=_is_live,
    ),
)
