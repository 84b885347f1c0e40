"""How connections, unsent bytes and pipelined requests are shared between clients."""

import asyncio
from collections.abc import Callable

from kasparro.web.http.connections import ConnectionLimits, Connections


class FakeConnection:
    """A connection that notes whether it was aborted."""

    pipelining = False
    connection_limit = 8

    def __init__(self) -> None:
        self.aborted = False
        self.on_shutdown: Callable[[], None] | None = None

    def abort(self) -> None:
        self.aborted = True


LIMITS = ConnectionLimits(total=8, per_client=3, reserve=4, reserve_per_client=2, unsent_bytes=1_000)


def opened(
    connections: Connections, client: str, count: int, *, is_proxy: bool = False
) -> list[FakeConnection]:
    """Open this number of connections of a client; returns those that are served."""
    fakes = [FakeConnection() for _ in range(count)]
    return [fake for fake in fakes if connections.open(fake, client, is_proxy=is_proxy)]


async def test_client_has_its_share() -> None:
    connections = Connections(LIMITS)
    first = opened(connections, "a", 10)
    assert len(first) == 3
    assert len(opened(connections, "b", 3)) == 3
    connections.close(first[0])
    assert len(opened(connections, "a", 2)) == 1


async def test_total_limits_proxies_too() -> None:
    connections = Connections(LIMITS)
    assert len(opened(connections, "proxy", 20, is_proxy=True)) == 8
    assert opened(connections, "b", 1) == []


async def test_reserve_evicts_oldest_of_same_client() -> None:
    connections = Connections(LIMITS)
    opened(connections, "a", 3)
    own, other = [FakeConnection() for _ in range(5)], FakeConnection()
    opened(connections, "b", 3)
    connections.open(other, "b", is_proxy=False)
    for fake in own:
        assert not connections.open(fake, "a", is_proxy=False)
    assert [fake.aborted for fake in own] == [True, True, True, False, False]
    assert not other.aborted


async def test_full_reserve_evicts_oldest() -> None:
    connections = Connections(LIMITS)
    opened(connections, "proxy", 8, is_proxy=True)
    held = [FakeConnection() for _ in range(4)]
    for number, fake in enumerate(held):
        connections.open(fake, f"client {number}", is_proxy=False)
    health = FakeConnection()
    connections.open(health, "health", is_proxy=False)
    assert [fake.aborted for fake in held] == [True, False, False, False]
    assert not health.aborted


async def test_unsent_bytes_abort_oldest_of_largest_client() -> None:
    connections = Connections(LIMITS)
    slow, greedy = FakeConnection(), [FakeConnection() for _ in range(3)]
    connections.set_unsent(slow, "slow", 300)
    for fake in greedy:
        connections.set_unsent(fake, "greedy", 300)
    assert [fake.aborted for fake in greedy] == [True, False, False]
    assert not slow.aborted
    assert connections.unsent_bytes == 900


async def test_unsent_bytes_count_once() -> None:
    connections = Connections(LIMITS)
    fake = FakeConnection()
    for size in (900, 500, 700):
        connections.set_unsent(fake, "a", size)
    assert connections.unsent_bytes == 700
    connections.clear_unsent(fake)
    connections.clear_unsent(fake)
    assert connections.unsent_bytes == 0
    connections.set_unsent(fake, "a", 5_000)
    assert fake.aborted
    assert connections.unsent_bytes == 0


async def test_pipelined_requests_start_in_fair_order() -> None:
    """Clients alternate, and other work of the event loop runs in between."""
    connections = Connections(LIMITS)
    order: list[str] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def other_work(left: int) -> None:
        order.append("-")
        if left:
            loop.call_soon(other_work, left - 1)
        else:
            done.set()

    for _ in range(3):
        connections.schedule("a", lambda: order.append("a"))
    connections.schedule("b", lambda: order.append("b"))
    loop.call_soon(other_work, 5)
    await done.wait()
    assert "".join(order) == "a-b-a-a--" + "-"
