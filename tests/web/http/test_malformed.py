"""Thousands of malformed requests: each gets a response, none a 5xx, and no table changes."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import pytest

from kasparro.store.pool import Connection
from kasparro.store.tables import TABLES
from tests.support.live_service import live_service

pytestmark = pytest.mark.slow

REQUESTS = 10_000
AT_ONCE = 32
TIMEOUT_S = 30

HOSTILE = [
    "' OR 1=1; --",
    "1); DROP TABLE unified_data; --",
    "$1",
    "%s%s%n",
    "\\'; SELECT pg_sleep(10); --",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}${7*7}<%= 7*7 %>",
    "../../../../etc/passwd",
    "\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "=cmd|' /C calc'!A0",
    "\u202e\ufeff\u0000",
    "𝕭𝖎𝖙𝖈𝖔𝖎𝖓",
    "İıẞſ",
    "١٢٣",
    "NaN",
    "Infinity",
    "1e400",
    "-0",
    "0x10",
    "9" * 400,
    "9223372036854775808",
    "2024-02-30T25:61:61Z",
    "0000-00-00",
    "+292277026596-12-04T15:30:08Z",
    "null",
    "true",
    "[]",
    "{}",
    ",,,",
    " ",
    "",
    "x" * 5_000,
    "_%\\" * 50,
    "a," * 700,
]
# Not valid UTF-8, or not valid percent-encoding.
INVALID_TEXT = [
    b"%ff%fe",
    b"%c0%af",
    b"%ed%a0%80",
    b"%f5%80%80%80",
    b"%00",
    b"a%00b",
    b"%",
    b"%g1",
    b"%2",
    b"%u0041",
]


class Request(NamedTuple):
    """The bytes of a request, and whether it must be rejected with a 4xx."""

    sent: bytes
    rejected: bool = False


class Description:
    """The paths and parameters of the API description."""

    def __init__(self, document: Any, cursor: str) -> None:
        self.cursor = cursor
        self.paths = [path for path, operations in document["paths"].items() if "get" in operations]
        self.parameters = [
            (path, parameter["name"], parameter["schema"].get("type") == "array")
            for path in self.paths
            for parameter in document["paths"][path]["get"]["parameters"]
            if parameter["in"] == "query"
        ]
        self.numbers = [
            (path, parameter["name"])
            for path in self.paths
            for parameter in document["paths"][path]["get"]["parameters"]
            if parameter["in"] == "query" and parameter["schema"].get("type") == "integer"
        ]

    def path(self, chance: random.Random, hostile: bool = False) -> bytes:
        """A path, with valid or hostile values for its parts."""
        paths = [path for path in self.paths if "{" in path] if hostile else self.paths
        path: bytes = chance.choice(paths).encode()
        for name, valid in ((b"source", b"coingecko"), (b"source_id", b"bitcoin"), (b"id", b"1")):
            part = _value(chance) if hostile else valid
            path = path.replace(b"{%b}" % name, part)
        return path


Make = Callable[[random.Random, Description], Request]


def _value(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return chance.choice(INVALID_TEXT)
    return quote(chance.choice(HOSTILE), safe="").encode()


def _get(target: bytes, *headers: bytes, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([b"%b %b %b" % (method, target, version), b"Host: x", *headers, b"", b""])


def hostile_value(chance: random.Random, description: Description) -> Request:
    path, name, _ = chance.choice(description.parameters)
    path = path.replace("{source}", "csv").replace("{source_id}", "x").replace("{id}", "1")
    value = _value(chance)
    return Request(_get(f"{path}?{name}=".encode() + value), rejected=value in INVALID_TEXT)


def hostile_name(chance: random.Random, description: Description) -> Request:
    name = _value(chance) or b"x"
    return Request(_get(description.path(chance) + b"?limit%b=1" % name.replace(b"&", b"")), rejected=True)


def repeated(chance: random.Random, description: Description) -> Request:
    path, name, many = chance.choice(description.parameters)
    path = path.replace("{source}", "csv").replace("{source_id}", "x").replace("{id}", "1")
    return Request(_get(f"{path}?{name}=1&{name}=2".encode()), rejected=not many)


def absurd_number(chance: random.Random, description: Description) -> Request:
    path, name = chance.choice(description.numbers)
    value = chance.choice(["0", "-1", "1.0", "1e3", "٣", "+1", "01", "0x1", "2147483648", "9" * 30, "", " 1"])
    rejected = name in {"limit", "page"}
    return Request(_get(f"{path.replace('{id}', '1')}?{name}={quote(value)}".encode()), rejected)


def forged_cursor(chance: random.Random, description: Description) -> Request:
    cursor = bytearray(description.cursor.encode())
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(4):
            case 0:
                cursor[chance.randrange(len(cursor))] ^= 1 << chance.randrange(8)
            case 1:
                del cursor[chance.randrange(len(cursor)) :]
                cursor += b"A"
            case 2:
                cursor += chance.randbytes(chance.randint(1, 40))
            case _:
                cursor.insert(chance.randrange(len(cursor)), chance.randrange(256))
    same = bytes(cursor) == description.cursor.encode()
    return Request(_get(b"/data?cursor=" + quote(bytes(cursor), safe="").encode()), rejected=not same)


def hostile_path(chance: random.Random, description: Description) -> Request:
    return Request(_get(description.path(chance, hostile=True)))


def bare_bytes_in_the_target(chance: random.Random, description: Description) -> Request:
    target = description.path(chance) + b"?q=" + chance.randbytes(chance.randint(1, 60))
    return Request(_get(target))


def no_such_path(chance: random.Random, description: Description) -> Request:
    target = description.path(chance) + chance.choice(
        [b"/", b"//", b"/..", b";a=b", b"/%2e%2e/", b".json", b"%20"]
    )
    return Request(_get(target))


def odd_target(chance: random.Random, description: Description) -> Request:
    path = description.path(chance)
    return Request(
        _get(
            chance.choice(
                [
                    b"http://elsewhere.example" + path,
                    b"https://user:password@elsewhere.example:99999" + path,
                    b"//elsewhere.example" + path,
                    b"*",
                    b"elsewhere.example:443",
                    b"http://",
                    b"?limit=1",
                    path[1:],
                    b"\\" + path,
                    path + b"#part",
                    path + b" " + path,
                    b"/" * 200,
                    b"/" + b"a" * 20_000,
                ]
            )
        )
    )


def odd_method(chance: random.Random, description: Description) -> Request:
    methods = [b"BREW", b"get", b"TRACE", b"PROPFIND", b"PUT", b"PATCH", b"DELETE", b"CONNECT", b"M-SEARCH"]
    odd = [b"X" * 5_000, b"G\x00T", b"G(T", b"", b"\xff", b"GET\t", b"SELECT"]
    return Request(_get(description.path(chance), method=chance.choice(methods + odd)), rejected=True)


def odd_version(chance: random.Random, description: Description) -> Request:
    versions = [
        b"HTTP/0.9",
        b"HTTP/2.0",
        b"HTTP/9.9",
        b"HTTP/1.",
        b"http/1.1",
        b"HTTP/1.1 ",
        b"HTTP/-1",
        b"X",
    ]
    version = chance.choice([*versions, b"HTTP/1.0"])
    return Request(_get(description.path(chance), version=version))


def odd_header(chance: random.Random, description: Description) -> Request:
    header = chance.choice(
        [
            b"X-Giant: " + b"x" * 100_000,
            b"\r\n".join(b"X-%d: %d" % (n, n) for n in range(9_000)),
            b"X-Nul: a\x00b",
            b"X-Bell: \x07",
            b"no colon",
            b": no name",
            b"X Space : 1",
            b" X-Folded: 1",
            b"X-A: 1\r\n folded",
            b"X-Bare: a\rb",
            b"X-Bare: a\nX-B: c",
            b"Host: second",
            b"Host: \xff\xfe",
            b"X-Request-ID: " + quote(chance.choice(HOSTILE)).encode()[:300],
            b"X-Request-ID: <script>\xff",
            b'If-None-Match: "\xff, W/,, """',
            b"If-None-Match: " + b'"a", ' * 5_000,
            b"Accept-Encoding: gzip;q=9, br;q=x, *;q=-1, ,,,",
            b"Accept-Encoding: " + b"a," * 10_000,
            b"Accept: \xff/\xff",
            b"Range: bytes=9-1,x",
            b"Origin: null\xff",
            b"X-Forwarded-For: '; DROP TABLE runs; --",
            b"Authorization: Bearer \xff\xfe",
            b"Cookie: " + b"a=b; " * 2_000,
            b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x",
            b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: \xff",
            b"Expect: 100-continue",
            b"Expect: " + b"x" * 300,
            b"Connection: " + b"close, " * 500,
            b"Trailer: Content-Length\r\nTE: trailers",
        ]
    )
    return Request(_get(description.path(chance), header))


