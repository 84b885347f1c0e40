"""The service matches its OpenAPI document, according to schemathesis and to a generated client."""

import os
from pathlib import Path

import pytest

from tests.support.live_service import TOKEN, command, live_service

pytestmark = pytest.mark.slow

# `just fuzz` runs for ten minutes, with new requests each time.
SECONDS = int(os.environ.get("KASPARRO_TEST_FUZZ", "0"))
HERE = Path(__file__).parent


async def test_schemathesis_finds_nothing(database_url: str) -> None:
    amount = ["--max-time", str(SECONDS)] if SECONDS else ["--max-examples", "100", "--seed", "1"]
    async with live_service(database_url) as service:
        code, output = await command(
            *("schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"),
            f"{service.url}/openapi.json",
            *("--header", f"Authorization: Bearer {TOKEN}", "--generation-database", "none", "--no-color"),
            *amount,
            SCHEMATHESIS_HOOKS="tests.web.openapi.schemathesis_hooks",
        )
    assert code == 0, output
    assert [event for event in service.log if event["level"] in {"error", "critical"}] == []


# A program that uses the generated client.
USE = """
import decimal
import json
import sys
from datetime import datetime
from kasparro_client import Client
from kasparro_client.api.data import page, row
from kasparro_client.api.operations import run
from kasparro_client.models import DataPage, ProblemDocument, Record, RunReport, RunStatus, Sort, Source

client = Client(base_url=sys.argv[1])

found = page.sync(client=client, limit=2, source=[Source.COINGECKO, Source.CSV], sort=Sort.RANK_DESC)
assert isinstance(found, DataPage)
first, second = found.data
assert first.source in {Source.COINGECKO, Source.CSV}
assert isinstance(first.rank, int) and isinstance(second.rank, int) and first.rank >= second.rank
assert isinstance(first.observed_at, datetime) and first.observed_at.tzinfo is not None

cursor = found.pagination.next_cursor
assert cursor is not None
after = page.sync(
    client=client, limit=2, source=[Source.COINGECKO, Source.CSV], sort=Sort.RANK_DESC, cursor=cursor
)
assert isinstance(after, DataPage) and after.pagination.page is None
assert {record.source_id for record in after.data}.isdisjoint({first.source_id, second.source_id})

response = row.sync_detailed(Source.COINGECKO, "bitcoin", client=client)
assert isinstance(response.parsed, Record)
price, supply = response.parsed.price_usd, response.parsed.max_supply
assert supply is None or isinstance(supply, int | float)
# A parsed number is a float. The bytes have every digit.
exact = json.loads(response.content, parse_float=decimal.Decimal)["price_usd"]
assert price == float(exact)

problem = page.sync(client=client, page=1, cursor=cursor)
assert isinstance(problem, ProblemDocument) and problem.parameter == "page, cursor"

missing = run.sync(10**9, client=client)
assert isinstance(missing, ProblemDocument) and missing.status == 404

done = run.sync(1, client=client)
assert isinstance(done, RunReport) and done.status is RunStatus.SUCCEEDED
"""


async def test_generated_client(database_url: str, tmp_path: Path) -> None:
    config = tmp_path / "client.yml"
    config.write_text(
        "package_name_override: kasparro_client\npost_hooks: []\n"
        # The generator knows no other text type.
        "content_type_overrides: {application/x-ndjson: text/plain, text/event-stream: text/plain}\n"
    )
    (tmp_path / "use.py").write_text(USE)
    paths = ["--config", str(config), "--output-path", str(tmp_path / "kasparro_client")]
    async with live_service(database_url) as service:
        generated, output = await command(
            *("openapi_python_client", "generate", "--url", f"{service.url}/openapi.json"),
            *("--meta", "none", "--fail-on-warning", *paths),
        )
        assert generated == 0, output
        checked, errors = await command(
            *("mypy", "--strict", "--config-file", "", "--cache-dir", os.devnull, str(tmp_path / "use.py")),
            MYPYPATH=str(tmp_path),
        )
        assert checked == 0, errors
        code, output = await command("use", service.url, PYTHONPATH=str(tmp_path))
    assert (code, output) == (0, "")
