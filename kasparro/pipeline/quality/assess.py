"""Assesses a finished source run against earlier runs, and logs what is new and what has ended."""

import asyncio
from datetime import datetime

import msgspec
import structlog

from kasparro.model.profile import Profile
from kasparro.pipeline.quality.anomalies import Anomaly, RunMetrics, find_anomalies, run_metrics
from kasparro.pipeline.quality.drift import Drift, DriftBaseline, DriftReport, find_drift
from kasparro.store.listings import ListReport
from kasparro.store.loader import PriceMoves
from kasparro.store.runs import Baseline, StoredAssessment

log = structlog.get_logger()

# How many field changes one log event lists. The run's report has all of them.
CHANGES_LOGGED = 10

_BASELINE = msgspec.json.Decoder(DriftBaseline)
_METRICS = msgspec.json.Decoder(RunMetrics)
_ANOMALIES = msgspec.json.Decoder(list[Anomaly])


class QualityReport(msgspec.Struct, frozen=True):
    """The drift and the anomalies of a source run, and `stored`, the form in which the database keeps them.

    A run without records has no drift: the upstream reported that nothing has changed.
    """

    drift: list[Drift]
    anomalies: list[Anomaly]
    stored: StoredAssessment


async def assess(
    source: str,
    baseline: Baseline,
    profile: Profile,
    moves: PriceMoves,
    listed: ListReport | None,
    *,
    run_id: int,
    at: datetime,
    fetched: int,
    valid: int,
    complete: bool,
    planned: float,
    bound: int | None,
) -> QualityReport:
    """Assess one source run and log the news.

    If most records were rejected, only the fields are assessed: the metrics would distort later comparisons.
    `listed`: what the whole list lacks, None if the run did not read all of it. `complete`: the run fetched
    all that it planned. `planned`: the share of the list that it planned to
    fetch. `bound`: the largest number of records that it requested, None for all.
    """
    usable = valid * 2 >= fetched
    # In a thread: comparing the names takes seconds if hundreds of fields appeared and vanished.
    fields = await asyncio.to_thread(
        find_drift, _decode_baseline(baseline.profile), profile, run_id, usable=usable, complete=complete
    )
    _log_drift(source, run_id, fields)
    metrics: RunMetrics | None = None
    anomalies: list[Anomaly] = []
    if usable:
        newest = [] if baseline.newest is None else [_METRICS.decode(baseline.newest)]
        metrics = run_metrics(fetched, moves, newest, at=at, complete=complete, planned=planned, bound=bound)
        known = _ANOMALIES.decode(baseline.anomalies)
        usual = [_METRICS.decode(text) for text in baseline.usual]
        metrics, anomalies = find_anomalies(metrics, usual, known, run_id, listed)
        _log_anomalies(source, run_id, known, anomalies)
    return QualityReport(
        fields.drift,
        anomalies,
        StoredAssessment(
            metrics=_json(metrics) if metrics else None,
            drift=_json(fields.drift) if profile.records else None,
            anomalies=_json(anomalies) if metrics else None,
            profile=_json(fields.baseline) if fields.baseline else None,
        ),
    )


def _decode_baseline(text: str | None) -> DriftBaseline | None:
    try:
        return None if text is None else _BASELINE.decode(text)
    except msgspec.ValidationError:
        # Another version of Kasparro wrote it in another form. This one starts a new baseline.
        return None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _log_drift(source: str, run_id: int, fields: DriftReport) -> None:
    if fields.new:
        changes = [drift.summary for drift in fields.new[:CHANGES_LOGGED]]
        more = len(fields.new) - len(changes)
        log.warning(
            "drift_found", run=run_id, source=source, changes=changes, **({"more": more} if more else {})
        )
    for event, known in (("drift_ended", fields.ended), ("drift_accepted", fields.accepted)):
        if known:
            changes = [f"{change.field} {change.change} since run {change.since_run}" for change in known]
            log.info(event, run=run_id, source=source, changes=changes)


def _log_anomalies(source: str, run_id: int, known: list[Anomaly], anomalies: list[Anomaly]) -> None:
    for anomaly in anomalies:
        if anomaly.since_run == run_id:
            log.warning("anomaly_found", run=run_id, source=source, kind=anomaly.kind, detail=anomaly.detail)
    for kind in sorted({anomaly.kind for anomaly in known} - {anomaly.kind for anomaly in anomalies}):
        log.info("anomaly_ended", run=run_id, source=source, kind=kind)
