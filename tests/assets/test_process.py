"""The resolver's process decides as the resolver does, and a run learns how it ended."""

import sys
from pathlib import Path

import msgspec
import pytest

from kasparro.assets.knowledge import Knowledge
from kasparro.assets.process import Decision, Resolver, ResolverFailed
from kasparro.assets.resolve import open_pairs, resolve
from kasparro.assets.rules import NO_RULES
from kasparro.model.asset_documents import OBJECTS_AT_ONCE, KnownDocuments, ResolutionDocuments
from tests.assets.support import applied, coin

NOTHING = KnownDocuments(**dict.fromkeys(KnownDocuments.__struct_fields__, ()))


async def test_a_resolver_that_is_killed_is_reported_with_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\ncat >/dev/null\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ResolverFailed, match="the resolver was killed by signal 9"):
        await decide(NOTHING)


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


async def decide(known: KnownDocuments) -> Decision:
    """The decision of a process without rules."""
    async with Resolver() as resolver:
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
    """The object as JSON."""
    return msgspec.json.encode(item).decode()
