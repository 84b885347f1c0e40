"""Brings an answer to the caller, whole or the way a delivery fault says."""

import socket
import struct
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, assert_never

import msgspec
from starlette.types import Message, Receive, Scope, Send

from kasparro.concurrency import timeout
from kasparro.simulator import faults
from kasparro.simulator.calls import Call
from kasparro.simulator.faults import Delivery
from kasparro.simulator.upstream import HTML, JSON, PLAIN, Answer, Upstream

if TYPE_CHECKING:
    import asyncio

_CHUNK = 65_536
_DRIPS_PER_SECOND = 20
_PAGE = b"<!DOCTYPE html><html><head><title>%b</title></head><body><h1>%b</h1></body></html>\n"


class Line:
    """One request's way back to its caller."""

    def __init__(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._call = call
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport = scope["state"]["transport"]

    async def answer(self, answer: Answer) -> bool:
        """Send all of it; whether the caller was there to the end."""
        bodiless = answer.status in (204, 304)
        await self.start(answer, length=None if bodiless else len(answer.body))
        await self.write(b"" if bodiless else answer.body, more=False)
        return not self._transport.is_closing()

    async def start(self, answer: Answer, *, length: int | None) -> None:
        """Send status and headers; without a length the body goes out in chunks."""
        headers = [
            ("date", format_datetime(datetime.now(UTC), usegmt=True)),
            ("content-type", answer.content_type),
            *answer.headers,
        ]
        if length is not None:
            headers.append(("content-length", str(length)))
        message: Message = {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        self._call.status = answer.status
        await self._send(message)

    async def write(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def gone(self) -> None:
        """Wait until the caller has hung up, or the simulator has."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def cut(self) -> None:
        """Close the connection once what was written is out."""
        self._transport.close()
        await self.gone()

    async def reset(self) -> None:
        """Close the connection with a TCP reset."""
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        await self.gone()

    async def drip(self, answer: Answer, bytes_per_second: int) -> bool:
        """Send it piece by piece; whether the caller waited for the last one."""
        await self.start(answer, length=len(answer.body))
        step = -(-bytes_per_second // _DRIPS_PER_SECOND)
        for place in range(0, len(answer.body), step):
            if place:
                with suppress(TimeoutError):
                    async with timeout(step / bytes_per_second):
                        await self.gone()
                        return False
            await self.write(answer.body[place : place + step], more=True)
        # Who has the last piece may hang up at once.
        await self.write(b"", more=False)
        return True

    async def flood(self, megabytes: int) -> None:
        await self.start(Answer(200, b""), length=None)
        await self.write(b"[", more=True)
        blanks = b" " * _CHUNK
        for _ in range(megabytes * 1_000_000 // _CHUNK):
            await self.write(blanks, more=True)
        await self.write(b"]", more=False)


async def deliver(line: Line, fault: Delivery, answer: Answer, upstream: Upstream) -> bool:
    """Answer the call as the fault wants, from the answer it would have had; whether that went out whole."""
    match fault:
        case faults.Status():
            await line.answer(_refusal(fault, upstream))
        case faults.Html():
            await line.answer(Answer(200, _page("Just a moment..."), HTML))
        case faults.Truncated():
            await line.start(answer, length=len(answer.body))
            await line.write(answer.body[: int(len(answer.body) * fault.keep)], more=True)
            await line.cut()
        case faults.Slow():
            return await line.drip(answer, fault.bytes_per_second)
        case faults.Hang():
            await line.gone()
        case faults.Reset():
            await line.reset()
        case faults.Empty():
            await line.answer(Answer(200, b""))
        case faults.NotAnArray():
            await line.answer(Answer(200, b'{"data":[]}'))
        case faults.ContentType():
            return await line.answer(msgspec.structs.replace(answer, content_type=fault.value))
        case faults.GzipGarbage():
            garbage = b"\x1f\x8b\x08" + b"not what a gzip member holds" * 8
            await line.answer(Answer(200, garbage, JSON, (("content-encoding", "gzip"),)))
        case faults.Huge():
            await line.flood(fault.megabytes)
        case faults.Redirect():
            await line.answer(Answer(fault.code, b"", PLAIN, (("location", fault.location),)))
        case _:
            assert_never(fault)
    return False


def _refusal(fault: faults.Status, upstream: Upstream) -> Answer:
    headers: tuple[tuple[str, str], ...] = ()
    if fault.retry_after is not None:
        when = datetime.now(UTC) + timedelta(seconds=fault.retry_after)
        as_date = fault.retry_after_as == "date"
        headers = (
            ("retry-after", format_datetime(when, usegmt=True) if as_date else str(fault.retry_after)),
        )
    match fault.body:
        case "json":
            body = upstream.error(fault.code, f"The simulator answers {fault.code} here.")
            return Answer(fault.code, body, JSON, headers)
        case "plain":
            return Answer(fault.code, b"Throttled\n", PLAIN, headers)
        case "html":
            return Answer(fault.code, _page(f"{fault.code} from the CDN"), HTML, headers)
        case "cdn-1020":
            return Answer(fault.code, _page("Access denied. Error code: 1020"), HTML, headers)


def _page(title: str) -> bytes:
    return _PAGE % (title.encode(), title.encode())
