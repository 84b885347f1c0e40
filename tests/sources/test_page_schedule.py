"""Which pages a pass fetches, as a month's calls are spent: planned, and lived through month by month."""

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kasparro.model.batch import CrawledPage
from kasparro.sources.page_schedule import Month, PageQueue, bounded, coverage, month_of, plan

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
MOST = 220
DEMO = Month(limit=10_000, remaining=10_000)


def fetched(
    number: int, at: datetime, *, last: bool = False, remaining_pages: tuple[int, ...] = ()
) -> CrawledPage:
    return CrawledPage(
        number=number,
        crawl_started_at=at,
        remaining_pages=remaining_pages,
        fetched_at=at,
        read_at=at,
        records=250,
        is_last=last,
        request_fingerprint="",
    )


def whole(count: int, at: datetime) -> list[CrawledPage]:
    """A list of so many pages, all fetched then."""
    return [fetched(number, at, last=number == count) for number in range(1, count + 1)]


class Life:
    """A list of pages upstream, and what its runs come to be: every call is counted, in its month."""

    def __init__(self, now: datetime, limit: int | None, count: int) -> None:
        self.now = now
        self.limit = limit
        self.count = count
        self.most = MOST
        self.pages: dict[int, CrawledPage] = {}
        self.calls: dict[tuple[int, int], int] = {}

    @property
    def month(self) -> Month | None:
        if self.limit is None:
            return None
        spent = self.calls.get((self.now.year, self.now.month), 0)
        return Month(limit=self.limit, remaining=self.limit - spent)

    def run(self, interval: timedelta | None, stop_after: int = 1_000) -> list[int]:
        """Walk as a source does, stopped after so many pages; gives what was fetched."""
        known = bounded(self.pages.values(), self.most)
        planned = plan(known, self.now, self.month, interval, most=self.most)
        course = PageQueue(planned, known)
        while len(course.fetched) < stop_after and (number := course.next()) is not None:
            last = number >= self.count
            course.take(number, last=last or number == self.most)
            self.pages[number] = msgspec.structs.replace(
                fetched(number, self.now, last=last, remaining_pages=course.remaining_pages),
                crawl_started_at=planned.resumes or self.now,
            )
            if last:
                self.pages = {n: page for n, page in self.pages.items() if n <= number}
        key = self.now.year, self.now.month
        self.calls[key] = self.calls.get(key, 0) + len(course.fetched)
        return course.fetched

    def promised(self, interval: timedelta) -> tuple[datetime, timedelta] | None:
        """Until when no page is older than what, as /stats would say."""
        known = bounded(self.pages.values(), self.most)
        found = coverage(known, self.now, self.month, interval, most=self.most)
        return None if found is None else (found.by, found.oldest)

    def ages(self) -> list[timedelta]:
        return [self.now - page.fetched_at for page in bounded(self.pages.values(), self.most)]


def test_without_a_limit_every_run_walks_the_whole_list_and_what_may_follow_it() -> None:
    told = plan(whole(72, NOON - HOUR), NOON, None, HOUR, most=MOST)

    assert told.pages == tuple(range(1, 73))
    assert told.beyond == MOST - 72