SMUGGLED = b"GET /tables HTTP/1.1\r\nHost: x\r\n\r\n"


def smuggling(chance: random.Random, description: Description) -> Request:
    method = chance.choice([b"GET", b"POST", b"HEAD", b"PUT"])
    headers, body = chance.choice(
        [
            ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], b"0\r\n\r\n" + SMUGGLED),
            ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], b"0\r\n\r\n" + SMUGGLED),
            ([b"Content-Length: 0", b"Content-Length: 39"], SMUGGLED),
            ([b"Content-Length: 39, 39"], SMUGGLED),
            ([b"Content-Length: +5"], b"12345"),
            ([b"Content-Length: -1"], b""),
            ([b"Content-Length: 0x5"], b"12345"),
            ([b"Content-Length: 99999999999999999999999"], b""),
            ([b"Content-Length: 1000000"], b"x" * 1_000),
            ([b"Content-Length:"], b""),
            ([b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
            ([b"Transfer-Encoding: chunked"], b"zz\r\n\r\n"),
            ([b"Transfer-Encoding: chunked"], b"ffffffffffffffffff\r\nx"),
            ([b"Transfer-Encoding: chunked"], b"5;" + b"x" * 20_000 + b"\r\nhello\r\n0\r\n\r\n"),
            ([b"Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
            ([b"Transfer-Encoding: chunked, identity"], b"0\r\n\r\n"),
            ([b"Transfer-Encoding: identity"], SMUGGLED),
            ([b"Transfer-Encoding : chunked"], b"0\r\n\r\n"),
            ([b"Transfer-Encoding:\x0bchunked"], b"0\r\n\r\n"),
            ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], b"0\r\n\r\n"),
        ]
    )
    return Request(_get(description.path(chance), *headers, method=method) + body, rejected=True)


