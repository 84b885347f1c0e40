"""The call budget as /stats shows it: the calls left this month, and the schedule of the pages."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from kasparro.model.batch import CrawledPage
from kasparro.sources import page_schedule
from kasparro.sources.page_schedule import MonthlyCalls


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The upstream calls of this calendar month (UTC). If the source's list has pages, also the schedule."""

    month: Annotated[str, msgspec.Meta(examples=["2025-06"])]
    calls: int
    limit: Annotated[int | None, msgspec.Meta(description="Null: calls are not limited.")]
    remaining: int | None
    pages: Annotated[
        int | None,
        msgspec.Meta(description="Number of pages in the source's list. Null: its end is not known yet."),
    ] = None
    pages_every_run: Annotated[
        int | None, msgspec.Meta(description="How many of the first pages every run fetches.")
    ] = None
    pages_in_rotation: Annotated[
        int | None, msgspec.Meta(description="How many of the other pages are fetched in rotation.")
    ] = None
    rotation_runs: Annotated[
        int | None,
        msgspec.Meta(
            description="Every n-th run fetches all pages in rotation together; this is n. Null: there are "
            "too few calls for that, or the interval is off. The pages are then fetched one by one, as calls "
            "become available."
        ),
    ] = None
    covered_by: Annotated[
        datetime | None,
        msgspec.Meta(
            description="When the planned runs will have fetched every page once more. Null: the interval "
            "is off, or the end of the list is not known."
        ),
    ] = None
    age_s: Annotated[
        float | None, msgspec.Meta(description="Seconds since the fetch of the oldest page.")
    ] = None
    promised_age_s: Annotated[
        float | None,
        msgspec.Meta(
            description="The longest time in seconds between two requests for the same coin. It includes "
            "one failed run, and one crawl that misses the coin because it moved to another page. Null: no "
            "time is promised, because the pages are fetched one by one."
        ),
    ] = None


def budget(
    calls: int,
    limit: int | None,
    pages: Sequence[CrawledPage],
    *,
    now: datetime,
    interval: timedelta | None,
    next_run_at: datetime | None,
    max_pages: int,
) -> Budget:
    """Return the month's calls at `now` and the schedule of the next runs.

    `pages` are the known pages of the source's list. Runs fetch at most the first `max_pages` of them. If
    `next_run_at` is None, the next run is expected one interval after the last crawl.
    """
    month_only = Budget(
        month=f"{now:%Y-%m}",
        calls=calls,
        limit=limit,
        remaining=None if limit is None else max(limit - calls, 0),
    )
    pages = page_schedule.limit_pages(pages, max_pages)
    if not pages or not pages[-1].is_last:
        return month_only
    last_crawl = max(page.crawl_started_at for page in pages)
    next_run = max(next_run_at or last_crawl + (interval or timedelta()), now)
    month = None
    if limit is not None:
        in_next_month = next_run >= page_schedule.month_of(now)[1]
        month = MonthlyCalls(limit=limit, remaining=limit if in_next_month else max(limit - calls, 0))
    plan = page_schedule.plan(pages, next_run, month, interval, max_pages=max_pages)
    coverage = page_schedule.coverage(pages, next_run, month, interval, max_pages=max_pages)
    promised = coverage.promised_age if coverage else None
    oldest_s = (now - min(page.fetched_at for page in pages)).total_seconds()
    return msgspec.structs.replace(
        month_only,
        pages=pages[-1].number,
        pages_every_run=plan.pages_every_run,
        pages_in_rotation=pages[-1].number - plan.pages_every_run,
        rotation_runs=plan.rotation_runs,
        covered_by=coverage.covered_by if coverage else None,
        age_s=max(round(oldest_s, 3), 0.0),
        promised_age_s=round(promised.total_seconds(), 3) if promised else None,
    )
