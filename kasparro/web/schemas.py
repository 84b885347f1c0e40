"""The structs that several responses share; the OpenAPI document describes them."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from kasparro.pipeline.call_budget import Budget
from kasparro.pipeline.quality.anomalies import Anomaly
from kasparro.pipeline.quality.drift import Drift
from kasparro.sources import registry
from kasparro.store.selection import ASSETS, DATA, RowList

RunStatus = Literal["running", "succeeded", "partial", "failed", "interrupted"]
ArchiveState = Literal["loaded", "incomplete", "rejected", "forgotten"]
SourceStatus = Literal["running", "succeeded", "partial", "failed", "interrupted", "skipped"]
if TYPE_CHECKING:
    SourceName = str
    Field = str
    Sort = str
    AssetField = str
    AssetSort = str
else:

    def _fields(rows: RowList) -> tuple[str, ...]:
        return (*rows.fields, *rows.on_request)

    def _sorts(rows: RowList) -> tuple[str, ...]:
        return tuple(sign + field for field in rows.fields for sign in ("", "-"))

    # The OpenAPI document lists these values, and parameters take no others.
    SourceName = Literal[registry.names()]
    Field, Sort = Literal[_fields(DATA)], Literal[_sorts(DATA)]
    AssetField, AssetSort = Literal[_fields(ASSETS)], Literal[_sorts(ASSETS)]
# A time with an offset: RFC 3339 requires one, and OpenAPI calls it a date-time.
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class _Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    # The options of all responses.
    pass


class Records(_Schema, frozen=True, kw_only=True):
    """How many records a run or a source run fetched, and what became of them."""

    fetched: Annotated[int, msgspec.Meta(description="Records fetched. A rejected file counts as one.")] = 0
    valid: Annotated[int, msgspec.Meta(description="Of these, accepted.")] = 0
    rejected: Annotated[int, msgspec.Meta(description="Of these, rejected; GET /runs/{id}/rejects.")] = 0
    inserted: Annotated[int, msgspec.Meta(description="New rows of unified_data.")] = 0
    updated: Annotated[int, msgspec.Meta(description="Changed rows.")] = 0
    unchanged: Annotated[int, msgspec.Meta(description="Records that changed no row.")] = 0

    def __add__(self, other: "Records") -> "Records":
        return Records(**{name: getattr(self, name) + getattr(other, name) for name in OUTCOMES})

    def __sub__(self, other: "Records") -> "Records":
        return Records(**{name: getattr(self, name) - getattr(other, name) for name in OUTCOMES})


OUTCOMES = Records.__struct_fields__


class RejectCount(_Schema, frozen=True, kw_only=True):
    """How many records were rejected for one reason."""

    location: Annotated[
        str | None,
        msgspec.Meta(description="The file of an archive. Null for an API, and for all rejected files."),
    ]
    field: str | None
    reason: str
    rejects: int


class RejectedFile(_Schema, frozen=True, kw_only=True):
    """A file that was rejected, as a whole or from one row on."""

    file: str
    reason: str
    setting: Annotated[
        str | None, msgspec.Meta(description="The line of the file's overrides that would settle it.")
    ]


class InvalidField(_Schema, frozen=True, kw_only=True):
    """Values that their field cannot have, of accepted records: the records have null instead."""

    location: Annotated[str | None, msgspec.Meta(description="The file of an archive. Null for an API.")]
    field: Annotated[str, msgspec.Meta(description="The field of the record, as in /data.")]
    reason: str
    records: Annotated[int, msgspec.Meta(description="How many records have such a value.")]
    samples: Annotated[
        list[str],
        msgspec.Meta(description="The first of them: the coin, or the line of the file, and the value."),
    ]


class Prices(_Schema, frozen=True, kw_only=True):
    """How far the prices of an API moved, over all coins with a new price and an earlier one."""

    coins: int
    size_percent: Annotated[float, msgspec.Meta(description="The median of the moves without their signs.")]
    change_percent: Annotated[float, msgspec.Meta(description="The median of the moves with their signs.")]
    after_s: Annotated[float, msgspec.Meta(description="The median time between both prices, in seconds.")]


class SourceReport(_Schema, frozen=True, kw_only=True):
    """One source's part in a run."""

    source: str
    status: SourceStatus
    started_at: Moment
    finished_at: Moment | None
    duration_s: float | None
    records: Records
    corrected: Annotated[
        int,
        msgspec.Meta(
            description="Of the updated records: those for a moment that the source had reported with other "
            "values."
        ),
    ]
    rejects: Annotated[
        list[RejectCount],
        msgspec.Meta(
            description="Rejects by file, field and reason: rejected files first, then the most frequent; at "
            "most 50."
        ),
    ]
    invalid_fields: Annotated[
        list[InvalidField],
        msgspec.Meta(
            description="Values of accepted records that became null because their field cannot have them, "
            "by file, field and reason, the most frequent first; at most 50."
        ),
    ]
    rejected_files: Annotated[
        list[RejectedFile],
        msgspec.Meta(
            description="The first 50 rejected files, while their rejects are kept. `rejects` counts all of "
            "them as `file rejected`."
        ),
    ]
    calls: Annotated[int, msgspec.Meta(description="Calls to the upstream.")]
    note: Annotated[
        str | None, msgspec.Meta(description="Information that is no error, such as the pages fetched.")
    ]
    payloads: Annotated[int, msgspec.Meta(description="Payloads of this run that are still kept.")]
    payload_bytes: Annotated[int, msgspec.Meta(description="Their bytes, compressed.")]
    drift: Annotated[
        list[Drift], msgspec.Meta(description="Fields that differ from what the source used to send.")
    ]
    anomalies: Annotated[
        list[Anomaly], msgspec.Meta(description="Figures far from the usual range of this source.")
    ]
    prices: Annotated[Prices | None, msgspec.Meta(description="Null without earlier prices.")]
    error: Annotated[str | None, msgspec.Meta(description="Why it did not succeed, in one line.")]


