"""The command `kasparro` as a process, for tests of what it prints, returns and leaves behind."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

PROGRAM = (sys.executable, "-m", "kasparro")


@asynccontextmanager
async def started_command(
    *arguments: str, program: Sequence[str] = PROGRAM, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`kasparro ARGUMENTS` while the block runs; killed at the end of the block if it has not exited."""
    process = await asyncio.create_subprocess_exec(
        *(*program, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # A command warns of settings that it does not know.
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("KASPARRO_TEST_")},
            **environment,
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def run_command(
    *arguments: str, program: Sequence[str] = PROGRAM, **environment: str
) -> tuple[int | None, str, str]:
    """Run `kasparro ARGUMENTS` until it exits; returns its exit code, stdout and stderr."""
    async with started_command(*arguments, program=program, **environment) as process:
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


async def listening_url(process: asyncio.subprocess.Process) -> str:
    """The URL from the event `listening` that a service logs when it accepts connections."""
    assert process.stderr is not None
    async with asyncio.timeout(30):
        while line := await process.stderr.readline():
            event = json.loads(line)
            if event["event"] == "listening":
                return str(event["url"])
    raise AssertionError("the service exited before it listened")
