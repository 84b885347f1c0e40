"""The tables of the service, with their sizes."""

import msgspec

from kasparro.store.pool import Connection
from kasparro.store.sql import templates

_SQL = templates("read/tables.sql")

# The tables in the order of /tables, without `shared_quotas`: a standby cannot read an unlogged table.
TABLES = (
    "unified_data",
    "unified_data_versions",
    "unified_history",
    "unified_assets",
    "unified_assets_versions",
    "assets",
    "asset_links",
    "asset_candidates",
    "history_months",
    "daily_candles",
    "insert_counters",
    "runs",
    "run_sources",
    "payloads",
    "rejects",
    "reject_counts",
    "invalid_values",
    "listings",
    "usual_lists",
    "archive_files",
    "shared_records",
    "file_disagreements",
    "pages",
    "source_profiles",
    "api_calls",
    "contracts",
    "contract_lists",
    "instance",
    "schema_migrations",
)
# Counting the rows of a table up to this size takes milliseconds. The rows of larger tables are estimated.
COUNTED_BYTES = 32 * 2**20


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its number of rows, which may be `estimated`, and its bytes including indexes."""

    name: str
    rows: int
    bytes: int
    estimated: bool


async def tables(connection: Connection) -> list[Table]:
    """The tables that exist, in the order of `TABLES`."""
    statement = _SQL["tables"].compose()
    found = []
    for name, size, estimate in await connection.fetch(statement.text, *statement.values({"names": TABLES})):
        estimated = size > COUNTED_BYTES
        count = _SQL["count"].compose(table=name)
        rows = estimate if estimated else await connection.fetchval(count.text)
        found.append(Table(name=name, rows=rows, bytes=size, estimated=estimated))
    return found