class RunReport(_Schema, frozen=True, kw_only=True):
    """One run: the outcome of each source, and the sum."""

    id: int
    trigger: Literal["startup", "schedule", "retry", "api", "etl", "replay", "forget"]
    status: RunStatus
    started_at: Moment
    finished_at: Moment | None
    duration_s: Annotated[
        float | None, msgspec.Meta(description="Seconds from start to end, or until now while it is running.")
    ]
    records: Annotated[Records, msgspec.Meta(description="The sum over its sources.")]
    sources: list[SourceReport]
    error: Annotated[str | None, msgspec.Meta(description="Why it did not succeed, in one line.")]


class RejectReport(_Schema, frozen=True, kw_only=True):
    """One rejected record or file."""

    id: int
    source: str
    reason: str
    setting: Annotated[
        str | None,
        msgspec.Meta(description="For a file: the line of its overrides that would settle it."),
    ]
    field: str | None
    location: Annotated[str | None, msgspec.Meta(description="The file or page that holds it.")]
    line: Annotated[
        int | None,
        msgspec.Meta(description="Its line in the file. Null with a `location`: the file was rejected."),
    ]
    raw: Annotated[str, msgspec.Meta(description="The record as the source wrote it.")]


class Archive(_Schema, frozen=True, kw_only=True):
    """An archive, and what the database holds of it."""

    file: Annotated[
        str, msgspec.Meta(description="Its path below the folder that KASPARRO_ARCHIVES names, or its name.")
    ]
    state: Annotated[
        ArchiveState,
        msgspec.Meta(
            description="`loaded`: to its end. `incomplete`: a run stopped before the end; the next one "
            "continues. `rejected`: nothing of it is loaded. `forgotten`: it was taken back. Whether a file "
            "has changed since or is gone, `kasparro archives` shows."
        ),
    ]
    loaded_at: Annotated[
        Moment | None, msgspec.Meta(description="When a run last wrote its progress. Null: never.")
    ]
    rows: Annotated[int, msgspec.Meta(description="Records in the history that this file gives.")]
    coin: Annotated[
        str | None,
        msgspec.Meta(description="The one coin of its rows, as `source_id` has it; null if there are more."),
    ]
    asset: Annotated[str | None, msgspec.Meta(description="The asset that this coin is linked to.")]
    coins: int
    quoted_in: Annotated[
        list[str] | None,
        msgspec.Meta(
            description="The currencies of its prices: USD, or coins that count as US dollars. Null: nothing "
            "is loaded, or an earlier version of Kasparro loaded it."
        ),
    ]
    first_observed_at: Moment | None
    last_observed_at: Moment | None
    problem: Annotated[
        str | None,
        msgspec.Meta(
            description="Why the newest run rejected it, as a whole or from one row on. Rows of an earlier "
            "content stay."
        ),
    ]
    setting: Annotated[
        str | None, msgspec.Meta(description="The lines of the file's overrides that would settle it.")
    ]
    rejected_in: Annotated[int | None, msgspec.Meta(description="The run that rejected it.")]


