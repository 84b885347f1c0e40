"""Which pages of a long list a pass fetches, so that a month's calls last and no page grows too old."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from kasparro.model.batch import CrawledPage

# Of what remains of a month's calls, this part is kept for retries, for runs that nobody planned, and for
# finding the end of a list that is not known yet.
RESERVE_PERCENT = 5
# Of the pages that a run may fetch, every fourth is one of the first, which every run refreshes.
FIRST_OF = 4
# A walk that stood still for longer starts over, or one that stood still for an interval; so does one that
# began longer ago than that. Pages shift, and a walk that joins what lies hours apart is none.
RESUME_WITHIN = timedelta(minutes=15)
LONGEST_WALK = timedelta(hours=1)
# How much the clocks of two hosts may differ; what lies further in the future was told by a wrong clock.
SKEW = timedelta(minutes=5)

_SECOND = timedelta(seconds=1)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
# Far more rounds than the longest list has pages.
_ROUNDS = 2_000


class Month(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a calendar month (UTC): how many there are, and how many are left of them."""

    limit: int
    remaining: int


class PagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass fetches: these pages, rising, and up to `beyond` that follow the highest known one while
    the list goes on. No page: none is due before `next_at`.
    """

    pages: tuple[int, ...]
    beyond: int = 0
    every_run: int
    """How many of the first pages each run fetches."""
    turn: int | None = None
    """Every run of this number fetches the others too, all together, so that no coin moves from a page that
    is still to come to one that was fetched before. None: pages are fetched one by one as calls come up."""
    resumes: datetime | None = None
    """When the unfinished walk began that this pass goes on with."""
    next_at: datetime | None = None


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """What the coming runs come to: `by` when each page will have been fetched once more, and how old none
    of them gets until then. Both ages hold though one run comes late or fails.
    """

    by: datetime
    oldest: timedelta
    unseen: timedelta | None
    """How long no coin goes unseen, even one that was missed once, for it changed pages within a walk; None
    where pages are fetched one by one, and a coin may be missed again and again."""


class PageQueue:
    """A walk under way: which page is next, and what becomes of the plan as the list turns out longer,
    shorter or broken.
    """

    def __init__(self, planned: PagePlan, known: Iterable[CrawledPage]) -> None:
        self._plan = planned
        self._coming = deque(planned.pages)
        self._beyond = planned.beyond
        newest = max(known, key=lambda page: page.number, default=None)
        self._top = newest.number if newest else 0
        self._ended = newest is not None and newest.is_last
        self._known_top, self._known_end = self._top, self._ended
        self._lost: list[int] = []
        self.fetched: list[int] = []
        """The pages that were fetched, in that order."""
        self.lost_last = False
        """Whether the page before was lost."""

    @property
    def planned(self) -> float:
        """The share of the list that the plan set out for, as far as the list was known."""
        beyond = 0 if self._known_end else self._plan.beyond
        highest = max(self._known_top, *self._plan.pages) + beyond
        return (len(self._plan.pages) + beyond) / highest

    def next(self) -> int | None:
        """The page to fetch now; None at the walk's end."""
        return self._coming.popleft() if self._coming else None

    def take(self, number: int, *, last: bool) -> None:
        """Count a page as fetched; `last` says that the list ends with it."""
        self.fetched.append(number)
        self.lost_last = False
        if last:
            self._coming = deque(ahead for ahead in self._coming if ahead < number)
            self._top, self._ended = number, True
        else:
            self._ended = self._ended and number < self._top
            self._go_on(number)

    def lose(self, number: int) -> None:
        """Count a page as lost."""
        self._lost.append(number)
        self.lost_last = True
        self._go_on(number)

    def _go_on(self, number: int) -> None:
        if number < self._top:
            return
        self._top = number
        # What the plan has beyond the known end comes first.
        if self._beyond and not self._coming:
            self._coming.append(number + 1)
            self._beyond -= 1

    @property
    def remaining_pages(self) -> tuple[int, ...]:
        """What is still to fetch, with what was lost; nothing at the walk's end."""
        return tuple(sorted([*self._lost, *self._coming])) if self._coming else ()

    @property
    def total(self) -> int | None:
        """How many pages the walk has, as far as it is known."""
        return len(self.fetched) + len(self._coming) if self._ended else None

    def note(self) -> str:
        """Which pages were fetched, and why those, in words."""
        ends = f"of {self._top}" if self._ended else "of a list whose end is still to be found"
        note = f"page{'' if len(self.fetched) == 1 else 's'} {_ranges(self.fetched)} {ends}"
        if self._plan.resumes is not None:
            note += f", going on with the walk that began at {self._plan.resumes:%Y-%m-%d %H:%M:%S} UTC"
        if self._plan.turn != 1:
            note += ", as planned for the month's calls to last"
        return note


