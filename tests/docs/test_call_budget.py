"""The worked example on the call budget page is what the page schedule plans."""

import re
from datetime import UTC, datetime, timedelta

from kasparro.model.batch import CrawledPage
from kasparro.pipeline.contracts import daily_lists
from kasparro.sources.page_schedule import MonthlyCalls, coverage, plan
from tests.support.documents import rows, section

HOUR = timedelta(hours=1)
START = datetime(2026, 9, 1, tzinfo=UTC)
MIDDLE = datetime(2026, 9, 16, tzinfo=UTC)
PAGES = 72
MOST = 220


def fetched(at: datetime) -> list[CrawledPage]:
    return [
        CrawledPage(
            number=number,
            crawl_started_at=at,
            remaining_pages=(),
            fetched_at=at,
            read_at=at,
            records=250,
            is_last=number == PAGES,
            request_fingerprint="",
        )
        for number in range(1, PAGES + 1)
    ]


def planned(start: datetime, remaining: int) -> tuple[int, int]:
    """How many pages each hourly run fetches, and after how many runs all are fetched again.

    All pages were fetched at `start`, when so many calls remained.
    """
    pages, first, runs = fetched(start), PAGES, 0
    length = 0
    while length < PAGES:
        runs += 1
        month = MonthlyCalls(limit=10_000, remaining=remaining)
        length = len(plan(pages, start + runs * HOUR, month, HOUR, max_pages=MOST).pages)
        first = min(first, length)
        remaining -= length
    return first, runs


def test_example_is_what_the_schedule_plans() -> None:
    table = dict(rows(section("docs/call-budget.md", "A worked example"))[-5:])
    first, every = planned(START, 10_000)
    promised = coverage(
        fetched(START), START + HOUR, MonthlyCalls(limit=10_000, remaining=10_000), HOUR, max_pages=MOST
    )
    assert table["`pages`, `pages_every_run`, `pages_in_rotation`"] == f"{PAGES}, {first}, {PAGES - first}"
    assert table["`rotation_runs`"] == str(every)
    assert promised is not None
    assert promised.promised_age is not None
    stated = re.findall(r"\d+", table["`promised_age_s`"])
    assert stated == [
        str(round(promised.promised_age / timedelta(seconds=1))),
        str(promised.promised_age // HOUR),
    ]


def test_half_of_the_calls_at_half_of_the_month_is_the_same_plan() -> None:
    assert planned(MIDDLE, 5_000) == planned(START, 10_000)


def test_example_with_few_calls_is_what_the_schedule_plans() -> None:
    text = section("docs/call-budget.md", "A worked example")
    first, every = planned(MIDDLE, 1_000)
    assert first == 1
    assert "every run fetches page 1," in text
    assert re.findall(r"about every (\d+)(?:st|nd|rd|th) run", text) == [str(every)]


def test_cost_of_contract_lists_is_what_a_run_allows() -> None:
    text = section("docs/call-budget.md", "Contract lists")
    stated = re.search(r"([\d,]+) calls, these are (\d+) lists on the first of a month of 30 days", text)
    assert stated is not None
    calls, lists = (int(number.replace(",", "")) for number in stated.groups())
    assert daily_lists(MonthlyCalls(limit=calls, remaining=calls), START) == lists
    fewest = re.search(r"fewer than (\d+) calls for a month of 30 days, no list is requested", text)
    assert fewest is not None
    enough = int(fewest[1])
    assert daily_lists(MonthlyCalls(limit=calls, remaining=enough), START) == 1
    assert daily_lists(MonthlyCalls(limit=calls, remaining=enough - 1), START) == 0
