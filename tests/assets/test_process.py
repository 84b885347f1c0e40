"""The resolver's process: what a run learns if it is killed."""

import sys
from pathlib import Path

import pytest

from kasparro.assets.process import ResolverFailed, decide
from kasparro.assets.rules import NO_RULES
from tests.assets.support import World


async def test_a_resolver_that_is_killed_is_reported_with_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\ncat >/dev/null\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(ResolverFailed, match="the resolver was killed by signal 9"):
        await decide(World().knowledge, NO_RULES)