def test_the_demo_plan_refreshes_the_first_pages_each_hour_and_with_them_the_others_every_eighth() -> None:
    life = Life(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    runs = [life.run(HOUR)]
    for _ in range(16):
        life.now += HOUR
        runs.append(life.run(HOUR))

    assert runs[0] == runs[8] == runs[16] == list(range(1, 73))
    assert all(run == [1, 2, 3] for number, run in enumerate(runs) if number % 8)


def test_a_new_list_is_walked_to_its_end_by_the_reserve() -> None:
    told = plan([], datetime(2026, 6, 1, tzinfo=UTC), DEMO, HOUR, most=MOST)

    assert told.pages == (1,)
    assert told.beyond >= 72


def test_a_run_that_nobody_planned_refreshes_the_first_pages_and_puts_off_nothing() -> None:
    life = Life(NOON, 10_000, 200)
    whole_at = []
    for hour in range(30):
        if len(life.run(HOUR)) == 200:
            whole_at.append(hour)
        life.now += HOUR / 4
        assert life.run(HOUR) == list(range(1, 7))
        life.now += HOUR * 3 / 4

    assert whole_at == [0, 11, 22]


def test_what_is_overdue_is_fetched_by_the_next_run() -> None:
    life = Life(NOON, 10_000, 200)
    life.run(HOUR)
    life.now += 3 * HOUR
    assert len(life.run(HOUR)) < 200
    life.now += 100 * HOUR

    assert len(life.run(HOUR)) == 200


def test_the_last_hour_of_a_month_spends_no_more_than_is_left() -> None:
    now = datetime(2026, 6, 30, 23, 30, tzinfo=UTC)
    told = plan(whole(72, now - HOUR), now, Month(limit=10_000, remaining=20), HOUR, most=MOST)

    assert 0 < len(told.pages) <= 20


def test_fewer_calls_than_runs_are_spread_and_the_time_of_the_next_is_told() -> None:
    life = Life(NOON, 10_000, 72)
    life.calls[2026, 6] = 10_000 - 400
    life.pages = {page.number: page for page in whole(72, NOON - MINUTE)}
    counts = []
    for _ in range(24):
        told = plan([*life.pages.values()], life.now, life.month, MINUTE, most=MOST)
        if not told.pages:
            assert told.next_at is not None
            life.now = told.next_at
            counts.append(0)
        counts.append(len(life.run(MINUTE)))
        life.now += MINUTE

    assert set(counts) == {0, 1}
    assert life.now - NOON > 6 * HOUR


def test_with_no_interval_a_run_has_what_was_saved_and_then_what_comes_up() -> None:
    life = Life(NOON, 10_000, 72)
    manual_edits = [len(life.run(None)) for _ in range(3)]
    hourly = []
    for _ in range(300):
        life.now += HOUR
        hourly.append(len(life.run(None)))
    minutely = []
    for _ in range(300):
        life.now += MINUTE
        minutely.append(len(life.run(None)))

    assert manual_edits == [72, 72, 72]
    assert all(hourly)
    assert sum(life.calls.values()) < 10_000
    assert 0 in minutely


def test_a_walk_that_died_goes_on_with_the_first_page_it_had_not_committed() -> None:
    for limit in (None, 10_000):
        life = Life(NOON, limit, 72)
        life.run(HOUR, stop_after=39)
        life.now += 10 * MINUTE
        assert life.run(HOUR) == list(range(40, 73))
        life.now += 10 * MINUTE
        assert life.run(HOUR)[0] == 1


def test_a_walk_by_plan_that_died_goes_on_with_the_rest_of_its_plan() -> None:
    life = Life(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    life.run(HOUR)
    life.now += 8 * HOUR
    died = life.run(HOUR, stop_after=5)
    life.now += MINUTE
    went_on = life.run(HOUR)
    life.now += HOUR

    assert [*died, *went_on] == list(range(1, 73))
    assert life.run(HOUR) == [1, 2, 3]


def test_a_walk_that_stood_still_too_long_starts_over() -> None:
    for interval, later in ((HOUR, 16 * MINUTE), (None, 16 * MINUTE), (5 * MINUTE, 6 * MINUTE)):
        life = Life(NOON, None, 72)
        life.run(interval, stop_after=39)
        life.now += later
        assert life.run(interval)[0] == 1


def test_a_walk_that_dies_again_and_again_is_not_drawn_out_for_hours() -> None:
    life = Life(NOON, None, 200)
    starts = []
    for _ in range(12):
        starts.append(life.run(HOUR, stop_after=5)[0])
        life.now += 10 * MINUTE

    assert starts[:3] == [1, 6, 11]
    assert starts.count(1) == 2


def test_a_clock_that_was_set_back_neither_resumes_the_future_nor_starves_a_page() -> None:
    life = Life(NOON + timedelta(days=400), 10_000, 72)
    life.run(HOUR, stop_after=40)
    life.pages |= {n: fetched(n, life.now, last=n == 72) for n in range(41, 73)}
    life.now = NOON
    begun = life.run(HOUR)
    for _ in range(12):
        life.now += HOUR
        life.run(HOUR)

    assert begun[0] == 1
    assert all(timedelta() <= age <= 12 * HOUR for age in life.ages())


def test_the_end_is_found_again_when_the_list_grows_or_shrinks() -> None:
    life = Life(NOON, 10_000, 72)
    life.run(HOUR)
    for count in (90, 40, 130):
        life.count = count
        for _ in range(16):
            life.now += HOUR
            life.run(HOUR)
        assert sorted(life.pages) == list(range(1, count + 1))


def test_a_list_that_never_ends_is_not_followed_beyond_its_bound() -> None:
    life = Life(NOON, 10_000, 10_000)
    for _ in range(30):
        life.run(HOUR)
        life.now += HOUR

    assert max(life.pages) == MOST


limits = st.one_of(st.integers(1, 60), st.integers(60, 30_000))
moments = st.datetimes(
    datetime(2024, 1, 1),  # noqa: DTZ001 - made aware
    datetime(2027, 1, 1),  # noqa: DTZ001 - made aware
    timezones=st.just(UTC),
)
intervals = st.one_of(st.none(), st.integers(1, 30 * 86_400).map(lambda seconds: timedelta(seconds=seconds)))
histories = st.lists(
    st.tuples(st.integers(1, 80), st.integers(-400 * 86_400, 90 * 86_400), st.booleans()),
    max_size=80,
    unique_by=lambda page: page[0],
)


@given(moments, limits, st.floats(0, 1), intervals, histories)
def test_a_plan_never_goes_beyond_what_remains(
    now: datetime,
    limit: int,
    left: float,
    interval: timedelta | None,
    history: list[tuple[int, int, bool]],
) -> None:
    month = Month(limit=limit, remaining=int(limit * left))
    ago = [(number, now - timedelta(seconds=seconds), partly) for number, seconds, partly in history]
    top = max((number for number, *_ in ago), default=0)
    pages = [
        fetched(number, at, last=number == top, remaining_pages=(number + 1, number + 2) if partly else ())
        for number, at, partly in ago
    ]

    told = plan(pages, now, month, interval, most=MOST)

    assert len(told.pages) + told.beyond <= month.remaining
    assert list(told.pages) == sorted(set(told.pages))
    assert told.beyond >= 0
    assert all(1 <= number <= MOST for number in told.pages)
    assert bool(told.pages) == (told.next_at is None)
    assert told.next_at is None or told.next_at > now


@settings(max_examples=40, deadline=None)
@given(
    moments,
    st.integers(1, 15_000),
    st.integers(1, 100),
    st.integers(600, 12 * 3_600).map(lambda seconds: timedelta(seconds=seconds)),
    st.lists(st.integers(1, 400), max_size=20),
)
@example(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72, HOUR, [])
@example(datetime(2026, 1, 31, 23, 59, tzinfo=UTC), 10_000, 72, HOUR, [3, 4])
def test_every_page_is_fetched_within_what_was_promised_and_no_month_is_overdrawn(
    now: datetime, limit: int, count: int, interval: timedelta, unplanned: list[int]
) -> None:
    life = Life(now, limit, count)
    promised: tuple[datetime, timedelta] | None = None
    for number in range(300):
        if promised is not None and life.now <= promised[0]:
            assert max(life.ages()) <= promised[1]
        life.run(interval)
        if number in unplanned:
            life.now += interval / 4
            life.run(interval)
            life.now -= interval / 4
            # What nobody planned may cost a later promise, so a new one is asked for.
            promised = None
        life.now += interval
        if promised is None or life.now > promised[0]:
            coming = coverage([*life.pages.values()], life.now, life.month, interval, most=MOST)
            promised = None if coming is None else (coming.by, coming.oldest)

    assert all(calls <= limit for calls in life.calls.values())


def test_a_page_beyond_the_known_ones_is_fetched_once() -> None:
    for known in range(1, 6):
        life = Life(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72)
        life.run(HOUR, stop_after=known)
        life.now += HOUR
        found = life.run(HOUR)
        assert found == sorted(set(found))


@settings(max_examples=40, deadline=None)
@given(
    moments,
    st.integers(50, 15_000),
    st.integers(1, 100),
    st.integers(600, 12 * 3_600).map(lambda seconds: timedelta(seconds=seconds)),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 120)), min_size=1, max_size=6),
    st.integers(1, 200),
)
@example(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72, HOUR, [(20, 4), (20, 72), (20, 2)], 1)
def test_no_page_beyond_the_bound_is_fetched_however_it_changes(
    now: datetime,
    limit: int,
    count: int,
    interval: timedelta,
    bounds: list[tuple[int, int]],
    stop_after: int,
) -> None:
    life = Life(now, limit, count)
    for runs, most in bounds:
        life.most = most
        promised = None
        # The first run under a new bound may be killed.
        stops = [stop_after, *[1_000] * runs]
        for stop in stops:
            if promised is not None and life.now <= promised[0]:
                assert max(life.ages()) <= promised[1]
            found = life.run(interval, stop_after=stop)
            life.now += interval
            assert all(number <= most for number in found)
            assert len(found) == len(set(found))
            if promised is None or life.now > promised[0]:
                promised = life.promised(interval)

    assert all(calls <= limit for calls in life.calls.values())


