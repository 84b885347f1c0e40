"""Two runs side by side, and how the second differs from the first."""

from typing import Annotated

import msgspec

from kasparro.pipeline.report import Records, RunReport, SourceReport, SourceStatus


class Difference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures of b minus those of a."""

    duration_s: Annotated[float | None, msgspec.Meta(description="Null where one of them has no end.")]
    calls: int
    records: Records


class SourceComparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How what one source did in run b differs from what it did in run a."""

    source: str
    status_a: Annotated[SourceStatus | None, msgspec.Meta(description="Null where it is not in run a.")]
    status_b: Annotated[SourceStatus | None, msgspec.Meta(description="Null where it is not in run b.")]
    difference: Annotated[Difference | None, msgspec.Meta(description="Null where it is in one run only.")]
    drift_begun: Annotated[list[str], msgspec.Meta(description="Fields that drift in b and not in a.")]
    drift_over: Annotated[list[str], msgspec.Meta(description="Fields that drift in a and not in b.")]
    anomalies_begun: Annotated[list[str], msgspec.Meta(description="Kinds that are in b and not in a.")]
    anomalies_over: Annotated[list[str], msgspec.Meta(description="Kinds that are in a and not in b.")]


class Comparison(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Two runs side by side."""

    a: RunReport
    b: RunReport
    difference: Difference
    only_a: Annotated[list[str], msgspec.Meta(description="Sources that are in run a alone.")]
    only_b: Annotated[list[str], msgspec.Meta(description="Sources that are in run b alone.")]
    sources: list[SourceComparison]


def compare(a: RunReport, b: RunReport) -> Comparison:
    """Run b against run a, source by source."""
    in_a, in_b = ({one.source: one for one in run.sources} for run in (a, b))
    return Comparison(
        a=a,
        b=b,
        difference=Difference(
            duration_s=_less(b.duration_s, a.duration_s),
            calls=sum(one.calls for one in b.sources) - sum(one.calls for one in a.sources),
            records=b.records - a.records,
        ),
        only_a=sorted(in_a.keys() - in_b.keys()),
        only_b=sorted(in_b.keys() - in_a.keys()),
        sources=[_source(name, in_a.get(name), in_b.get(name)) for name in sorted(in_a.keys() | in_b.keys())],
    )


def _source(name: str, a: SourceReport | None, b: SourceReport | None) -> SourceComparison:
    drift_a, drift_b = ({found.field for found in one.drift} if one else set() for one in (a, b))
    odd_a, odd_b = ({str(found.kind) for found in one.anomalies} if one else set() for one in (a, b))
    return SourceComparison(
        source=name,
        status_a=a.status if a else None,
        status_b=b.status if b else None,
        difference=_difference(a, b) if a and b else None,
        drift_begun=sorted(drift_b - drift_a),
        drift_over=sorted(drift_a - drift_b),
        anomalies_begun=sorted(odd_b - odd_a),
        anomalies_over=sorted(odd_a - odd_b),
    )


def _difference(a: SourceReport, b: SourceReport) -> Difference:
    return Difference(
        duration_s=_less(b.duration_s, a.duration_s), calls=b.calls - a.calls, records=b.records - a.records
    )


def _less(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else round(b - a, 3)