def run_without_the_token(chance: random.Random, description: Description) -> Request:
    del description
    token = chance.choice(
        [b"Bearer ", b"Bearer x", b"Basic eDp5", b"Bearer \xff", b"bearer a-token", b"Bearer " * 9]
    )
    body = chance.randbytes(chance.randint(0, 2_000))
    headers = [b"Authorization: " + token, b"Content-Length: %d" % len(body)]
    return Request(_get(b"/runs", *headers, method=b"POST") + body, rejected=True)


def noise(chance: random.Random, description: Description) -> Request:
    del description
    return Request(b"\x01" + chance.randbytes(chance.randint(1, 3_000)) + b"\r\n\r\n", rejected=True)


def damaged(chance: random.Random, description: Description) -> Request:
    # Never in the final line ends: test_protocol.py covers incomplete requests.
    request = bytearray(_get(description.path(chance) + b"?limit=3", b"Accept: */*"))
    for _ in range(chance.randint(1, 3)):
        request[chance.randrange(len(request) - 4)] = chance.choice(b"\x00\x0b\x7f\x80\xff %&=?/:")
    return Request(bytes(request))


KINDS: list[Make] = [
    hostile_value,
    hostile_name,
    repeated,
    absurd_number,
    forged_cursor,
    hostile_path,
    bare_bytes_in_the_target,
    no_such_path,
    odd_target,
    odd_method,
    odd_version,
    odd_header,
    smuggling,
    run_without_the_token,
    noise,
    damaged,
]