def plan(
    pages: Sequence[CrawledPage], now: datetime, month: Month | None, interval: timedelta | None, *, most: int
) -> PagePlan:
    """The pages that a pass at `now` fetches of a list of which `pages` are known.

    `month` is None where nothing limits the calls: then it is all of them. `interval` is the time between
    runs, None where nobody knows when the next comes: a run then has its share for the time since the last.
    `most` bounds the pages of a list that never ends.
    """
    left_over = _unfinished(pages, now, interval)
    fresh = _fresh(pages, now, month, interval, most)
    if left_over is None or (month is not None and not month.remaining):
        return fresh
    ahead = left_over.remaining_pages if month is None else left_over.remaining_pages[: month.remaining]
    spare = fresh.beyond if month is None else min(fresh.beyond, month.remaining - len(ahead))
    return msgspec.structs.replace(
        fresh, pages=ahead, beyond=spare, resumes=left_over.crawl_started_at, next_at=None
    )


def bounded(pages: Iterable[CrawledPage], most: int) -> list[CrawledPage]:
    """The known pages of a list of which the first `most` pages are fetched: where it goes on, it ends there.

    Pages of a time when more were fetched are none of it. They stay known for a time when more are again.
    """
    return [
        msgspec.structs.replace(
            page,
            remaining_pages=tuple(ahead for ahead in page.remaining_pages if ahead <= most),
            is_last=page.is_last or page.number == most,
        )
        for page in pages
        if page.number <= most
    ]


