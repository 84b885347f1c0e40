"""The resolver's process decides as the resolver does, and a run learns how it ended."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.process import TASK_LINES
from kasparro.assets.process_client import Decision, Resolver, ResolverFailed
from kasparro.assets.resolve import open_pairs, resolve
from kasparro.assets.rules import NO_RULES
from kasparro.model.asset_documents import OBJECTS_AT_ONCE, KnownDocuments, ResolutionDocuments
from tests.assets.support import applied, coin

_encode = msgspec.json.Encoder(decimal_format="number").encode


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(("reads", "early"), [(True, False), (False, False), (False, True)])
def test_a_resolver_that_is_killed_is_reported_with_the_signal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loop: Callable[[], asyncio.AbstractEventLoop],
    reads: bool,
    early: bool,
) -> None:
    """On both event loops; after it has read everything, or while it is sent something, or before."""
    program = tmp_path / "python"
    read = "" if early else f"head -n {TASK_LINES} >/dev/null" if reads else "read _"
    program.write_text(f"#!/bin/sh\n{read}\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    many = [coin(f"csv/c-{n}", f"C{n}", f"Coin {n}") for n in range(20_000)]
    with (
        asyncio.Runner(loop_factory=loop) as runner,
        pytest.raises(ResolverFailed, match="the resolver was killed by signal 9"),
    ):
        runner.run(decide(documents(Knowledge(coins=many)), after_its_end=early))


async def test_the_process_decides_as_the_resolver_does() -> None:
    """With figures of any length, any text, and more coins than are sent at once."""
    odd = 'a "quoted", \\ name\nof two lines \u2028 \U0001f680'
    before = Knowledge(
        coins=[
            *(
                coin(f"coinpaprika/c-{n}", f"C{n}", f"Coin {n}", price_usd=f"{n}.{'1' * 40}")
                for n in range(600)
            ),
            *(coin(f"coingecko/c{n}", f"C{n}", f"Coin {n}", price_usd=f"{n}.{'1' * 40}") for n in range(600)),
            coin("coinpaprika/odd", "ODD", odd, price_usd="1"),
            coin("csv/odd", "ODD", odd, price_usd="2"),
        ]
    )
    expected = resolve(before, NO_RULES)
    decision = await decide(documents(before))

    assert decision.resolution == ResolutionDocuments.of(expected)
    assert len(expected.links) > OBJECTS_AT_ONCE
    assert decision.open_pairs == open_pairs(before, expected)

    after = applied(before, expected)
    again = await decide(documents(after))
    assert again.resolution == ResolutionDocuments.of(resolve(after, NO_RULES))


async def test_one_process_decides_by_labels_and_then_by_all_figures() -> None:
    alone = Knowledge(coins=[coin(f"csv/c-{n}", f"C{n}", f"Coin {n}") for n in range(1_200)])
    pair = Knowledge(coins=[coin("coinpaprika/a", "A", "Ant"), coin("csv/a", "A", "Ant", price_usd="1")])

    async with Resolver() as resolver:
        by_labels = [await resolver.decide_by_labels(documents(each), NO_RULES) for each in (alone, pair)]
        decision = await resolver.decide(documents(pair), NO_RULES)
        assert resolver.alive

    assert by_labels == [ResolutionDocuments.of(resolve(alone)), None]
    assert decision.resolution == ResolutionDocuments.of(resolve(pair))
    assert not resolver.alive


async def test_a_signal_to_all_processes_of_a_command_does_not_end_the_process() -> None:
    """They mean the command, which ends the process itself."""
    known = documents(Knowledge(coins=[coin("csv/a", "A", "Ant")]))
    async with Resolver() as resolver:
        first = await resolver.decide(known, NO_RULES)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            resolver._process.send_signal(number)
        assert await resolver.decide(known, NO_RULES) == first


async def decide(known: KnownDocuments, *, after_its_end: bool = False) -> Decision:
    """The decision of a process without rules."""
    async with Resolver() as resolver:
        if after_its_end:
            await resolver._process.wait()
        return await resolver.decide(known, NO_RULES)


def documents(knowledge: Knowledge) -> KnownDocuments:
    """What the store would give."""
    return KnownDocuments(
        coins=[as_json(each) for each in knowledge.coins],
        contracts=[as_json(each) for each in knowledge.contracts],
        links=[as_json(each) for each in knowledge.links],
        assets=[as_json(each) for each in knowledge.assets.values()],
        candidates=[as_json(each) for each in knowledge.candidates],
        relabelled=[as_json(each) for each in knowledge.relabelled.values()],
    )


def as_json(item: object) -> str:
    """The object as JSON, with numbers as PostgreSQL writes them."""
    return _encode(item).decode()
