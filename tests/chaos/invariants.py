"""What has to hold after every round, whatever its faults."""

import json
from collections import Counter
from collections.abc import Sequence

from kasparro.store.pool import Connection
from tests.chaos.model import VALUES, Coin, Model, Reported

SOURCES = ("coinpaprika", "coingecko", "csv")
_COLUMNS = ", ".join(("source", "source_id", "observed_at", *VALUES))

# A log of writes by a trigger, which no process can bypass. Numbers follow the order of the writes: each is
# assigned while the row of run_sources is locked.
WRITE_LOG = """
CREATE TABLE write_log (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id bigint NOT NULL,
    source text NOT NULL,
    wrote boolean NOT NULL
);
CREATE FUNCTION log_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO write_log (run_id, source, wrote)
    VALUES (NEW.run_id, NEW.source, TG_OP = 'INSERT' OR NEW.batches > OLD.batches);
    RETURN NULL;
END
$$;
CREATE TRIGGER write_log AFTER INSERT OR UPDATE ON run_sources
FOR EACH ROW EXECUTE FUNCTION log_write();
"""


async def violations(
    connection: Connection, model: Model, final: Sequence[Coin], calls: Counter[str]
) -> list[str]:
    """Describes what does not hold; empty if everything does.

    `final` are the coins that the last complete run received, `calls` the calls that the upstreams counted.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        data = await _rows(connection, "unified_data")
        history = await _rows(connection, "unified_history")
        return [
            *_tables(model, final, data, history),
            *await _figures(connection, data, history),
            *await _runs(connection),
            *await _budget(connection, calls),
        ]


async def _rows(connection: Connection, table: str) -> dict[Coin, list[Reported]]:
    found: dict[Coin, list[Reported]] = {}
    for row in await connection.fetch(f"SELECT {_COLUMNS} FROM {table} ORDER BY observed_at"):
        source, source_id, observed_at, *values = row
        found.setdefault(Coin(source, source_id), []).append(Reported(observed_at, tuple(values)))
    return found


def _tables(
    model: Model, final: Sequence[Coin], data: dict[Coin, list[Reported]], history: dict[Coin, list[Reported]]
) -> list[str]:
    wrong = []
    for coin, rows in history.items():
        wrong += [
            f"unified_history has a record that nobody reported: {coin} {record}"
            for record in rows
            if record not in model.reported.get(coin, ())
        ]
        if len({record.observed_at for record in rows}) != len(rows):
            wrong.append(f"unified_history has duplicates of {coin}")
    if data.keys() != history.keys():
        wrong.append(f"unified_data and unified_history differ in {sorted(data.keys() ^ history.keys())}")
    for coin, rows in data.items():
        if len(rows) != 1:
            wrong.append(f"unified_data has duplicates of {coin}")
        if coin in history and rows[0] != history[coin][-1]:
            wrong.append(f"unified_data is not the newest of {coin}: {rows[0]}, {history[coin][-1]}")
    for coin in final:
        if coin not in data:
            wrong.append(f"{coin} is missing")
        elif data[coin][0] != model.newest[coin]:
            wrong.append(f"{coin} is {data[coin][0]}, reported last was {model.newest[coin]}")
    return wrong


async def _figures(
    connection: Connection,
    data: dict[Coin, list[Reported]],
    history: dict[Coin, list[Reported]],
) -> list[str]:
    wrong = []
    rows = Counter(coin.source for coin in data)
    moments = Counter(dict.fromkeys(SOURCES, 0))
    for coin, records in history.items():
        moments[coin.source] += len(records)
    for row in await connection.fetch(
        "SELECT source, sum(inserted) AS inserted, sum(inserted + updated - corrected) AS written"
        " FROM run_sources GROUP BY source"
    ):
        source = row["source"]
        if row["inserted"] != rows[source]:
            wrong.append(f"{source}: runs inserted {row['inserted']}, unified_data has {rows[source]}")
        if row["written"] != moments[source]:
            wrong.append(f"{source}: runs wrote {row['written']}, unified_history has {moments[source]}")
    wrong += [
        f"the figures of {row['source']} in run {row['run_id']} do not add up: {dict(row)}"
        for row in await connection.fetch(
            "SELECT * FROM run_sources WHERE fetched <> valid + rejected"
            " OR valid <> inserted + updated + unchanged OR corrected > updated"
        )
    ]
    wrong += [
        f"the rejects of {row['source']} in run {row['run_id']} are {row['counted']}, not {row['rejected']}"
        for row in await connection.fetch(
            "SELECT * FROM (SELECT run_id, source, rejected, (SELECT coalesce(sum(rejects), 0) FROM"
            " reject_counts AS c WHERE c.run_id = s.run_id AND c.source = s.source) AS counted"
            " FROM run_sources AS s) AS counts WHERE rejected <> counted"
        )
    ]
    return wrong


async def _runs(connection: Connection) -> list[str]:
    wrong = [
        f"run {row['id']} was left running"
        for row in await connection.fetch(
            "SELECT id FROM runs WHERE status = 'running' AND id < (SELECT max(id) FROM runs)"
        )
    ]
    wrong += [
        f"{row['source']} of run {row['run_id']} is {row['status']}, the run {row['run']}"
        for row in await connection.fetch(
            "SELECT s.run_id, s.source, s.status, r.status AS run FROM run_sources AS s JOIN runs AS r"
            " ON r.id = s.run_id WHERE s.status = 'running' AND r.status <> 'running'"
        )
    ]
    wrong += [
        f"run {row['run_id']} wrote after run {row['next']} had begun"
        for row in await connection.fetch(
            "SELECT DISTINCT w.run_id, later.run_id AS next FROM write_log AS w JOIN"
            " (SELECT run_id, min(number) AS began FROM write_log GROUP BY run_id) AS later"
            " ON later.run_id > w.run_id AND w.number > later.began WHERE w.wrote"
        )
    ]
    return wrong


async def _budget(connection: Connection, calls: Counter[str]) -> list[str]:
    booked = Counter(
        {
            row["source"]: row["calls"]
            for row in await connection.fetch(
                "SELECT source, sum(calls)::bigint AS calls FROM api_calls GROUP BY source"
            )
        }
    )
    return [
        f"{source} saw {seen} calls, of which {booked[source]} were booked"
        for source, seen in calls.items()
        if booked[source] < seen
    ]


def unexpected_log_lines(lines: Sequence[str]) -> list[str]:
    """Lines of a log that should not be there: errors, and lines that are not events."""
    wrong = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            wrong.append(f"a line that is not an event: {line[:300]}")
            continue
        if event.get("level") in {"error", "critical"} or "exception" in event:
            wrong.append(f"an error: {line[:3_000]}")
    return wrong