def test_a_bound_within_the_calls_of_a_run_is_fetched_whole_by_every_run() -> None:
    life = Life(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    life.run(HOUR)
    life.most = 4
    for _ in range(30):
        life.now += HOUR
        assert life.run(HOUR) == [1, 2, 3, 4]
    life.most = 72
    grown = []
    for _ in range(10):
        life.now += HOUR
        grown.append(life.run(HOUR))

    assert list(range(1, 73)) in grown
    assert life.promised(HOUR) is not None


def test_the_promise_for_the_demo_plan_is_some_hours_and_never_looks_back() -> None:
    life = Life(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72)
    life.run(HOUR)
    for _ in range(720):
        life.now += HOUR
        promised = coverage([*life.pages.values()], life.now, life.month, HOUR, most=MOST)
        assert promised is not None
        assert max(life.ages()) <= promised.oldest <= 11 * HOUR
        assert life.now <= promised.by <= life.now + 10 * HOUR
        life.run(HOUR)

    assert all(9_000 < calls <= 10_000 for month, calls in life.calls.items() if month == (2026, 6))


def test_nothing_is_promised_where_nobody_knows_when_the_next_run_comes_or_where_the_list_ends() -> None:
    pages = whole(72, NOON)

    assert coverage(pages, NOON + HOUR, DEMO, None, most=MOST) is None
    assert coverage(pages[:-1], NOON + HOUR, DEMO, HOUR, most=MOST) is None
    assert coverage([], NOON + HOUR, DEMO, HOUR, most=MOST) is None


def test_a_spent_month_promises_by_the_next_one() -> None:
    spent = Month(limit=10_000, remaining=0)
    promised = coverage(whole(72, NOON), NOON + HOUR, spent, HOUR, most=MOST)

    assert promised is not None
    assert promised.by >= month_of(NOON)[1]
    assert promised.oldest >= month_of(NOON)[1] - NOON


@given(st.integers(0, 150), st.integers(1, 220), st.integers(0, 40), st.sets(st.integers(1, 220)))
def test_a_course_ends_and_tells_what_is_still_ahead(
    known: int, count: int, beyond: int, lost: set[int]
) -> None:
    pages = whole(known, NOON)
    course = PageQueue(plan(pages, NOON + HOUR, None, HOUR, most=max(known, 1) + beyond), pages)
    asked: list[int] = []
    while (number := course.next()) is not None:
        asked.append(number)
        if number in lost:
            course.lose(number)
        else:
            course.take(number, last=number >= count)
        assert set(course.remaining_pages).isdisjoint(course.fetched)

    assert asked == sorted(set(asked))
    assert course.remaining_pages == ()
    assert course.note().startswith("page")
