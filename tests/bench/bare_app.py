"""A bare ASGI app under the service's uvicorn settings: the least work that a response takes.

`python -m tests.bench.bare_app FILE PORT`: FILE holds a `BareResponse` in MessagePack. With a statement, the
app sends it to DATABASE_URL on one connection for every request.
"""

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
    """A response; a statement's column `lines` goes between the two parts of its body."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    body_end: bytes = b""
    statement: str | None = None
    values: Sequence[Any] = ()


def main(file: str, port: int) -> None:
    """Serve until killed."""
    response = msgspec.msgpack.decode(Path(file).read_bytes(), type=BareResponse)
    start = {
        "type": "http.response.start",
        "status": response.status,
        "headers": [(name.encode(), value.encode()) for name, value in response.headers],
    }
    finish = {"type": "http.response.body", "body": response.body}
    connection: asyncpg.Connection[asyncpg.Record] | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal connection
        if scope["type"] == "lifespan":
            await receive()
            if response.statement is not None:
                connection = await asyncpg.connect(os.environ["DATABASE_URL"])
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if connection is not None:
                await connection.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif connection is None or response.statement is None:
            await send(start)
            await send(finish)
        else:
            (row,) = await connection.fetch(response.statement, *response.values)
            await send(start)
            body = response.body + row["lines"].encode() + response.body_end
            await send({"type": "http.response.body", "body": body})

    listener = socket.create_server(("127.0.0.1", port))
    uvicorn.Server(uvicorn_config(app, 1)).run([listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
