"""What a month's calls come to: how many are left of them, and how fresh they keep a list of pages."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated

import msgspec

from kasparro.model.batch import CrawledPage
from kasparro.sources import page_schedule
from kasparro.sources.page_schedule import Month


class Budget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls upstream in this calendar month (UTC), and what they come to where a source's list has pages."""

    month: Annotated[str, msgspec.Meta(examples=["2025-06"])]
    calls: int
    limit: Annotated[int | None, msgspec.Meta(description="Null: nothing limits them.")]
    remaining: int | None
    pages: Annotated[
        int | None,
        msgspec.Meta(
            description="Pages of the source's list that are fetched; null while its end is not known."
        ),
    ] = None
    pages_every_run: Annotated[
        int | None, msgspec.Meta(description="Of these, the first so many are fetched by every run.")
    ] = None
    pages_in_rotation: Annotated[int | None, msgspec.Meta(description="The others, fetched in rotation.")] = (
        None
    )
    rotation_runs: Annotated[
        int | None,
        msgspec.Meta(
            description="Every run of this number fetches those, all together. Null: calls are too few for "
            "that, or the interval is off, and they are fetched one by one as calls come up."
        ),
    ] = None
    covered_by: Annotated[
        datetime | None,
        msgspec.Meta(
            description="When the planned runs will have fetched every page anew. Null: the interval is off, "
            "or the list's end is not known."
        ),
    ] = None
    age_s: Annotated[
        float | None,
        msgspec.Meta(description="Seconds since that page was fetched that was fetched longest ago."),
    ] = None
    promised_age_s: Annotated[
        float | None,
        msgspec.Meta(
            description="No coin goes longer than this without being asked for, though one run fails, and "
            "though it is missed once, for it changed pages within a walk. Null: none is promised where "
            "pages are fetched one by one."
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
    most: int,
) -> Budget:
    """The month's calls at `now`, and how the coming runs use them; `next_run_at` is None where it is not
    known, and is then an interval after the last walk. `most` bounds the pages that are fetched.
    """
    told = Budget(
        month=f"{now:%Y-%m}",
        calls=calls,
        limit=limit,
        remaining=None if limit is None else max(limit - calls, 0),
    )
    pages = page_schedule.bounded(pages, most)
    if not pages or not pages[-1].is_last:
        return told
    last = max(page.crawl_started_at for page in pages)
    coming = max(next_run_at or last + (interval or timedelta()), now)
    month = None
    if limit is not None:
        turned = coming >= page_schedule.month_of(now)[1]
        month = Month(limit=limit, remaining=limit if turned else max(limit - calls, 0))
    plan = page_schedule.plan(pages, coming, month, interval, most=most)
    covered = page_schedule.coverage(pages, coming, month, interval, most=most)
    oldest = (now - min(page.fetched_at for page in pages)).total_seconds()
    return msgspec.structs.replace(
        told,
        pages=pages[-1].number,
        pages_every_run=plan.every_run,
        pages_in_rotation=pages[-1].number - plan.every_run,
        rotation_runs=plan.turn,
        covered_by=covered.by if covered else None,
        age_s=max(round(oldest, 3), 0.0),
        promised_age_s=round(covered.unseen.total_seconds(), 3) if covered and covered.unseen else None,
    )
