"""Load from wrk, pinned to the second core: answers a second, and how long they took."""

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench import measure

# Asks one path after the other; each connection takes the next, so that none is asked twice before the end.
_SCRIPT = """
local paths, n = {{}}, 0
for path in io.lines("{paths}") do paths[#paths + 1] = path end
function request()
    n = n % #paths + 1
    return wrk.format("GET", paths[n])
end
"""
_BYTES = {b"B": 1, b"KB": 2**10, b"MB": 2**20, b"GB": 2**30}
_MILLISECONDS = {b"us": 0.001, b"ms": 1.0, b"s": 1_000.0, b"m": 60_000.0}


class Load(msgspec.Struct, frozen=True):
    """What a server bore: answers a second that were no refusals, the share of refusals, and the latency's
    percentiles in milliseconds.
    """

    rate: float
    refused: float
    p50: float
    p99: float


def need() -> None:
    """End the program with a word where wrk is missing."""
    if shutil.which("wrk") is None:
        sys.exit("these benchmarks need wrk (Debian's package of that name)")


async def load(
    port: int,
    paths: Sequence[str],
    *,
    connections: int,
    seconds: float,
    headers: Sequence[str] = (),
    size: int | None = None,
) -> Load:
    """Ask for the paths in turn. Raises RuntimeError where the server answers with errors alone.

    Of answers that are long beside the time, those underway count by their bytes: `size` is that of one.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "paths"
        listed.write_text("\n".join(paths))
        script = Path(folder) / "script.lua"
        script.write_text(_SCRIPT.format(paths=listed))
        output = await measure.process(
            *("taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency"),
            *("--timeout", "60s", "-s", str(script)),
            *(part for header in headers for part in ("-H", header)),
            f"http://127.0.0.1:{port}",
        )
    answered = re.search(rb"(\d+) requests in ([\d.]+)(\w+), ([\d.]+)(\w+) read", output)
    failed = re.search(rb"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(rb"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    if answered is None or (broken is not None and any(map(int, broken.groups()))):
        raise RuntimeError(output.decode())
    total, refused = int(answered[1]), int(failed[1]) if failed else 0
    complete = total - refused if size is None else float(answered[4]) * _BYTES[answered[5]] / size
    if not complete:
        raise RuntimeError(output.decode())
    elapsed = float(answered[2]) * _MILLISECONDS[answered[3]] / 1_000
    return Load(complete / elapsed, refused / max(1, total), _percentile(output, 50), _percentile(output, 99))


def _percentile(output: bytes, percent: int) -> float:
    found = re.search(rb"\n\s+%d%%\s+([\d.]+)(\w+)" % percent, output)
    if found is None:
        raise RuntimeError(output.decode())
    return float(found[1]) * _MILLISECONDS[found[2]]
