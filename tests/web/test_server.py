"""The server's process: file descriptors and the connection limit."""

import resource

import pytest

from kasparro.web import server


@pytest.mark.parametrize(
    ("limits", "raised", "connections"),
    [
        ((1_024, 4_096), (4_096, 4_096), 512),
        ((1_024, 1_000_000), (16_384, 1_000_000), 512),
        ((1_024, resource.RLIM_INFINITY), (16_384, resource.RLIM_INFINITY), 512),
        ((128, 128), None, 64),
        ((100_000, 1_000_000), None, 4_096),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, 4_096),
    ],
)
def test_connection_limit_follows_descriptors(
    limits: tuple[int, int], raised: tuple[int, int] | None, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: changes.append(new))
    server._raise_descriptors()
    assert changes == ([] if raised is None else [raised])
    assert server._connection_limit() == connections
