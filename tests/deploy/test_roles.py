"""docs/deploy/postgresql/roles.sql: the API works with the rights of the reader, who can change nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from kasparro.embedded.programs import find_programs
from kasparro.store.migrations import migrate
from kasparro.store.pool import Database
from tests.support.batches import load_batches, make_batch, make_record
from tests.support.documents import ROOT
from tests.support.json_responses import get_json
from tests.support.postgres import Server, servers
from tests.web.conftest import serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
]

READER = "kasparro_read"
ROLES = ROOT / "docs" / "deploy" / "postgresql" / "roles.sql"
# Paths with parameters, which the list of all paths below fills.
ROW, ASSET, RUN = "coinpaprika/a", "btc-bitcoin", "1"


async def create_roles(server: Server) -> None:
    """Run the script, as docs/operations.md describes it."""
    process = await asyncio.create_subprocess_exec(
        *(str(find_programs().path("psql")), "-v", "ON_ERROR_STOP=1", "-f", str(ROLES)),
        server.url("postgres", "postgres"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.fixture(params=["new database", "database with tables"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """A server on which the script ran before or after the migrations, with one row of a later month."""
    async with servers() as installation:
        server = await installation.primary()
        if request.param == "new database":
            async with server.admin("postgres") as connection:
                await connection.execute("DROP DATABASE kasparro")
                await connection.execute("DROP ROLE kasparro")
            await create_roles(server)
        async with Database(server.url()) as database:
            await migrate(database)
            if request.param == "database with tables":
                await create_roles(server)
            # The script may run again.
            await create_roles(server)
            later = datetime(2019, 7, 1, tzinfo=UTC)
            await load_batches(database, make_batch(make_record("a", later)))
        yield server


async def test_api_works_with_the_rights_of_the_reader(server: Server) -> None:
    async with serving(server.url(), read_url=server.url(user=READER)) as client:
        document = await get_json(client, "/openapi.json")
        read = [path for path, item in document["paths"].items() if "get" in item]
        for path in read:
            filled = path
            for name, value in (("{source}/{source_id}", ROW), ("{asset}", ASSET), ("{id}", RUN)):
                filled = filled.replace(name, value)
            query = "?a=1&b=1" if path == "/compare-runs" else ""
            async with client.get(filled + query) as response:
                # A stream of events has no end.
                endless = response.content_type == "text/event-stream"
                text = "" if endless else await response.text()
                assert response.status in {200, 404}, (path, text)
                assert response.status == 200 or "{" in path or path == "/compare-runs", (path, text)
        assert (await get_json(client, "/data"))["data"]
        assert (await get_json(client, "/data/coinpaprika/a/history"))["data"]
        assert (await get_json(client, "/health"))["database"]["status"] == "ok"


WRITES = (
    "UPDATE unified_data SET rank = 1",
    "DELETE FROM unified_history",
    "INSERT INTO runs (trigger, status, started_at) VALUES ('etl', 'running', now())",
    "TRUNCATE payloads",
    "DROP TABLE payloads",
    "ALTER TABLE runs ADD COLUMN more text",
    "CREATE TABLE more (id integer)",
    "CREATE TEMPORARY TABLE more (id integer)",
    "CREATE SCHEMA more",
    "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "SELECT create_history_partition('2030-01-01')",
    "SELECT lo_create(0)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT nextval(pg_get_serial_sequence('runs', 'id'))",
    "SELECT * FROM unified_data FOR UPDATE",
    "DO 'BEGIN LOCK TABLE unified_data; END'",
    "COPY unified_data TO PROGRAM 'true'",
    "SET ROLE kasparro",
)


@pytest.mark.parametrize("server", ["new database"], indirect=True)
async def test_reader_can_change_nothing(server: Server) -> None:
    connection = await asyncpg.connect(server.url(user=READER))
    await connection.execute("SET default_transaction_read_only = off")
    for statement in WRITES:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    tables = await connection.fetch(
        "SELECT relname, has_table_privilege(oid, 'SELECT') AS reads, has_table_privilege(oid, "
        "'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER') AS writes FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
    )
    await connection.close()
    assert "unified_history_2019_07" in {table["relname"] for table in tables}
    assert {(table["reads"], table["writes"]) for table in tables} == {(True, False)}


@pytest.mark.parametrize("server", ["new database"], indirect=True)
async def test_other_roles_cannot_connect(server: Server) -> None:
    async with server.admin() as connection:
        await connection.execute("CREATE ROLE stranger LOGIN")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await asyncpg.connect(server.url(user="stranger"))
