"""Sends a response to the client, complete or damaged by a delivery fault."""

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


class ResponseWriter:
    """Writes the response to one request."""

    def __init__(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        self._call = call
        self._receive = receive
        self._send = send
        self._transport: asyncio.Transport = scope["state"]["transport"]

    async def send(self, answer: Answer) -> bool:
        """Send the whole response; False if the client disconnected before the end."""
        bodiless = answer.status in (204, 304)
        await self.start(answer, length=None if bodiless else len(answer.body))
        await self.write(b"" if bodiless else answer.body, more=False)
        return not self._transport.is_closing()

    async def start(self, answer: Answer, *, length: int | None) -> None:
        """Send status and headers; without a length the body is chunked."""
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

    async def wait_for_disconnect(self) -> None:
        """Wait until the client or the simulator closes the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def close(self) -> None:
        """Send what was written, then close the connection."""
        self._transport.close()
        await self.wait_for_disconnect()

    async def reset(self) -> None:
        """Close the connection with a TCP reset."""
        connection = self._transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()
        await self.wait_for_disconnect()

    async def drip(self, answer: Answer, bytes_per_second: int) -> bool:
        """Send the response in small pieces; False if the client disconnected before the end."""
        await self.start(answer, length=len(answer.body))
        step = -(-bytes_per_second // _DRIPS_PER_SECOND)
        for start in range(0, len(answer.body), step):
            if start:
                with suppress(TimeoutError):
                    async with timeout(step / bytes_per_second):
                        await self.wait_for_disconnect()
                        return False
            await self.write(answer.body[start : start + step], more=True)
        # A client may disconnect as soon as it has the last piece.
        await self.write(b"", more=False)
        return True

    async def flood(self, megabytes: int) -> None:
        await self.start(Answer(200, b""), length=None)
        await self.write(b"[", more=True)
        blanks = b" " * _CHUNK
        for _ in range(megabytes * 1_000_000 // _CHUNK):
            await self.write(blanks, more=True)
        await self.write(b"]", more=False)


async def deliver(writer: ResponseWriter, fault: Delivery, answer: Answer, upstream: Upstream) -> bool:
    """Send `answer` as the fault changes it, or another response. True if the client got all of `answer`."""
    match fault:
        case faults.Status():
            await writer.send(_status(fault, upstream))
        case faults.Html():
            await writer.send(Answer(200, _page("Just a moment..."), HTML))
        case faults.Truncated():
            await writer.start(answer, length=len(answer.body))
            await writer.write(answer.body[: int(len(answer.body) * fault.fraction)], more=True)
            await writer.close()
        case faults.Slow():
            return await writer.drip(answer, fault.bytes_per_second)
        case faults.Hang():
            await writer.wait_for_disconnect()
        case faults.Reset():
            await writer.reset()
        case faults.Empty():
            await writer.send(Answer(200, b""))
        case faults.NotAnArray():
            await writer.send(Answer(200, b'{"data":[]}'))
        case faults.ContentType():
            return await writer.send(msgspec.structs.replace(answer, content_type=fault.value))
        case faults.GzipGarbage():
            garbage = b"\x1f\x8b\x08" + b"not what a gzip member holds" * 8
            await writer.send(Answer(200, garbage, JSON, (("content-encoding", "gzip"),)))
        case faults.Huge():
            await writer.flood(fault.megabytes)
        case faults.Redirect():
            await writer.send(Answer(fault.code, b"", PLAIN, (("location", fault.location),)))
        case _:
            assert_never(fault)
    return False


def _status(fault: faults.Status, upstream: Upstream) -> Answer:
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
        case "cdn-1015":
            return Answer(fault.code, b"error code: 1015", PLAIN, headers)
        case "cdn-1020":
            return Answer(fault.code, _page("Access denied. Error code: 1020"), HTML, headers)


def _page(title: str) -> bytes:
    return _PAGE % (title.encode(), title.encode())
