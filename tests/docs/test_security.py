"""The limits on the security page are the program's."""

import re

from kasparro import settings
from kasparro.store import pool
from kasparro.web import middleware, server
from kasparro.web.http import addresses, auth, rate_limit
from kasparro.web.http.connections import ConnectionLimits
from kasparro.web.http.protocol import Limits
from tests.support.documents import read, rows


def test_limits_are_the_program_limits() -> None:
    limits, shares = Limits(), ConnectionLimits.of(server.CONNECTIONS)
    text = read("docs/security.md")
    stated = {name: value for name, value, *_ in rows(text)}
    assert shares.per_client * 4 == shares.reserve * 16 == server.CONNECTIONS
    numbers: dict[str, list[float]] = {
        "connections": [server.CONNECTIONS],
        "time for a request to arrive": [limits.request_s, limits.reserve_s],
        "URL": [limits.url_bytes],
        "headers": [limits.headers, limits.request_bytes],
        "body": [middleware.BODY_BYTES],
        "pipelined requests that wait": [limits.pipelined, limits.pipelined_bytes],
        "lowest speed of a client that reads a response": [limits.drain_bytes, limits.drain_s],
        "unread responses of all clients": [shares.unsent_bytes],
        "clients remembered": [rate_limit.MAX_CLIENTS],
        "wrong admin tokens without `KASPARRO_RATE_LIMIT`": [
            auth.WRONG_SECRETS.requests,
            auth.WRONG_SECRETS.seconds,
        ],
        "secrets": [settings.API_KEY_LENGTH],
        "slow queries": [2, pool.READ_TIMEOUT_S, pool.QUEUED, pool.QUEUE_S],
    }
    assert {name: [float(n) for n in re.findall(r"\d+", stated[name])] for name in numbers} == numbers
    assert f"{addresses.HOPS} hops" in text
