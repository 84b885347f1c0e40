"""GET /assets, /assets/{asset} and /assets/candidates: coins across sources."""

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kasparro.store import asset_queries
from kasparro.store.selection import ASSETS, Filters, Selection
from kasparro.web.http.problems import not_found
from kasparro.web.openapi import pagination as paging
from kasparro.web.openapi.endpoint import Endpoint, json_response
from kasparro.web.openapi.pagination import PageQuery, Pagination
from kasparro.web.routes import row_lists
from kasparro.web.routes.row_lists import RowsQuery
from kasparro.web.schemas import AssetField, AssetSort, Moment
from kasparro.web.service import Service


class AssetsQuery(RowsQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /assets: filters, order, fields and page."""

    diverging: Annotated[
        bool | None,
        msgspec.Meta(
            description="`true`: assets whose fresh quotes differ by more than "
            "KASPARRO_DIVERGENCE_PERCENT. `false`: all others.",
            examples=[True],
        ),
    ] = None
    source_count_min: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=1_000)] | None,
        msgspec.Meta(description="Assets with at least so many quotes that count.", examples=[2]),
    ] = None
    sort: Annotated[
        AssetSort | None,
        msgspec.Meta(
            description="The field to sort by; `-` in front means descending. Assets without a value come "
            "last in both directions; `asset` breaks ties. Unset: `rank`.",
            examples=["-market_cap_usd"],
        ),
    ] = None
    fields: Annotated[
        Annotated[tuple[AssetField, ...], msgspec.Meta(max_length=50)],
        msgspec.Meta(
            description="Return only these fields, in the order of the full row; a comma list, or repeated.",
            examples=[["asset", "symbol", "price_usd"]],
        ),
    ] = ()

    def selection(self) -> Selection:
        """The assets, order and fields that the query selects."""
        return Selection(
            filters=Filters(**self.conditions()), sort=self.sort or "rank", fields=self.fields, rows=ASSETS
        )


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The consensus of one coin across sources; with `fields`, only those."""

    asset: Annotated[str | UnsetType, msgspec.Meta(description="The id of the coin; it never changes.")] = (
        UNSET
    )
    symbol: str | UnsetType | None = UNSET
    name: str | UnsetType | None = UNSET
    rank: Annotated[
        int | UnsetType | None,
        msgspec.Meta(description="Of the ranks that count, the lower middle one."),
    ] = UNSET
    price_usd: Annotated[
        Decimal | UnsetType | None,
        msgspec.Meta(description="The median of the quotes that count; of two middle ones, the mean."),
    ] = UNSET
    price_spread_percent: Annotated[
        Decimal | UnsetType | None,
        msgspec.Meta(
            description="The highest minus the lowest price that counts, in percent of the median, rounded "
            "to four decimals. Null for a single quote."
        ),
    ] = UNSET
    source_count: Annotated[int | UnsetType, msgspec.Meta(description="How many quotes count.")] = UNSET
    diverging: Annotated[
        bool | UnsetType,
        msgspec.Meta(
            description="Whether the fresh quotes, outlying ones too, differ by more than "
            "KASPARRO_DIVERGENCE_PERCENT of their median."
        ),
    ] = UNSET
    market_cap_usd: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="The median, as for the price.")
    ] = UNSET
    volume_24h_usd: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="The median, as for the price.")
    ] = UNSET
    circulating_supply: Annotated[
        Decimal | UnsetType | None,
        msgspec.Meta(description="Of the values that count, the lower middle one: a value of one source."),
    ] = UNSET
    total_supply: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="As for the circulating supply.")
    ] = UNSET
    max_supply: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="As for the circulating supply.")
    ] = UNSET
    percent_change_1h: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="The median, as for the price.")
    ] = UNSET
    percent_change_24h: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="The median, as for the price.")
    ] = UNSET
    percent_change_7d: Annotated[
        Decimal | UnsetType | None, msgspec.Meta(description="The median, as for the price.")
    ] = UNSET
    observed_at: Annotated[
        Moment | UnsetType | None, msgspec.Meta(description="The moment of the newest quote that counts.")
    ] = UNSET
    oldest_observed_at: Annotated[
        Moment | UnsetType | None, msgspec.Meta(description="The moment of the oldest quote that counts.")
    ] = UNSET


class AssetsPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of assets."""

    data: list[Asset]
    pagination: Pagination


class QuoteLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a row is linked to its asset."""

    method: Annotated[str, msgspec.Meta(description="The strongest evidence: docs/identity.md lists them.")]
    score: Annotated[float, msgspec.Meta(description="How certain the link is, from 0 to 1.")]
    evidence: Annotated[
        list[dict[str, Any]], msgspec.Meta(description="What speaks for the link and against it.")
    ]


