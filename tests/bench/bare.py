"""`python -m tests.bench.bare FILE PORT`: the bare ASGI app that always sends the same answer, under the
uvicorn settings of the service. FILE holds the status and the headers as JSON in its first line, then the
body."""

import json
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from kasparro.web.server import configuration


def main(file: str, port: int) -> None:
    """Serve until killed."""
    told, body = Path(file).read_bytes().split(b"\n", 1)
    status, headers = json.loads(told)
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    finish = {"type": "http.response.body", "body": body}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send(start)
            await send(finish)

    listener = socket.create_server(("127.0.0.1", port))
    uvicorn.Server(configuration(app, 1)).run([listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
