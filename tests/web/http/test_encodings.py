"""Which encoding a client gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kasparro.web.http.encodings import choose_encoding


@pytest.mark.parametrize(
    ("accepted", "encoding"),
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
def test_best_accepted_encoding(accepted: bytes, encoding: str) -> None:
    assert choose_encoding(accepted) == encoding


@given(st.binary(max_size=50))
def test_any_header_gives_an_encoding(accepted: bytes) -> None:
    assert choose_encoding(accepted) in {"zstd", "gzip", "identity"}
