"""Which content coding a client gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.web.http.encodings import choose_encoding
from kasparro.web.http.headers import matches


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (b"", "identity"),
        (b"gzip", "gzip"),
        (b"x-gzip", "gzip"),
        (b"GZIP", "gzip"),
        (b"gzip, deflate, br, zstd", "zstd"),
        (b"gzip, deflate, br", "gzip"),
        (b"zstd;q=0.5, gzip;q=0.8", "gzip"),
        (b"zstd;q=0, gzip;q=0", "identity"),
        (b"gzip;q=0.001", "gzip"),
        (b"*", "zstd"),
        (b"*;q=0", "identity"),
        (b"zstd;q=0, *", "gzip"),
        (b"identity", "identity"),
        (b"identity, gzip;q=0.5", "identity"),
        (b"identity;q=0.5, gzip;q=0.5", "gzip"),
        (b"br", "identity"),
        (b"gzip ; q=1.000", "gzip"),
        (b"gzip;q=2", "identity"),
        (b"gzip;level=9", "identity"),
        (b"\xff, gzip", "gzip"),
    ],
)
def test_the_coding_that_a_client_likes_best(accepted: bytes, coding: str) -> None:
    assert choose_encoding(accepted) == coding


@given(st.binary(max_size=50))
def test_whatever_is_accepted_there_is_a_coding(accepted: bytes) -> None:
    assert choose_encoding(accepted) in {"zstd", "gzip", "identity"}


@pytest.mark.parametrize(
    ("told", "same"),
    [
        (b'"a"', True),
        (b'W/"a"', True),
        (b' "b" ,W/"a"', True),
        (b"*", True),
        (b"", False),
        (b"a", False),
        (b'"A"', False),
        (b'"a', False),
        (b'"b"', False),
        (b'"a-gzip"', False),
    ],
)
def test_tags_are_compared_weakly(told: bytes, same: bool) -> None:
    assert matches(told, b'"a"') is same
