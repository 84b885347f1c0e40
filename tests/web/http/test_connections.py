"""How connections, unread answers and turns are shared between clients."""

import asyncio

from kasparro.web.http.connections import ConnectionLimits, Connections


class Fake:
    """A connection that notes whether it was cut."""

    pipelining = False

    def __init__(self) -> None:
        self.was_cut = False

    def cut(self) -> None:
        self.was_cut = True


SHARES = ConnectionLimits(total=8, per_client=3, reserve=4, reserve_per_client=2, unsent_bytes=1_000)


def opened(connections: Connections, client: str, count: int, *, is_proxy: bool = False) -> list[Fake]:
    """So many connections of a client; only those that are served."""
    made = [Fake() for _ in range(count)]
    return [fake for fake in made if connections.open(fake, client, is_proxy=is_proxy)]


async def test_a_client_has_a_share_and_what_it_gives_back_is_free() -> None:
    connections = Connections(SHARES)
    first = opened(connections, "a", 10)
    assert len(first) == 3
    assert len(opened(connections, "b", 3)) == 3
    connections.close(first[0])
    assert len(opened(connections, "a", 2)) == 1


async def test_all_connections_are_bounded_also_those_of_proxies() -> None:
    connections = Connections(SHARES)
    assert len(opened(connections, "proxy", 20, is_proxy=True)) == 8
    assert opened(connections, "b", 1) == []


async def test_in_the_reserve_the_oldest_of_the_same_client_makes_room() -> None:
    connections = Connections(SHARES)
    opened(connections, "a", 3)
    mine, other = [Fake() for _ in range(5)], Fake()
    opened(connections, "b", 3)
    connections.open(other, "b", is_proxy=False)
    for fake in mine:
        assert not connections.open(fake, "a", is_proxy=False)
    assert [fake.was_cut for fake in mine] == [True, True, True, False, False]
    assert not other.was_cut


async def test_a_full_reserve_of_many_clients_has_room_for_a_new_one() -> None:
    connections = Connections(SHARES)
    opened(connections, "proxy", 8, is_proxy=True)
    held = [Fake() for _ in range(4)]
    for number, fake in enumerate(held):
        connections.open(fake, f"client {number}", is_proxy=False)
    health = Fake()
    connections.open(health, "health", is_proxy=False)
    assert [fake.was_cut for fake in held] == [True, False, False, False]
    assert not health.was_cut


async def test_the_client_with_most_unread_loses_its_oldest_connection() -> None:
    connections = Connections(SHARES)
    slow, greedy = Fake(), [Fake() for _ in range(3)]
    connections.wait(slow, "slow", 300)
    for fake in greedy:
        connections.wait(fake, "greedy", 300)
    assert [fake.was_cut for fake in greedy] == [True, False, False]
    assert not slow.was_cut
    assert connections.unsent_bytes == 900


async def test_what_was_read_or_measured_again_counts_once() -> None:
    connections = Connections(SHARES)
    fake = Fake()
    for size in (900, 500, 700):
        connections.wait(fake, "a", size)
    assert connections.unsent_bytes == 700
    connections.read(fake)
    connections.read(fake)
    assert connections.unsent_bytes == 0
    connections.wait(fake, "a", 5_000)
    assert fake.was_cut
    assert connections.unsent_bytes == 0


async def test_clients_take_turns_and_others_run_in_between() -> None:
    connections = Connections(SHARES)
    order: list[str] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def rounds(left: int) -> None:
        order.append("-")
        if left:
            loop.call_soon(rounds, left - 1)
        else:
            done.set()

    for _ in range(3):
        connections.take_turn("a", lambda: order.append("a"))
    connections.take_turn("b", lambda: order.append("b"))
    loop.call_soon(rounds, 5)
    await done.wait()
    assert "".join(order) == "a-b-a-a--" + "-"
