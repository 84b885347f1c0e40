"""Load from wrk, pinned to the second core: responses per second, and their latency."""

import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench import measure

# All connections take their paths from one list, so that no path is requested again before the list ends.
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
    """What a server achieved under load.

    `rate` is successful responses per second, `error_share` the share of error responses; the latency
    percentiles are in milliseconds.
    """

    rate: float
    error_share: float
    p50: float
    p99: float


def require() -> None:
    """Exit with a message if wrk is not installed."""
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
    """Request the paths one after the other. Raises RuntimeError if there is no successful response.

    `size`, in bytes, is for responses that take a large part of `seconds`: the rate is then derived from the
    bytes received, so that unfinished responses count in part.
    """
    with tempfile.TemporaryDirectory() as folder:
        path_list = Path(folder) / "paths"
        path_list.write_text("\n".join(paths))
        script = Path(folder) / "script.lua"
        script.write_text(_SCRIPT.format(paths=path_list))
        output = await measure.run(
            *("taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency"),
            *("--timeout", "60s", "-s", str(script)),
            *(part for header in headers for part in ("-H", header)),
            f"http://127.0.0.1:{port}",
        )
    summary = re.search(rb"(\d+) requests in ([\d.]+)(\w+), ([\d.]+)(\w+) read", output)
    error_line = re.search(rb"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(rb"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    if summary is None or (broken is not None and any(map(int, broken.groups()))):
        raise RuntimeError(output.decode())
    total, errors = int(summary[1]), int(error_line[1]) if error_line else 0
    complete = total - errors if size is None else float(summary[4]) * _BYTES[summary[5]] / size
    if not complete:
        raise RuntimeError(output.decode())
    elapsed = float(summary[2]) * _MILLISECONDS[summary[3]] / 1_000
    return Load(complete / elapsed, errors / max(1, total), _percentile(output, 50), _percentile(output, 99))


def _percentile(output: bytes, percent: int) -> float:
    found = re.search(rb"\n\s+%d%%\s+([\d.]+)(\w+)" % percent, output)
    if found is None:
        raise RuntimeError(output.decode())
    return float(found[1]) * _MILLISECONDS[found[2]]
