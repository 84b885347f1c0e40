"""Decides which pages of an upstream's list a run fetches, so that the month's calls last.

docs/call-budget.md explains the rules with a worked example.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from kasparro.model.batch import CrawledPage

# This share of the remaining calls is kept for retries, for runs outside the schedule, and for finding the
# end of a list.
RESERVE_PERCENT = 5
# One of so many pages of a run is among the first pages, which every run fetches.
FIRST_OF = 4
# A crawl is resumed if it stopped at most this long ago (or one interval, if that is shorter), and began at
# most LONGEST_CRAWL ago. Otherwise it starts again, because coins change pages meanwhile.
RESUME_WITHIN = timedelta(minutes=15)
LONGEST_CRAWL = timedelta(hours=1)
# How much the clocks of two hosts may differ. A time further in the future comes from a wrong clock.
SKEW = timedelta(minutes=5)

_SECOND = timedelta(seconds=1)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
# Far more than the pages of the longest list.
_ROUNDS = 2_000


class MonthlyCalls(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a calendar month (UTC): the limit, and how many remain."""

    limit: int
    remaining: int


class PagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run fetches: `pages`, in rising order, then up to `extra_pages` after the highest known page,
    as long as the list continues. Without pages, none is due before `next_at`.
    """

    pages: tuple[int, ...]
    extra_pages: int = 0
    pages_every_run: int
    """How many of the first pages each run fetches."""
    rotation_runs: int | None = None
    """Every n-th run fetches the other pages too, all together. So no coin is missed because it moved from a
    page not yet fetched to a page fetched earlier. None: they are fetched one by one as calls accrue."""
    resumed_crawl: datetime | None = None
    """When the interrupted crawl began that this run resumes."""
    next_at: datetime | None = None


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """What the next runs achieve. Both ages hold even if one run is late or fails."""

    covered_by: datetime
    """When every page will have been fetched once more."""
    max_age: timedelta
    """No page gets older than this until then."""
    promised_age: timedelta | None
    """No coin goes longer than this without being requested, even if one crawl misses it because it changed
    pages. None: pages are fetched one by one, so a coin may be missed any number of times."""


class PageQueue:
    """The pages that a crawl is still to fetch. It adapts if the list turns out longer or shorter."""

    def __init__(self, planned: PagePlan, known: Iterable[CrawledPage]) -> None:
        self._plan = planned
        self._waiting = deque(planned.pages)
        self._extra = planned.extra_pages
        pages = [*known]
        highest = max(pages, key=lambda page: page.number, default=None)
        self._top = highest.number if highest else 0
        self._ended = highest is not None and highest.is_last
        self._known_top, self._known_end = self._top, self._ended
        resumed = planned.resumed_crawl
        self._fetched_before = {
            page.number for page in pages if resumed is not None and page.crawl_started_at == resumed
        }
        self._lost: list[int] = []
        self._short: dict[int, int] = {}
        self.fetched: list[int] = []
        """The fetched pages, in the order of fetching."""
        self.empty: list[int] = []
        """Pages without any record that do not end the list: what they should hold is lost."""
        self.lost_previous = False
        """Whether the previous page was lost."""

    @property
    def planned_share(self) -> float:
        """The planned share of the list, as far as the list was known before."""
        extra = 0 if self._known_end else self._plan.extra_pages
        top = max(self._known_top, *self._plan.pages) + extra
        return (len(self._plan.pages) + extra) / top

    def next(self) -> int | None:
        """Take the next page; None at the end of the crawl."""
        return self._waiting.popleft() if self._waiting else None

    def mark_fetched(self, number: int, *, is_last: bool) -> None:
        """Record a fetched page; `is_last` says that the list ends with it."""
        self.fetched.append(number)
        self.lost_previous = False
        if is_last:
            self._end(number)
        else:
            self._ended = self._ended and number < self._top
            self._extend(number)

    def mark_short(self, number: int, missing: int) -> bool:
        """Record that a page has fewer records than fit on it; True if the list ends with it.

        It does where the list ended before. Elsewhere only an empty page after it proves that.
        """
        self._short[number] = missing
        return self._known_end and number == self._known_top

    def mark_empty(self, number: int) -> int | None:
        """Record a page without any record; the page with which the list ends, or None.

        Within the known list an empty page proves nothing until the next page is empty too.
        """
        self.lost_previous = False
        if number < self._known_top and number - 1 not in self.empty:
            self.empty.append(number)
            return None
        while number - 1 in self.empty:
            number -= 1
            self.empty.remove(number)
        self._end(number - 1)
        return number - 1

    def mark_lost(self, number: int) -> None:
        """Record a page that could not be fetched."""
        self._lost.append(number)
        self.lost_previous = True
        self._extend(number)

    def _end(self, number: int) -> None:
        """The list ends with this page."""
        self._waiting = deque(page for page in self._waiting if page < number)
        self._top, self._ended = number, True

    def _extend(self, number: int) -> None:
        """Plan one more page if the list goes beyond its known end."""
        if number < self._top:
            return
        self._top = number
        # Pages that the plan names come first.
        if self._extra and not self._waiting:
            self._waiting.append(number + 1)
            self._extra -= 1

    @property
    def remaining_pages(self) -> tuple[int, ...]:
        """The pages still to fetch, lost ones included; none at the end of the crawl."""
        return tuple(sorted([*self._lost, *self.empty, *self._waiting])) if self._waiting else ()

    @property
    def total(self) -> int | None:
        """How many pages the crawl has, if the end of the list is known."""
        return len(self.fetched) + len(self._waiting) if self._ended else None

    @property
    def has_whole_list(self) -> bool:
        """Whether this crawl has fetched every page of the list, and its end."""
        return self._ended and {*range(1, self._top + 1)} <= {*self.fetched, *self._fetched_before}

    @property
    def short_pages(self) -> dict[int, int]:
        """How many records are missing on pages that are not full, although the list goes on after them."""
        return {number: missing for number, missing in self._short.items() if number < self._top}

    def note(self) -> str:
        """Which pages were fetched, and why these, for people."""
        ends = f"of {self._top}" if self._ended else "of a list whose end is not known yet"
        note = f"page{'' if len(self.fetched) == 1 else 's'} {_ranges(self.fetched)} {ends}"
        if self._plan.resumed_crawl is not None:
            note += f", resuming the crawl of {self._plan.resumed_crawl:%Y-%m-%d %H:%M:%S} UTC"
        if self._plan.rotation_runs != 1:
            note += ", as the month's call budget allows"
        if self.short_pages:
            pages, missing = _ranges(self.short_pages), sum(self.short_pages.values())
            note += f"; {missing} missing on page{'' if len(self.short_pages) == 1 else 's'} {pages}"
        return note


def plan(
    pages: Sequence[CrawledPage],
    now: datetime,
    month: MonthlyCalls | None,
    interval: timedelta | None,
    *,
    max_pages: int,
) -> PagePlan:
    """The pages that a run at `now` fetches of a list whose known pages are `pages`.

    `month` None means no monthly limit: all pages are fetched. `interval` None means that the time of the
    next run is unknown: the run gets the calls that accrued since the last one. `max_pages` bounds a list
    without end.
    """
    interrupted = _interrupted(pages, now, interval)
    new = _new_crawl(pages, now, month, interval, max_pages)
    if interrupted is None or (month is not None and not month.remaining):
        return new
    rest, extra = interrupted.remaining_pages, new.extra_pages
    if month is not None:
        rest = rest[: month.remaining]
        extra = min(extra, month.remaining - len(rest))
    return msgspec.structs.replace(
        new, pages=rest, extra_pages=extra, resumed_crawl=interrupted.crawl_started_at, next_at=None
    )


def limit_pages(pages: Iterable[CrawledPage], max_pages: int) -> list[CrawledPage]:
    """The known pages of a list that ends at page `max_pages` at the latest.

    The database keeps the pages beyond it, in case more are fetched again later.
    """
    return [
        msgspec.structs.replace(
            page,
            remaining_pages=tuple(number for number in page.remaining_pages if number <= max_pages),
            is_last=page.is_last or page.number == max_pages,
        )
        for page in pages
        if page.number <= max_pages
    ]


def coverage(
    pages: Sequence[CrawledPage],
    next_run_at: datetime,
    month: MonthlyCalls | None,
    interval: timedelta | None,
    *,
    max_pages: int,
) -> Coverage | None:
    """How old pages may get, found by planning the next runs one after the other from `next_run_at`.

    None if the end of the list or the time of the runs is unknown.
    """
    known = {page.number: page for page in pages}
    if interval is None or not known or not known[max(known)].is_last:
        return None
    waiting: dict[int, datetime | None] = dict.fromkeys(range(1, max(known) + 1))
    waiting |= {number: page.fetched_at for number, page in known.items()}
    at, oldest, together = next_run_at, timedelta(), True
    for _ in range(_ROUNDS):
        planned = plan([*known.values()], at, month, interval, max_pages=max_pages)
        together = together and planned.rotation_runs is not None
        for number in planned.pages:
            if number in waiting and (fetched_at := waiting.pop(number)) is not None:
                oldest = max(oldest, at - fetched_at)
            known[number] = _fetched(number, at, is_last=number == max(known))
        if not waiting:
            promised = 2 * oldest + interval if together else None
            return Coverage(covered_by=at, max_age=oldest + interval, promised_age=promised)
        following = at + interval * max(-((at - (planned.next_at or at)) // interval), 1)
        if month is not None:
            spent = 0 if following >= month_of(at)[1] else month.limit - month.remaining + len(planned.pages)
            month = MonthlyCalls(limit=month.limit, remaining=max(month.limit - spent, 0))
        at = following
    return None


def month_of(now: datetime) -> tuple[datetime, datetime]:
    """The first moment of the calendar month (UTC), and of the next one."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def _interrupted(
    pages: Sequence[CrawledPage], now: datetime, interval: timedelta | None
) -> CrawledPage | None:
    """The last page of the newest crawl, if that crawl is unfinished and recent enough to resume."""
    started = [page for page in pages if page.crawl_started_at <= now]
    if not started:
        return None
    last = max(started, key=lambda page: (page.crawl_started_at, page.fetched_at, page.number))
    within = min(RESUME_WITHIN, interval or RESUME_WITHIN)
    recent = timedelta() <= now - last.fetched_at <= within and now - last.crawl_started_at <= LONGEST_CRAWL
    return last if last.remaining_pages and recent else None


