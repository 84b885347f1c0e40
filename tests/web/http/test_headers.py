"""Entity tags."""

import pytest

from kasparro.web.http.headers import matches


@pytest.mark.parametrize(
    ("if_none_match", "same"),
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
def test_entity_tags_are_compared_weakly(if_none_match: bytes, same: bool) -> None:
    assert matches(if_none_match, b'"a"') is same
