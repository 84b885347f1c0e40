"""What is rendered anew by itself when the data moves: what is wanted, the most wanted first, and no more."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from starlette.responses import Response

from kasparro.errors import DatabaseUnavailable
from kasparro.web.cache.response import CachedResponse
from kasparro.web.cache.store import SPELLINGS, ResponseCache
from kasparro.web.renewal import NOTED, RENEWED, Renewal

Key = tuple[bytes, bytes]


def key(number: int) -> Key:
    return b"/data", b"%d" % number


class Readers:
    """Who asks: `rendered` are the numbers of the answers in the order in which they were made."""

    def __init__(self) -> None:
        self.kept = ResponseCache(10_000_000)
        self.renewal = Renewal(self.kept)
        self.rendered: list[int] = []
        self.broken: dict[int, Exception] = {}
        # Those that take long by now, and those read from a server that lags behind.
        self.long: set[int] = set()
        self.lagging: set[int] = set()
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def render(self, number: int) -> tuple[CachedResponse, bool]:
        """What the service does to make an answer."""
        self.rendered.append(number)
        self.begun.set()
        await self.may_go_on.wait()
        if number in self.broken:
            raise self.broken[number]

        async def again() -> tuple[CachedResponse, bool]:
            return await self.render(number)

        response = Response(b"x" * 2_000, media_type="text/plain")
        answer = CachedResponse(
            response, "/data", "no-cache", "Accept", None if number in self.long else again
        )
        return answer, number not in self.lagging

    async def ask(
        self, number: int, times: int = 1, *, coding: str = "identity", spelling: bytes | None = None
    ) -> None:
        """What the service does to give one."""
        for _ in range(times):
            answer = self.kept.find(key(number)) or await self.kept.render(
                key(number), lambda: self.render(number)
            )
            answer.asks += 1
            await answer.variant(coding)
            self.kept.remember(answer, key(number) if spelling is None else (b"/data", spelling))

    async def move(self, *, known: bool = True) -> list[int]:
        """The data moves; gives what was rendered anew then."""
        self.rendered.clear()
        self.renewal.moved(known=known)
        await self.settled()
        return self.rendered.copy()

    async def begin_to_move(self) -> None:
        """The data moves; what is to be rendered anew begins, and goes on when it may."""
        self.rendered.clear()
        self.begun.clear()
        self.may_go_on.clear()
        self.renewal.moved(known=True)
        await self.begun.wait()

    async def settled(self) -> None:
        """Wait until nothing is being renewed."""
        working = self.renewal._working
        if working is not None:
            await asyncio.wait({working})


@pytest.fixture
async def readers() -> AsyncIterator[Readers]:
    """Readers, of a cache that is closed after them."""
    made = Readers()
    yield made
    await made.renewal.close()
    await made.kept.close()


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the renewal, in seconds, as a list of one."""
    told = [1_000.0]
    monkeypatch.setattr("kasparro.web.renewal.monotonic", lambda: told[0])
    return told


async def asked_over(readers: Readers, numbers: Iterable[int], times: int) -> None:
    """Ask for each of these so many times."""
    for number in numbers:
        await readers.ask(number, times)


async def test_what_was_asked_for_twice_is_made_anew_and_found_in_the_same_ways(readers: Readers) -> None:
    await readers.ask(1, 2)
    await readers.ask(2, 2, coding="gzip")
    await readers.ask(3)
    assert sorted(await readers.move()) == [1, 2]
    assert readers.kept.spelt(key(3)) is None
    for number, codings in ((1, {"identity"}), (2, {"identity", "gzip"})):
        answer = readers.kept.spelt(key(number))
        assert answer is not None
        assert set(answer.variants) == codings


async def test_what_is_asked_for_once_a_version_is_wanted_too(readers: Readers) -> None:
    await readers.ask(1)
    assert await readers.move() == []
    await readers.ask(1)
    assert await readers.move() == [1]
    assert await readers.move() == [1]


async def test_what_nobody_asked_for_any_more_for_a_while_is_left(
    readers: Readers, moments: list[float]
) -> None:
    await readers.ask(1, 5_000)
    assert await readers.move() == [1]
    moments[0] += 59
    assert await readers.move() == [1]
    moments[0] += 1
    assert await readers.move() == []


async def test_the_most_wanted_come_first_and_there_is_an_end_to_it(readers: Readers) -> None:
    await asked_over(readers, range(2 * NOTED), 2)
    for number, times in ((100, 3), (90, 4), (110, 5)):
        await readers.ask(number, times)
    renewed = await readers.move()
    assert renewed[:3] == [110, 90, 100]
    assert len(renewed) == RENEWED
    assert len(readers.renewal._wanted) == NOTED


