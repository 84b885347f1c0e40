"""A bare ASGI app under the service's uvicorn settings: the least work that a response takes.

`python -m tests.bench.bare_app FILE PORT`: FILE holds a `BareResponse` in MessagePack. With a statement, the
app sends it to DATABASE_URL for every request.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvicorn
from starlette.types import Receive, Scope, Send

from kasparro.web.server import uvicorn_config


class BareResponse(msgspec.Struct, frozen=True):
    """A response; a statement's column `lines` goes between the two parts of its body.

    A request for `/data/n` sends the statement with the values number n, any other with the first.
    """

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    body_end: bytes = b""
    statement: str | None = None
    values: Sequence[Sequence[Any]] = ((),)
    connections: int = 1


def main(file: str, port: int) -> None:
    """Serve until killed."""
    response = msgspec.msgpack.decode(Path(file).read_bytes(), type=BareResponse)
    headers = [(name.encode(), value.encode()) for name, value in response.headers]
    start = {"type": "http.response.start", "status": response.status, "headers": headers}
    finish = {"type": "http.response.body", "body": response.body}
    others = [header for header in headers if header[0].lower() != b"content-length"]
    connections: list[asyncpg.Connection[asyncpg.Record]] = []
    free = asyncio.Semaphore(response.connections)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            if response.statement is not None:
                url = os.environ["DATABASE_URL"]
                connections.extend([await asyncpg.connect(url) for _ in range(response.connections)])
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for connection in connections:
                await connection.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif response.statement is None:
            await send(start)
            await send(finish)
        else:
            number = scope["path"].rpartition("/")[2]
            values = response.values[int(number) if number.isdigit() else 0]
            async with free:
                connection = connections.pop()
                (row,) = await connection.fetch(response.statement, *values)
                connections.append(connection)
            body = response.body + row["lines"].encode() + response.body_end
            await send({**start, "headers": [*others, (b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})

    listener = socket.create_server(("127.0.0.1", port))
    uvicorn.Server(uvicorn_config(app, 1)).run([listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
