"""The page schedule: single plans, and months of simulated runs."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kasparro.model.batch import CrawledPage
from kasparro.sources.page_schedule import MonthlyCalls, PageQueue, coverage, limit_pages, month_of, plan

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
MAX_PAGES = 220
DEMO = MonthlyCalls(limit=10_000, remaining=10_000)


def fetched(
    number: int, at: datetime, *, is_last: bool = False, remaining: tuple[int, ...] = ()
) -> CrawledPage:
    return CrawledPage(
        number=number,
        crawl_started_at=at,
        remaining_pages=remaining,
        fetched_at=at,
        read_at=at,
        records=250,
        is_last=is_last,
        request_fingerprint="",
    )


def all_fetched(count: int, at: datetime) -> list[CrawledPage]:
    """A list of `count` pages, all fetched at `at`."""
    return [fetched(number, at, is_last=number == count) for number in range(1, count + 1)]


class SimulatedSource:
    """Runs over an upstream list of `count` pages; calls are counted by month."""

    def __init__(self, now: datetime, limit: int | None, count: int) -> None:
        self.now = now
        self.limit = limit
        self.count = count
        self.max_pages = MAX_PAGES
        self.pages: dict[int, CrawledPage] = {}
        self.calls: dict[tuple[int, int], int] = {}

    @property
    def month(self) -> MonthlyCalls | None:
        if self.limit is None:
            return None
        spent = self.calls.get((self.now.year, self.now.month), 0)
        return MonthlyCalls(limit=self.limit, remaining=self.limit - spent)

    def run(self, interval: timedelta | None, stop_after: int = 1_000) -> list[int]:
        """Crawl as a source does, at most `stop_after` pages; gives the fetched pages."""
        known = limit_pages(self.pages.values(), self.max_pages)
        planned = plan(known, self.now, self.month, interval, max_pages=self.max_pages)
        queue = PageQueue(planned, known)
        while len(queue.fetched) < stop_after and (number := queue.next()) is not None:
            last = number >= self.count
            queue.mark_fetched(number, is_last=last or number == self.max_pages)
            self.pages[number] = msgspec.structs.replace(
                fetched(number, self.now, is_last=last, remaining=queue.remaining_pages),
                crawl_started_at=planned.resumed_crawl or self.now,
            )
            if last:
                self.pages = {n: page for n, page in self.pages.items() if n <= number}
        key = self.now.year, self.now.month
        self.calls[key] = self.calls.get(key, 0) + len(queue.fetched)
        return queue.fetched

    def promised(self, interval: timedelta) -> tuple[datetime, timedelta] | None:
        """The end of the coverage and the largest age until then, as in /stats."""
        known = limit_pages(self.pages.values(), self.max_pages)
        found = coverage(known, self.now, self.month, interval, max_pages=self.max_pages)
        return None if found is None else (found.covered_by, found.max_age)

    def ages(self) -> list[timedelta]:
        return [self.now - page.fetched_at for page in limit_pages(self.pages.values(), self.max_pages)]


def test_without_a_limit_every_run_fetches_all_pages() -> None:
    planned = plan(all_fetched(72, NOON - HOUR), NOON, None, HOUR, max_pages=MAX_PAGES)

    assert planned.pages == tuple(range(1, 73))
    assert planned.extra_pages == MAX_PAGES - 72


def test_demo_plan_fetches_first_pages_hourly_and_all_every_eighth_run() -> None:
    source = SimulatedSource(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    runs = [source.run(HOUR)]
    for _ in range(16):
        source.now += HOUR
        runs.append(source.run(HOUR))

    assert runs[0] == runs[8] == runs[16] == list(range(1, 73))
    assert all(run == [1, 2, 3] for number, run in enumerate(runs) if number % 8)


def test_reserve_finds_the_end_of_a_new_list() -> None:
    planned = plan([], datetime(2026, 6, 1, tzinfo=UTC), DEMO, HOUR, max_pages=MAX_PAGES)

    assert planned.pages == (1,)
    assert planned.extra_pages >= 72


def test_extra_run_fetches_first_pages_and_delays_nothing() -> None:
    source = SimulatedSource(NOON, 10_000, 200)
    complete_at = []
    for hour in range(30):
        if len(source.run(HOUR)) == 200:
            complete_at.append(hour)
        source.now += HOUR / 4
        assert source.run(HOUR) == list(range(1, 7))
        source.now += HOUR * 3 / 4

    assert complete_at == [0, 11, 22]


def test_overdue_pages_are_fetched_by_the_next_run() -> None:
    source = SimulatedSource(NOON, 10_000, 200)
    source.run(HOUR)
    source.now += 3 * HOUR
    assert len(source.run(HOUR)) < 200
    source.now += 100 * HOUR

    assert len(source.run(HOUR)) == 200


def test_last_hour_of_a_month_spends_only_the_rest() -> None:
    now = datetime(2026, 6, 30, 23, 30, tzinfo=UTC)
    planned = plan(
        all_fetched(72, now - HOUR), now, MonthlyCalls(limit=10_000, remaining=20), HOUR, max_pages=MAX_PAGES
    )

    assert 0 < len(planned.pages) <= 20


def test_fewer_calls_than_runs_are_spread_evenly() -> None:
    source = SimulatedSource(NOON, 10_000, 72)
    source.calls[2026, 6] = 10_000 - 400
    source.pages = {page.number: page for page in all_fetched(72, NOON - MINUTE)}
    counts = []
    for _ in range(24):
        planned = plan([*source.pages.values()], source.now, source.month, MINUTE, max_pages=MAX_PAGES)
        if not planned.pages:
            assert planned.next_at is not None
            source.now = planned.next_at
            counts.append(0)
        counts.append(len(source.run(MINUTE)))
        source.now += MINUTE

    assert set(counts) == {0, 1}
    assert source.now - NOON > 6 * HOUR


def test_without_interval_runs_spend_saved_then_accrued_calls() -> None:
    source = SimulatedSource(NOON, 10_000, 72)
    manual = [len(source.run(None)) for _ in range(3)]
    hourly = []
    for _ in range(300):
        source.now += HOUR
        hourly.append(len(source.run(None)))
    minutely = []
    for _ in range(300):
        source.now += MINUTE
        minutely.append(len(source.run(None)))

    assert manual == [72, 72, 72]
    assert all(hourly)
    assert sum(source.calls.values()) < 10_000
    assert 0 in minutely


def test_killed_crawl_resumes_at_first_uncommitted_page() -> None:
    for limit in (None, 10_000):
        source = SimulatedSource(NOON, limit, 72)
        source.run(HOUR, stop_after=39)
        source.now += 10 * MINUTE
        assert source.run(HOUR) == list(range(40, 73))
        source.now += 10 * MINUTE
        assert source.run(HOUR)[0] == 1


def test_killed_planned_crawl_resumes_its_plan() -> None:
    source = SimulatedSource(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    source.run(HOUR)
    source.now += 8 * HOUR
    killed = source.run(HOUR, stop_after=5)
    source.now += MINUTE
    resumed = source.run(HOUR)
    source.now += HOUR

    assert [*killed, *resumed] == list(range(1, 73))
    assert source.run(HOUR) == [1, 2, 3]


def test_crawl_that_paused_too_long_starts_again() -> None:
    for interval, later in ((HOUR, 16 * MINUTE), (None, 16 * MINUTE), (5 * MINUTE, 6 * MINUTE)):
        source = SimulatedSource(NOON, None, 72)
        source.run(interval, stop_after=39)
        source.now += later
        assert source.run(interval)[0] == 1


def test_repeatedly_killed_crawl_starts_again_within_hours() -> None:
    source = SimulatedSource(NOON, None, 200)
    starts = []
    for _ in range(12):
        starts.append(source.run(HOUR, stop_after=5)[0])
        source.now += 10 * MINUTE

    assert starts[:3] == [1, 6, 11]
    assert starts.count(1) == 2


def test_clock_set_back_resumes_no_future_crawl_and_starves_no_page() -> None:
    source = SimulatedSource(NOON + timedelta(days=400), 10_000, 72)
    source.run(HOUR, stop_after=40)
    source.pages |= {n: fetched(n, source.now, is_last=n == 72) for n in range(41, 73)}
    source.now = NOON
    begun = source.run(HOUR)
    for _ in range(12):
        source.now += HOUR
        source.run(HOUR)

    assert begun[0] == 1
    assert all(timedelta() <= age <= 12 * HOUR for age in source.ages())


def test_end_is_found_when_the_list_grows_or_shrinks() -> None:
    source = SimulatedSource(NOON, 10_000, 72)
    source.run(HOUR)
    for count in (90, 40, 130):
        source.count = count
        for _ in range(16):
            source.now += HOUR
            source.run(HOUR)
        assert sorted(source.pages) == list(range(1, count + 1))


def test_endless_list_stops_at_max_pages() -> None:
    source = SimulatedSource(NOON, 10_000, 10_000)
    for _ in range(30):
        source.run(HOUR)
        source.now += HOUR

    assert max(source.pages) == MAX_PAGES


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
def test_plan_never_exceeds_remaining_calls(
    now: datetime,
    limit: int,
    left: float,
    interval: timedelta | None,
    history: list[tuple[int, int, bool]],
) -> None:
    month = MonthlyCalls(limit=limit, remaining=int(limit * left))
    ago = [(number, now - timedelta(seconds=seconds), partly) for number, seconds, partly in history]
    top = max((number for number, *_ in ago), default=0)
    pages = [
        fetched(number, at, is_last=number == top, remaining=(number + 1, number + 2) if partly else ())
        for number, at, partly in ago
    ]

    planned = plan(pages, now, month, interval, max_pages=MAX_PAGES)

    assert len(planned.pages) + planned.extra_pages <= month.remaining
    assert list(planned.pages) == sorted(set(planned.pages))
    assert planned.extra_pages >= 0
    assert all(1 <= number <= MAX_PAGES for number in planned.pages)
    assert bool(planned.pages) == (planned.next_at is None)
    assert planned.next_at is None or planned.next_at > now


@pytest.mark.slow
@settings(max_examples=40)
@given(
    moments,
    st.integers(1, 15_000),
    st.integers(1, 100),
    st.integers(600, 12 * 3_600).map(lambda seconds: timedelta(seconds=seconds)),
    st.lists(st.integers(1, 400), max_size=20),
)
@example(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72, HOUR, [])
@example(datetime(2026, 1, 31, 23, 59, tzinfo=UTC), 10_000, 72, HOUR, [3, 4])
def test_coverage_promises_hold_and_no_month_is_overdrawn(
    now: datetime, limit: int, count: int, interval: timedelta, unplanned: list[int]
) -> None:
    source = SimulatedSource(now, limit, count)
    promised: tuple[datetime, timedelta] | None = None
    for number in range(300):
        if promised is not None and source.now <= promised[0]:
            assert max(source.ages()) <= promised[1]
        source.run(interval)
        if number in unplanned:
            source.now += interval / 4
            source.run(interval)
            source.now -= interval / 4
            # An extra run may cost a later promise, so a new one is requested.
            promised = None
        source.now += interval
        if promised is None or source.now > promised[0]:
            coming = coverage(
                [*source.pages.values()], source.now, source.month, interval, max_pages=MAX_PAGES
            )
            promised = None if coming is None else (coming.covered_by, coming.max_age)

    assert all(calls <= limit for calls in source.calls.values())


def test_page_after_the_known_ones_is_fetched_once() -> None:
    for known in range(1, 6):
        source = SimulatedSource(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72)
        source.run(HOUR, stop_after=known)
        source.now += HOUR
        found = source.run(HOUR)
        assert found == sorted(set(found))


@settings(max_examples=40)
@given(
    moments,
    st.integers(50, 15_000),
    st.integers(1, 100),
    st.integers(600, 12 * 3_600).map(lambda seconds: timedelta(seconds=seconds)),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 120)), min_size=1, max_size=6),
    st.integers(1, 200),
)
@example(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72, HOUR, [(20, 4), (20, 72), (20, 2)], 1)
def test_changing_max_pages_is_never_exceeded(
    now: datetime,
    limit: int,
    count: int,
    interval: timedelta,
    bounds: list[tuple[int, int]],
    stop_after: int,
) -> None:
    source = SimulatedSource(now, limit, count)
    for runs, max_pages in bounds:
        source.max_pages = max_pages
        promised = None
        # The first run with a new limit may be killed.
        stops = [stop_after, *[1_000] * runs]
        for stop in stops:
            if promised is not None and source.now <= promised[0]:
                assert max(source.ages()) <= promised[1]
            found = source.run(interval, stop_after=stop)
            source.now += interval
            assert all(number <= max_pages for number in found)
            assert len(found) == len(set(found))
            if promised is None or source.now > promised[0]:
                promised = source.promised(interval)

    assert all(calls <= limit for calls in source.calls.values())


def test_few_max_pages_are_fetched_by_every_run() -> None:
    source = SimulatedSource(datetime(2026, 10, 1, tzinfo=UTC), 10_000, 72)
    source.run(HOUR)
    source.max_pages = 4
    for _ in range(30):
        source.now += HOUR
        assert source.run(HOUR) == [1, 2, 3, 4]
    source.max_pages = 72
    grown = []
    for _ in range(10):
        source.now += HOUR
        grown.append(source.run(HOUR))

    assert list(range(1, 73)) in grown
    assert source.promised(HOUR) is not None


def test_demo_plan_promises_some_hours() -> None:
    source = SimulatedSource(datetime(2026, 6, 1, tzinfo=UTC), 10_000, 72)
    source.run(HOUR)
    for _ in range(720):
        source.now += HOUR
        promised = coverage([*source.pages.values()], source.now, source.month, HOUR, max_pages=MAX_PAGES)
        assert promised is not None
        assert max(source.ages()) <= promised.max_age <= 11 * HOUR
        assert source.now <= promised.covered_by <= source.now + 10 * HOUR
        source.run(HOUR)

    assert all(9_000 < calls <= 10_000 for month, calls in source.calls.items() if month == (2026, 6))


def test_no_promise_without_next_run_or_end_of_list() -> None:
    pages = all_fetched(72, NOON)

    assert coverage(pages, NOON + HOUR, DEMO, None, max_pages=MAX_PAGES) is None
    assert coverage(pages[:-1], NOON + HOUR, DEMO, HOUR, max_pages=MAX_PAGES) is None
    assert coverage([], NOON + HOUR, DEMO, HOUR, max_pages=MAX_PAGES) is None


def test_spent_month_promises_for_the_next_month() -> None:
    spent = MonthlyCalls(limit=10_000, remaining=0)
    promised = coverage(all_fetched(72, NOON), NOON + HOUR, spent, HOUR, max_pages=MAX_PAGES)

    assert promised is not None
    assert promised.covered_by >= month_of(NOON)[1]
    assert promised.max_age >= month_of(NOON)[1] - NOON


@given(st.integers(0, 150), st.integers(1, 220), st.integers(0, 40), st.sets(st.integers(1, 220)))
def test_queue_ends_and_gives_remaining_pages(known: int, count: int, beyond: int, lost: set[int]) -> None:
    pages = all_fetched(known, NOON)
    queue = PageQueue(plan(pages, NOON + HOUR, None, HOUR, max_pages=max(known, 1) + beyond), pages)
    requested: list[int] = []
    while (number := queue.next()) is not None:
        requested.append(number)
        if number in lost:
            queue.mark_lost(number)
        else:
            queue.mark_fetched(number, is_last=number >= count)
        assert set(queue.remaining_pages).isdisjoint(queue.fetched)

    assert requested == sorted(set(requested))
    assert queue.remaining_pages == ()
    assert queue.note().startswith("page")