class Quote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest record of one source for the asset."""

    source: str
    source_id: str
    price_usd: Decimal | None
    observed_at: Moment
    age_s: Annotated[float, msgspec.Meta(description="Seconds since `observed_at`.")]
    counted: Annotated[bool, msgspec.Meta(description="Whether the consensus counts it.")]
    excluded_because: Annotated[str | None, msgspec.Meta(description="Why the consensus does not count it.")]
    link: QuoteLink


class AssetWithQuotes(Asset, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The consensus of one coin, and the quotes that it is made of."""

    quotes: list[Quote]


class AssetPath(msgspec.Struct, frozen=True, kw_only=True):
    """The path of an asset."""

    asset: Annotated[str, msgspec.Meta(examples=["btc-bitcoin"])]


class CandidatesQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of /assets/candidates."""

    kind: Annotated[
        Literal["candidate", "conflict"] | None,
        msgspec.Meta(description="Only candidates, or only conflicts.", examples=["conflict"]),
    ] = None


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row that may be a known coin, or a link that became uncertain."""

    kind: Annotated[
        Literal["candidate", "conflict"],
        msgspec.Meta(
            description="`candidate`: the evidence is not enough for a link. `conflict`: the row is no "
            "longer what it was linked as."
        ),
    ]
    source: str
    source_id: str
    symbol: str | None
    name: str | None
    asset: Annotated[str | None, msgspec.Meta(description="The asset that it may be, or was.")]
    score: Annotated[float, msgspec.Meta(description="How likely the link is, from 0 to 1.")]
    reason: Annotated[str, msgspec.Meta(description="Why it is open, in one line.")]
    evidence: list[dict[str, Any]]
    found_at: Moment


class CandidatesPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A page of candidates and conflicts."""

    data: list[CandidateReport]
    pagination: Pagination


_EVIDENCE = msgspec.json.Decoder(list[dict[str, Any]])


async def assets(service: Service, request: Request, query: AssetsQuery) -> Response:
    """GET /assets."""
    return await row_lists.page(service, request, query, query.selection())


async def asset(service: Service, request: Request, query: Any) -> Response:
    """GET /assets/{asset}."""
    asset_id = request.path_params["asset"]
    found = None
    # No text in PostgreSQL contains NUL.
    if "\x00" not in asset_id:
        async with service.read_connection(request) as connection:
            found = await asset_queries.asset(connection, asset_id)
    if found is None:
        raise not_found("There is no such asset.", parameter="asset")
    return Response(found, media_type="application/json")


async def candidates(service: Service, request: Request, query: CandidatesQuery) -> Response:
    """GET /assets/candidates."""
    path = request.scope["path"]
    async with service.read_connection(request) as connection:
        signing_key = await service.signing_key(connection)
        page = await asset_queries.candidates(
            connection,
            limit=query.limit,
            offset=paging.offset(query),
            after=paging.decode_cursor(query, path, signing_key),
            kind=query.kind,
        )
    items = [
        CandidateReport(
            **{name: row[name] for name in CandidateReport.__struct_fields__ if name != "evidence"},
            evidence=_EVIDENCE.decode(row["evidence"]),
        )
        for row in page.rows
    ]
    pagination = paging.pagination(query, path, signing_key, total=page.total, last=page.last)
    headers = paging.link_header(query, path, pagination)
    return json_response(CandidatesPage(data=items, pagination=pagination), headers=headers)


def may_be_slow(query: AssetsQuery) -> bool:
    """Whether a query may take long."""
    if row_lists.may_be_slow(query):
        return True
    if query.asset or query.symbol or query.diverging:
        return False
    # An index has the assets in these orders.
    filters = row_lists.given_filters(query)
    return query.sort not in {None, "rank", "asset"} or not filters <= {"rank_min", "rank_max"}


ENDPOINTS = (
    Endpoint(
        path="/assets",
        handler=assets,
        summary="Coins across sources, with one consensus price each",
        description="A page of assets, filtered and sorted. It always agrees with /data of the same data "
        "version.",
        tag="assets",
        query=AssetsQuery,
        response=AssetsPage,
        caching="version",
        slow=may_be_slow,
        headers=paging.LINK_HEADER,
    ),
    Endpoint(
        path="/assets/candidates",
        handler=candidates,
        summary="Rows whose coin is uncertain",
        description="Rows that may be a known coin, with the evidence, and links that became uncertain. A "
        "rule in the file of KASPARRO_ASSET_RULES decides them.",
        tag="assets",
        query=CandidatesQuery,
        response=CandidatesPage,
        headers=paging.LINK_HEADER,
    ),
    Endpoint(
        path="/assets/{asset}",
        handler=asset,
        summary="One coin with its quotes",
        description="The consensus of one coin, the rows that it is made of, why each is linked, and why "
        "some do not count.",
        tag="assets",
        path_params=AssetPath,
        response=AssetWithQuotes,
        problems=(400, 404, 500, 503),
    ),
)
