"""The checks of the rounds detect each violation."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from kasparro.model.batch import BatchBuilder
from kasparro.model.record import Record
from kasparro.store.loader import Loader
from kasparro.store.pool import Connection, Database
from kasparro.store.runs import RunRecord
from tests.chaos import invariants
from tests.chaos.model import VALUES, Coin, Model, Reported

pytestmark = pytest.mark.slow

AT = datetime(2026, 5, 1, tzinfo=UTC)
SEEN = Counter({"coinpaprika": 2})


def reported(name: str, hours: int) -> tuple[Coin, Reported]:
    values = {"symbol": "C", "name": name, "price_usd": Decimal(hours)}
    at = AT + timedelta(hours=hours)
    return Coin("coinpaprika", name), Reported(at, tuple(values.get(field) for field in VALUES))


@pytest.fixture
async def model(database: Database, connection: Connection) -> Model:
    """Two runs with two coins each, in the tables and in the model."""
    await connection.execute(invariants.WRITE_LOG)
    expected = Model()
    for hours in (1, 2):
        run = await RunRecord.start(database, "etl", ("coinpaprika",), AT)
        builder = BatchBuilder()
        for name in ("one", "two"):
            await run.count_call("coinpaprika", AT, None)
            at = AT + timedelta(hours=hours)
            builder.add(Record(source_id=name, symbol="C", name=name, observed_at=at, price_usd=str(hours)))
            expected.add([reported(name, hours)])
        await Loader(database, run.id, "coinpaprika").load(builder.take(), AT)
        await run.finish_source("coinpaprika", "succeeded", None, AT)
        await run.finish("succeeded", None, AT)
    return expected


async def test_correct_tables_have_no_violations(model: Model, connection: Connection) -> None:
    assert await invariants.violations(connection, model, list(model.newest), SEEN) == []


@pytest.mark.parametrize(
    ("statement", "violation"),
    [
        ("DELETE FROM unified_data WHERE source_id = 'one'", "is missing"),
        ("UPDATE unified_data SET price_usd = 3 WHERE source_id = 'one'", "reported last was"),
        (
            "UPDATE unified_history SET price_usd = 3 WHERE source_id = 'one'",
            "has a record that nobody reported",
        ),
        ("DELETE FROM unified_history WHERE price_usd = 2", "is not the newest of"),
        ("DELETE FROM unified_history WHERE price_usd = 1", "unified_history has 2"),
        ("UPDATE run_sources SET inserted = 1, unchanged = 1 WHERE run_id = 1", "runs inserted 1"),
        ("UPDATE run_sources SET unchanged = 5", "do not add up"),
        ("UPDATE run_sources SET rejected = 1, fetched = fetched + 1", "are 0, not 1"),
        ("UPDATE runs SET status = 'running' WHERE id = 1", "run 1 was left running"),
        ("UPDATE run_sources SET status = 'running' WHERE run_id = 1", "is running, the run succeeded"),
        ("UPDATE run_sources SET batches = batches + 1 WHERE run_id = 1", "wrote after run 2 had begun"),
        ("UPDATE api_calls SET calls = 1", "saw 2 calls, of which 1 were booked"),
    ],
)
async def test_violation_is_described(
    model: Model, connection: Connection, statement: str, violation: str
) -> None:
    await connection.execute(statement)

    assert violation in "\n".join(await invariants.violations(connection, model, list(model.newest), SEEN))


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "source_failed", "level": "error"}',
        '{"event": "odd", "level": "info", "exception": "Traceback (most recent call last): ..."}',
        "Traceback (most recent call last):",
    ],
)
def test_unexpected_log_lines_are_found(line: str) -> None:
    assert invariants.unexpected_log_lines([line])
    assert not invariants.unexpected_log_lines(['{"event": "retry_scheduled", "level": "warning"}'])
