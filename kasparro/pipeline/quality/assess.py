"""Judges a finished pass by its source's own past, and says once what began and what is over."""

import asyncio
from datetime import datetime

import msgspec
import structlog

from kasparro.model.profile import Profile
from kasparro.pipeline.quality import anomalies, drift
from kasparro.pipeline.quality.anomalies import Anomaly, RunMetrics
from kasparro.pipeline.quality.drift import Drift, DriftBaseline
from kasparro.store.loader import PriceMoves
from kasparro.store.runs import Baseline, StoredAssessment

log = structlog.get_logger()

# Of many changes at once the first tell the story; the run's report has them all.
LINES_LOGGED = 10

_MEMORY = msgspec.json.Decoder(DriftBaseline)
_FIGURES = msgspec.json.Decoder(RunMetrics)
_ANOMALIES = msgspec.json.Decoder(list[Anomaly])


class QualityReport(msgspec.Struct, frozen=True):
    """What a pass is found to be: its drift and anomalies, and all of it as it is kept. A pass that brought
    no record, because its upstream said that nothing has changed, says nothing of fields.
    """

    drift: list[Drift]
    anomalies: list[Anomaly]
    judgement: StoredAssessment


async def assess(
    source: str,
    past: Baseline,
    profile: Profile,
    compared: PriceMoves,
    *,
    run_id: int,
    at: datetime,
    fetched: int,
    valid: int,
    whole: bool,
    planned: float,
    bound: int | None,
) -> QualityReport:
    """The verdict on one pass, logged as far as it is news.

    A pass of which most records were refused is judged by its fields alone: its figures would be no measure
    for others. `whole` tells that it brought the share of the list, `planned`, that it set out for; `bound`
    is how many records of the list it asked for at most.
    """
    sound = valid * 2 >= fetched
    # Names are compared with names, which takes seconds where hundreds of them came and went.
    fields = await asyncio.to_thread(
        drift.assess, _remembered(past.profile), profile, run_id, sound=sound, whole=whole
    )
    _say_drift(source, run_id, fields)
    told, found = None, []
    if sound:
        history = [_FIGURES.decode(figures) for figures in past.metrics]
        told = anomalies.figures(
            fetched, compared, history[:1], at=at, whole=whole, planned=planned, bound=bound
        )
        earlier = _ANOMALIES.decode(past.anomalies)
        found = anomalies.assess(told, history, earlier, run_id)
        _say_anomalies(source, run_id, earlier, found)
    return QualityReport(
        fields.drift,
        found,
        StoredAssessment(
            metrics=_text(told) if told else None,
            drift=_text(fields.drift) if profile.records else None,
            anomalies=_text(found) if told else None,
            profile=_text(fields.memory) if fields.memory else None,
        ),
    )


def _remembered(told: str | None) -> DriftBaseline | None:
    try:
        return None if told is None else _MEMORY.decode(told)
    except msgspec.ValidationError:
        # A memory that another version kept otherwise: this one begins its own.
        return None


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _say_drift(source: str, run_id: int, fields: drift.DriftReport) -> None:
    if fields.begun:
        lines = [one.summary for one in fields.begun[:LINES_LOGGED]]
        left = len(fields.begun) - len(lines)
        log.warning("drift_found", run=run_id, source=source, found=lines, **({"more": left} if left else {}))
    for event, changes in (("drift_ended", fields.over), ("drift_accepted", fields.accepted)):
        if changes:
            log.info(
                event,
                run=run_id,
                source=source,
                found=[f"{one.field} {one.change} since run {one.since_run}" for one in changes],
            )


def _say_anomalies(source: str, run_id: int, earlier: list[Anomaly], found: list[Anomaly]) -> None:
    for one in found:
        if one.since_run == run_id:
            log.warning("anomaly_found", run=run_id, source=source, kind=one.kind, detail=one.detail)
    for kind in sorted({one.kind for one in earlier} - {one.kind for one in found}):
        log.info("anomaly_ended", run=run_id, source=source, kind=kind)