def coverage(
    pages: Sequence[CrawledPage],
    next_run_at: datetime,
    month: Month | None,
    interval: timedelta | None,
    *,
    most: int,
) -> Coverage | None:
    """How old pages may get, found by planning the coming runs one after another, the first of them at
    `next_run_at`; None where the end of the list or the time of runs is not known.
    """
    known = {page.number: page for page in pages}
    if interval is None or not known or not known[max(known)].is_last:
        return None
    waiting: dict[int, datetime | None] = dict.fromkeys(range(1, max(known) + 1))
    waiting |= {number: page.fetched_at for number, page in known.items()}
    at, oldest, together = next_run_at, timedelta(), True
    for _ in range(_ROUNDS):
        coming = plan([*known.values()], at, month, interval, most=most)
        together = together and coming.turn is not None
        for number in coming.pages:
            if number in waiting and (since := waiting.pop(number)) is not None:
                oldest = max(oldest, at - since)
            known[number] = _fetched(number, at, last=number == max(known))
        if not waiting:
            unseen = 2 * oldest + interval if together else None
            return Coverage(by=at, oldest=oldest + interval, unseen=unseen)
        following = at + interval * max(-((at - (coming.next_at or at)) // interval), 1)
        if month is not None:
            spent = 0 if following >= month_of(at)[1] else month.limit - month.remaining + len(coming.pages)
            month = Month(limit=month.limit, remaining=max(month.limit - spent, 0))
        at = following
    return None


def month_of(now: datetime) -> tuple[datetime, datetime]:
    """When the calendar month (UTC) began and when it ends, and with it the count of calls."""
    first = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first, (first + timedelta(days=32)).replace(day=1)


def _unfinished(
    pages: Sequence[CrawledPage], now: datetime, interval: timedelta | None
) -> CrawledPage | None:
    # Where the newest walk stood, if it had pages ahead and its time is not over.
    begun = [page for page in pages if page.crawl_started_at <= now]
    if not begun:
        return None
    stood = max(begun, key=lambda page: (page.crawl_started_at, page.fetched_at, page.number))
    within = min(RESUME_WITHIN, interval or RESUME_WITHIN)
    fresh = timedelta() <= now - stood.fetched_at <= within and now - stood.crawl_started_at <= LONGEST_WALK
    return stood if stood.remaining_pages and fresh else None


def _fresh(
    pages: Sequence[CrawledPage], now: datetime, month: Month | None, interval: timedelta | None, most: int
) -> PagePlan:
    # The plan of a walk that begins now.
    known = {page.number: page for page in pages}
    top = max(known, default=0)
    ended = top > 0 and known[top].is_last
    if month is None:
        return PagePlan(
            pages=tuple(range(1, max(top, 1) + 1)), beyond=most - max(top, 1), every_run=top, turn=1
        )
    reserve = month.remaining * RESERVE_PERCENT // 100
    spend = month.remaining - reserve
    runs = -(-(month_of(now)[1] - now) // interval) if interval else 0
    share = spend // runs if runs else 0
    together = interval is not None and share >= 2
    if not together:
        # Nobody knows when the next run comes, or there are more runs than calls: this one has what has come
        # up since the last, and what was saved before.
        share = _come_up(pages, now, month, spend)
    if share < 1:
        return PagePlan(pages=(), every_run=0, next_at=_next_share(pages, now, month, spend))
    every_run = min(share // FIRST_OF or share // 2, top)
    others = range(every_run + 1, top + 1)
    spare = most - top
    turn = None
    if not ended and spare:
        allowed = min(max(share - every_run, reserve), spare)
        chosen, beyond = {top + 1}, allowed - 1
    elif interval is not None and together:
        spread = spend - every_run * runs
        turn = _turn(known, others, now, interval, calls=spread, runs=runs)
        if turn is None:
            chosen = _oldest(known, others, spread, now)
        else:
            chosen = {*others} if _is_due(known, others, now, interval, turn) else set()
        beyond = min(spend - every_run - len(chosen), spare) if len(chosen) == len(others) else 0
    else:
        chosen = _oldest(known, others, share - every_run, now)
        beyond = min(share - every_run - len(chosen), spare)
    return PagePlan(
        pages=tuple(sorted({*range(1, every_run + 1), *chosen})),
        beyond=beyond,
        every_run=every_run,
        turn=turn,
    )


def _turn(
    known: dict[int, CrawledPage], others: range, now: datetime, interval: timedelta, *, calls: int, runs: int
) -> int | None:
    # The fewest runs from one that fetches all the others to the next, for which so many calls last to the
    # month's end, in which there are so many runs with this one; None where they do for none.
    age = _age(known, others, now)

    def lasts(turn: int) -> bool:
        wait = max(-((age - turn * interval + interval / 2) // interval), 0) if age is not None else 0
        return -(-max(runs - wait, 0) // turn) * len(others) <= calls

    turns = range(1, runs + (age // interval if age is not None else 0) + 3)
    found = bisect_left(turns, True, key=lasts)
    return turns[found] if found < len(turns) else None


def _is_due(
    known: dict[int, CrawledPage], others: range, now: datetime, interval: timedelta, turn: int
) -> bool:
    # A run may be early by half an interval.
    age = _age(known, others, now)
    return age is None or age + interval / 2 >= turn * interval


def _age(known: dict[int, CrawledPage], numbers: range, now: datetime) -> timedelta | None:
    # How long ago the walk began that fetched what is oldest of these; None for never, or where only a wrong
    # clock knows.
    walks = [known[number].crawl_started_at if number in known else None for number in numbers]
    begun = [walk for walk in walks if walk is not None and walk <= now + SKEW]
    return max(now - min(begun), timedelta()) if begun and len(begun) == len(walks) else None


def _come_up(pages: Sequence[CrawledPage], now: datetime, month: Month, spend: int) -> int:
    # The calls of a run that nobody planned.
    since = _since(pages, now)
    earned = 1 if since is None else spend * since // (month_of(now)[1] - now)
    return min(max(earned, _saved(now, month)), spend)


def _saved(now: datetime, month: Month) -> int:
    # What the month has left beyond what an even use of it needs until its end; below 0 where that is too
    # little.
    began, ends = month_of(now)
    return month.remaining + month.limit * (100 - RESERVE_PERCENT) * (ends - now) // (-100 * (ends - began))


def _next_share(pages: Sequence[CrawledPage], now: datetime, month: Month, spend: int) -> datetime:
    # When this share is a call again: earned since the last walk, or saved.
    began, ends = month_of(now)
    earned = (ends - now) / spend - (_since(pages, now) or timedelta()) if spend else ends - now
    saved = (ends - began) * (1 - _saved(now, month)) * 100 / (month.limit * (100 - RESERVE_PERCENT))
    return now + max(min(earned, saved, ends - now), _SECOND)


def _oldest(known: dict[int, CrawledPage], numbers: range, count: int, now: datetime) -> set[int]:
    # What was never fetched comes first, as does what a wrong clock fetched in the future.
    def age(number: int) -> tuple[datetime, int]:
        page = known.get(number)
        right = page is not None and page.fetched_at <= now + SKEW
        return (page.fetched_at if page is not None and right else _LONG_AGO, number)

    return set(sorted(numbers, key=age)[:count])


def _since(pages: Iterable[CrawledPage], now: datetime) -> timedelta | None:
    # How long ago the newest walk over these pages began; None for none, or where only a wrong clock knows.
    begun = [now - page.crawl_started_at for page in pages if page.crawl_started_at <= now + SKEW]
    return max(min(begun), timedelta()) if begun else None


def _fetched(number: int, at: datetime, *, last: bool) -> CrawledPage:
    return CrawledPage(
        number=number,
        crawl_started_at=at,
        remaining_pages=(),
        fetched_at=at,
        read_at=at,
        records=0,
        is_last=last,
        request_fingerprint="",
    )


def _ranges(numbers: Iterable[int]) -> str:
    # What follows on each other as a range: 1 to 3, 41 to 50.
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first} to {last}" for first, last in found)