class ArchiveTotals(_Schema, frozen=True, kw_only=True):
    """How many archives there are of each state, and how many have a problem, whatever the filters are."""

    loaded: int = 0
    incomplete: int = 0
    rejected: int = 0
    forgotten: int = 0
    problems: int = 0
    unlisted: Annotated[
        int,
        msgspec.Meta(description="Files that the newest run rejected and whose reasons are not kept."),
    ] = 0


class Difference(_Schema, frozen=True, kw_only=True):
    """The figures of run b minus those of run a."""

    duration_s: Annotated[float | None, msgspec.Meta(description="Null if one of the runs has no end.")]
    calls: int
    records: Records


class SourceComparison(_Schema, frozen=True, kw_only=True):
    """How a source run in run b differs from the one in run a."""

    source: str
    status_a: Annotated[SourceStatus | None, msgspec.Meta(description="Null if run a has no such source.")]
    status_b: Annotated[SourceStatus | None, msgspec.Meta(description="Null if run b has no such source.")]
    difference: Annotated[Difference | None, msgspec.Meta(description="Null if only one run has the source.")]
    drift_begun: Annotated[list[str], msgspec.Meta(description="Fields that drift in b and not in a.")]
    drift_over: Annotated[list[str], msgspec.Meta(description="Fields that drift in a and not in b.")]
    anomalies_begun: Annotated[list[str], msgspec.Meta(description="Kinds that are in b and not in a.")]
    anomalies_over: Annotated[list[str], msgspec.Meta(description="Kinds that are in a and not in b.")]


class Comparison(_Schema, frozen=True, kw_only=True):
    """Two runs, and how the second differs from the first."""

    a: RunReport
    b: RunReport
    difference: Difference
    only_a: Annotated[list[str], msgspec.Meta(description="Sources that only run a has.")]
    only_b: Annotated[list[str], msgspec.Meta(description="Sources that only run b has.")]
    sources: list[SourceComparison]


class Totals(_Schema, frozen=True, kw_only=True):
    """Totals over all runs and rows."""

    records: Annotated[int, msgspec.Meta(description="Rows of unified_data.")]
    by_source: dict[str, int]
    runs: int
    last_success_at: Annotated[
        Moment | None, msgspec.Meta(description="When a run last ended with all sources succeeded.")
    ]
    last_failure_at: Annotated[
        Moment | None,
        msgspec.Meta(description="When a run last ended as partial, failed or interrupted."),
    ]


class Schedule(_Schema, frozen=True, kw_only=True):
    """When the scheduler starts runs."""

    interval_s: Annotated[float | None, msgspec.Meta(description="Null: it starts none.")]
    next_run_at: Moment | None


class Stats(_Schema, frozen=True, kw_only=True):
    """The service at a glance."""

    status: Literal["running", "idle"]
    last_run: Annotated[RunReport | None, msgspec.Meta(description="The newest run, finished or running.")]
    totals: Totals
    schedule: Schedule
    budget: dict[str, Budget]
    drift: Annotated[
        dict[str, list[Drift]],
        msgspec.Meta(description="For each API: fields that differ from what it used to send."),
    ]


class SourceHealth(_Schema, frozen=True, kw_only=True):
    """The health of one source."""

    status: Annotated[SourceStatus | None, msgspec.Meta(description="The outcome of its last finished run.")]
    last_success_at: Moment | None
    age_s: Annotated[
        float | None, msgspec.Meta(description="Seconds since its last success. Null: it had none yet.")
    ]
    expected_age_s: Annotated[
        float | None,
        msgspec.Meta(
            description="The highest normal age: twice the time between runs and 5 minutes. Null: unknown."
        ),
    ]
    stale: Annotated[bool, msgspec.Meta(description="The age is higher, or a clock was set back.")]
    error: Annotated[str | None, msgspec.Meta(description="Why its last run did not succeed.")]
    reasons: Annotated[
        list[str],
        msgspec.Meta(
            description="Why it is not healthy, one line each: outcome, age, anomalies, and coins "
            "that run after run has rejected."
        ),
    ]

    @property
    def healthy(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons
