"""The view Market: the coins, and above them the state of the service at a glance."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from starlette.requests import Request

from kasparro.store import asset_queries, queries
from kasparro.store.data_version import version_of
from kasparro.web import reports
from kasparro.web.http.context import context_of
from kasparro.web.openapi.pagination import PAGE_LIMIT
from kasparro.web.routes import assets
from kasparro.web.routes.assets import Asset, AssetsQuery, AssetWithQuotes
from kasparro.web.routes.health import HEALTH_TIMEOUT_S
from kasparro.web.routes.page import View, linker
from kasparro.web.schemas import AssetSort, RunReport
from kasparro.web.service import Service

ROWS = 50
# A coin without a quote of this time is marked with the day of its newest one.
OLD = timedelta(days=1)
# The coin of the summary.
BITCOIN = "btc-bitcoin"
# Runs that are read to find the last one that has ended.
_RUNS = 3

# The columns: field, heading, the order that a click on the heading asks for first, and from which width of
# the window the column is shown.
COLUMNS = (
    ("rank", "#", "rank", ""),
    ("name", "Coin", "name", ""),
    ("price_usd", "Price", "-price_usd", ""),
    ("percent_change_1h", "1h", "-percent_change_1h", "wide"),
    ("percent_change_24h", "24h", "-percent_change_24h", ""),
    ("percent_change_7d", "7d", "-percent_change_7d", "middle"),
    ("market_cap_usd", "Market cap", "-market_cap_usd", "middle"),
    ("volume_24h_usd", "Volume 24h", "-volume_24h_usd", "wide"),
    ("source_count", "Sources", "-source_count", "middle"),
)
_FIELDS = (
    "asset",
    "symbol",
    "observed_at",
    "diverging",
    "price_spread_percent",
    *(field for field, *_ in COLUMNS),
)

_decode_rows = msgspec.json.Decoder(list[Asset]).decode
_decode_asset = msgspec.json.Decoder(AssetWithQuotes).decode


class MarketQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of the view: search, order, filters and page, as for /assets."""

    # A form without a script sends an empty search.
    q: Annotated[str, msgspec.Meta(max_length=200)] = ""
    sort: AssetSort | None = None
    diverging: bool | None = None
    source_count_min: Annotated[int, msgspec.Meta(ge=0, le=1_000)] | None = None
    page: Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT // ROWS)] = 1
    # The newest run that a module has heard of. A run without changes leaves the data version as it was: with
    # another query, what the cache has from before its end is not used.
    run: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] | None = None

    def of_assets(self) -> AssetsQuery:
        """The same query of /assets."""
        return AssetsQuery(
            q=self.q or None,
            sort=self.sort,
            diverging=self.diverging,
            source_count_min=self.source_count_min,
            page=self.page,
            limit=ROWS,
            fields=_FIELDS,
        )


async def market(service: Service, request: Request, query: MarketQuery) -> dict[str, Any]:
    """What the template shows."""
    selection = query.of_assets().selection()
    async with service.read_connection(request) as connection:
        data_version = await version_of(connection)
        found = await queries.page(
            connection,
            service.totals[selection.rows.name],
            selection,
            limit=ROWS,
            offset=ROWS * (query.page - 1),
            slow=context_of(request.scope).slow,
        )
        bitcoin = await asset_queries.asset(connection, BITCOIN)
        runs = (await reports.recent_runs(connection, limit=_RUNS)).items
    last_run = _last_ended(runs)
    if query.run is not None and (last_run is None or last_run.id < query.run):
        # This run has not ended here. What is stored for it must show its end.
        context_of(request.scope).fresh = False
    sources, totals = await service.health(HEALTH_TIMEOUT_S)
    rows = _decode_rows(f"[{found.json}]")
    return {
        "title": "Market",
        "data_version": data_version,
        "query": query,
        "link": linker(query, run=None),
        "columns": [_Column(*column, sort=query.sort or "rank") for column in COLUMNS],
        "rows": rows,
        "old_before": datetime.now(UTC) - OLD,
        "total": found.total or 0,
        "pages": -(-(found.total or 0) // ROWS),
        "first": ROWS * (query.page - 1) + 1,
        "bitcoin": None if bitcoin is None else _decode_asset(bitcoin),
        "sources": sources,
        "assets": totals,
        "running": next((run for run in runs if run.status == "running"), None),
        "last_run": last_run,
        "next_run_at": service.next_run_at,
    }


def _last_ended(runs: list[RunReport]) -> RunReport | None:
    return next((run for run in runs if run.status != "running"), None)


class _Column:
    # A heading: where it leads, and how the rows are sorted by it.

    def __init__(self, field: str, label: str, first: str, shown: str, sort: str) -> None:
        self.field, self.label, self.shown = field, label, shown
        sorted_by = sort.removeprefix("-") == field
        descending = sort.startswith("-")
        self.direction = ("descending" if descending else "ascending") if sorted_by else None
        reverse = field if first.startswith("-") else f"-{field}"
        self.sort = reverse if sort == first else first


VIEW = View(
    path="/",
    handler=market,
    template="market.html",
    label="Market",
    module="market",
    query=MarketQuery,
    slow=lambda query: assets.may_be_slow(query.of_assets()),
)
