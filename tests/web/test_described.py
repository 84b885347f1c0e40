"""The description and the service agree: schemathesis finds no difference, and a generated client works."""

import os
from pathlib import Path

from tests.web.stocked import TOKEN, command, stocked

# `just fuzz` goes on for ten minutes, each time with other requests.
SECONDS = int(os.environ.get("KASPARRO_TEST_FUZZ", "0"))
HERE = Path(__file__).parent


async def test_schemathesis_finds_nothing(database_url: str) -> None:
    amount = ["--max-time", str(SECONDS)] if SECONDS else ["--max-examples", "100", "--seed", "1"]
    async with stocked(database_url) as service:
        code, output = await command(
            *("schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"),
            f"{service.url}/openapi.json",
            *("--header", f"Authorization: Bearer {TOKEN}", "--generation-database", "none", "--no-color"),
            *amount,
            SCHEMATHESIS_HOOKS="tests.web.schemathesis_hooks",
        )
    assert code == 0, output
    assert [event for event in service.log if event["level"] in {"error", "critical"}] == []