async def test_malformed_requests_get_no_5xx_and_change_nothing(
    database_url: str, connection: Connection
) -> None:
    wrong: list[str] = []
    seen: Counter[tuple[str, int]] = Counter()
    async with live_service(database_url) as service:
        before = await contents(connection)
        description = await _description(service.url)
        chance = random.Random(6)
        requests = [
            (make, make(chance, description)) for _ in range(REQUESTS // len(KINDS) + 1) for make in KINDS
        ]
        waiting = iter(requests)

        async def send() -> None:
            for make, request in waiting:
                outcome = await _send(service.url, request)
                seen[make.__name__, outcome.status] += 1
                if outcome.wrong:
                    wrong.append(f"{make.__name__}: {outcome.wrong}: {request.sent[:300]!r}")

        await asyncio.gather(*(send() for _ in range(AT_ONCE)))
        after = await contents(connection)
        async with aiohttp.ClientSession(service.url) as client, client.get("/health") as response:
            assert response.status == 200
    assert wrong == []
    assert after == before
    assert [event for event in service.log if event["level"] in {"error", "critical"}] == []
    # They are rejected for many reasons, and some are valid.
    assert {200, 400, 401, 404, 405, 414, 431} <= {status for _, status in seen}, seen


class Outcome(NamedTuple):
    """The status of a response, 0 for none, and what is wrong with it."""

    status: int
    wrong: str = ""


async def _send(url: str, request: Request) -> Outcome:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(request.sent)
            status, headers, body = await _response(reader, head=request.sent.startswith(b"HEAD"))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        return Outcome(0, f"no response: {error!r}")
    except TimeoutError:
        return Outcome(0, "no response in time")
    finally:
        writer.transport.abort()
    return Outcome(status, _wrong(request, status, headers, body))


async def _response(reader: asyncio.StreamReader, *, head: bool) -> tuple[int, dict[str, str], bytes]:
    while True:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        if status >= 200:
            break
    bare = head or status in {204, 304}
    return status, headers, b"" if bare else await reader.readexactly(int(headers.get("content-length", "0")))


def _wrong(request: Request, status: int, headers: dict[str, str], body: bytes) -> str:
    if status >= 500 or (request.rejected and status < 400):
        return f"answered with {status}: {body[:200]!r}"
    if status >= 400:
        if "x-request-id" not in headers:
            return f"{status} without a request id: {headers}"
        if "default-src 'none'" in headers.get("content-security-policy", ""):
            # A document of the page, which shows a problem to people.
            return ""
        if headers.get("content-type") != "application/problem+json":
            return f"{status} without a problem document: {headers}"
        if body and json.loads(body)["status"] != status:
            return f"{status} with another problem: {body[:200]!r}"
    return ""


async def _description(url: str) -> Description:
    async with aiohttp.ClientSession(url) as client:
        async with client.get("/openapi.json") as response:
            document = await response.json()
        async with client.get("/data?limit=1") as response:
            cursor = (await response.json())["pagination"]["next_cursor"]
    return Description(document, cursor)


async def contents(connection: Connection) -> dict[str, str]:
    """A digest of all rows of every table."""
    return {
        table: await connection.fetchval(
            f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t"
        )
        for table in TABLES
    }