async def test_what_was_asked_for_long_ago_counts_for_less(readers: Readers, moments: list[float]) -> None:
    await asked_over(readers, range(RENEWED), 1_000)
    assert set(await readers.move()) == set(range(RENEWED))
    moments[0] += 59
    for number in range(RENEWED):
        await readers.ask(number)
    await readers.ask(100, 300)
    assert (await readers.move())[0] == 100


async def test_newcomers_are_noted_beside_whatever_was_wanted_before(
    readers: Readers, moments: list[float]
) -> None:
    await asked_over(readers, range(NOTED), 100)
    await readers.move()
    for _ in range(10):
        moments[0] += 10
        for number in range(NOTED):
            await readers.ask(number)
        await readers.ask(1_000, 20)
        renewed = await readers.move()
    assert renewed[0] == 1_000


async def test_what_may_take_long_is_made_for_who_asks_alone(readers: Readers) -> None:
    readers.long.add(1)
    await readers.ask(1, 5)
    assert await readers.move() == []


async def test_what_takes_long_by_now_is_not_made_again(readers: Readers) -> None:
    await readers.ask(1, 5)
    readers.long.add(1)
    assert await readers.move() == [1]
    assert await readers.move() == []


async def test_of_what_is_not_kept_nothing_is_packed(readers: Readers) -> None:
    await readers.ask(1, 5, coding="gzip")
    readers.lagging.add(1)
    assert await readers.move() == [1]
    assert len(readers.kept) == 0
    readers.lagging.clear()
    assert await readers.move() == [1]
    answer = readers.kept.find(key(1))
    assert answer is not None
    assert set(answer.variants) == {"identity", "gzip"}


async def test_an_answer_is_found_again_by_the_latest_ways_of_asking_for_it_alone(readers: Readers) -> None:
    told = [b"%d-%d" % (version, n) for version in range(5) for n in range(3)]
    for number, spelling in enumerate(told, 1):
        await readers.ask(1, spelling=spelling)
        if number % 3 == 0:
            await readers.move()
    answer = readers.kept.find(key(1))
    assert answer is not None
    assert answer.spellings == [(b"/data", spelling) for spelling in told[-SPELLINGS:]]


async def test_while_the_database_is_not_known_to_answer_nothing_is_asked_of_it(readers: Readers) -> None:
    await readers.ask(1, 2)
    assert await readers.move(known=False) == []
    assert len(readers.kept) == 0
    assert await readers.move() == [1]


@pytest.mark.parametrize("error", [DatabaseUnavailable("PostgreSQL is out of reach"), ValueError("a fault")])
async def test_what_fails_is_left_to_who_asks_and_the_others_are_renewed(
    readers: Readers, error: Exception
) -> None:
    await readers.ask(1, 3)
    await readers.ask(2, 2)
    readers.broken[1] = error
    assert await readers.move() == [1, 2]
    assert readers.kept.find(key(1)) is None
    assert readers.kept.find(key(2)) is not None
    with pytest.raises(type(error)):
        await readers.ask(1)


async def test_when_the_data_moves_meanwhile_what_is_under_way_is_made_once_more(readers: Readers) -> None:
    await readers.ask(1, 3)
    await readers.ask(2, 2)
    await readers.begin_to_move()
    readers.renewal.moved(known=True)
    readers.may_go_on.set()
    await readers.settled()
    assert readers.rendered == [1, 1, 2]
    assert {number for number in (1, 2) if readers.kept.find(key(number))} == {1, 2}


async def test_who_asks_for_what_is_being_renewed_shares_it(readers: Readers) -> None:
    await readers.ask(1, 2)
    await readers.begin_to_move()
    asking = asyncio.create_task(readers.ask(1))
    readers.may_go_on.set()
    await asking
    await readers.settled()
    assert readers.rendered == [1]


async def test_what_somebody_asked_for_since_is_not_made_again(readers: Readers) -> None:
    await readers.ask(1, 3)
    await readers.ask(2, 2)
    await readers.begin_to_move()
    readers.may_go_on.set()
    await readers.ask(2)
    await readers.settled()
    assert readers.rendered == [1, 2]


async def test_closing_ends_what_is_being_renewed(readers: Readers) -> None:
    await readers.ask(1, 2)
    await readers.begin_to_move()
    async with asyncio.timeout(5):
        await readers.renewal.close()
    assert readers.renewal._working is not None
    assert readers.renewal._working.cancelled()