def _new_crawl(
    pages: Sequence[CrawledPage],
    now: datetime,
    month: MonthlyCalls | None,
    interval: timedelta | None,
    max_pages: int,
) -> PagePlan:
    """The plan of a crawl that begins now."""
    known = {page.number: page for page in pages}
    top = max(known, default=0)
    ended = top > 0 and known[top].is_last
    if month is None:
        return PagePlan(
            pages=tuple(range(1, max(top, 1) + 1)),
            extra_pages=max_pages - max(top, 1),
            pages_every_run=top,
            rotation_runs=1,
        )
    reserve = month.remaining * RESERVE_PERCENT // 100
    spend = month.remaining - reserve
    runs = -(-(month_of(now)[1] - now) // interval) if interval else 0
    share = spend // runs if runs else 0
    together = interval is not None and share >= 2
    if not together:
        # The time of the next run is unknown, or there are more runs than calls.
        share = _accrued(pages, now, month, spend)
    if share < 1:
        return PagePlan(pages=(), pages_every_run=0, next_at=_next_call(pages, now, month, spend))
    every_run = min(share // FIRST_OF or share // 2, top)
    others = range(every_run + 1, top + 1)
    beyond = max_pages - top
    rotation_runs = None
    if not ended and beyond:
        allowed = min(max(share - every_run, reserve), beyond)
        chosen, extra = {top + 1}, allowed - 1
    elif interval is not None and together:
        calls = spend - every_run * runs
        rotation_runs = _rotation_runs(known, others, now, interval, calls=calls, runs=runs)
        if rotation_runs is None:
            chosen = _oldest(known, others, calls, now)
        else:
            chosen = {*others} if _is_due(known, others, now, interval, rotation_runs) else set()
        extra = min(spend - every_run - len(chosen), beyond) if len(chosen) == len(others) else 0
    else:
        chosen = _oldest(known, others, share - every_run, now)
        extra = min(share - every_run - len(chosen), beyond)
    return PagePlan(
        pages=tuple(sorted({*range(1, every_run + 1), *chosen})),
        extra_pages=extra,
        pages_every_run=every_run,
        rotation_runs=rotation_runs,
    )


def _rotation_runs(
    known: Mapping[int, CrawledPage],
    others: range,
    now: datetime,
    interval: timedelta,
    *,
    calls: int,
    runs: int,
) -> int | None:
    """The smallest n for which `calls` suffice if every n-th of the month's `runs` left, this one included,
    fetches all others. None if no n is enough."""
    age = _age(known, others, now)

    def suffices(every: int) -> bool:
        wait = max(-((age - every * interval + interval / 2) // interval), 0) if age is not None else 0
        return -(-max(runs - wait, 0) // every) * len(others) <= calls

    candidates = range(1, runs + (age // interval if age is not None else 0) + 3)
    found = bisect_left(candidates, True, key=suffices)
    return candidates[found] if found < len(candidates) else None


def _is_due(
    known: Mapping[int, CrawledPage], others: range, now: datetime, interval: timedelta, rotation_runs: int
) -> bool:
    """Whether this run fetches the other pages. A run may be early by half an interval."""
    age = _age(known, others, now)
    return age is None or age + interval / 2 >= rotation_runs * interval


def _age(known: Mapping[int, CrawledPage], numbers: range, now: datetime) -> timedelta | None:
    """How long ago the crawl began that fetched the oldest of these pages. None if a page was never fetched,
    or only in the future according to a wrong clock."""
    crawls = [known[number].crawl_started_at if number in known else None for number in numbers]
    started = [crawl for crawl in crawls if crawl is not None and crawl <= now + SKEW]
    return max(now - min(started), timedelta()) if started and len(started) == len(crawls) else None


def _accrued(pages: Sequence[CrawledPage], now: datetime, month: MonthlyCalls, spend: int) -> int:
    """The calls of a run outside the schedule: accrued since the last crawl, or saved by earlier runs."""
    since = _since_last_crawl(pages, now)
    accrued = 1 if since is None else spend * since // (month_of(now)[1] - now)
    return min(max(accrued, _saved(now, month)), spend)


def _saved(now: datetime, month: MonthlyCalls) -> int:
    """The remaining calls beyond what an even use needs until the month's end; negative if too few remain."""
    began, ends = month_of(now)
    return month.remaining + month.limit * (100 - RESERVE_PERCENT) * (ends - now) // (-100 * (ends - began))


def _next_call(pages: Sequence[CrawledPage], now: datetime, month: MonthlyCalls, spend: int) -> datetime:
    """When the next call will have accrued or been saved."""
    began, ends = month_of(now)
    accrued = (ends - now) / spend - (_since_last_crawl(pages, now) or timedelta()) if spend else ends - now
    saved = (ends - began) * (1 - _saved(now, month)) * 100 / (month.limit * (100 - RESERVE_PERCENT))
    return now + max(min(accrued, saved, ends - now), _SECOND)


def _oldest(known: Mapping[int, CrawledPage], numbers: range, count: int, now: datetime) -> set[int]:
    """The pages fetched longest ago. Pages never fetched come first, and those that a wrong clock dated."""

    def age(number: int) -> tuple[datetime, int]:
        page = known.get(number)
        right = page is not None and page.fetched_at <= now + SKEW
        return (page.fetched_at if page is not None and right else _LONG_AGO, number)

    return set(sorted(numbers, key=age)[:count])


def _since_last_crawl(pages: Iterable[CrawledPage], now: datetime) -> timedelta | None:
    """How long ago the newest crawl began. None if there is none, or only one that a wrong clock dated."""
    ages = [now - page.crawl_started_at for page in pages if page.crawl_started_at <= now + SKEW]
    return max(min(ages), timedelta()) if ages else None


def _fetched(number: int, at: datetime, *, is_last: bool) -> CrawledPage:
    return CrawledPage(
        number=number,
        crawl_started_at=at,
        remaining_pages=(),
        fetched_at=at,
        read_at=at,
        records=0,
        is_last=is_last,
        request_fingerprint="",
    )


def _ranges(numbers: Iterable[int]) -> str:
    """Consecutive numbers as ranges: 1 to 3, 41 to 50."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in ranges)
