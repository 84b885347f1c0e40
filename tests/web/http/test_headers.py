"""Entity tags."""

import pytest

from kasparro.web.http.headers import entity_tags

TOKEN = b"-v1f.0123456789ab"


@pytest.mark.parametrize(
    ("if_none_match", "found"),
    [
        (b'"a"', [(b'"a"', b"a")]),
        (b' "b-gzip" ,W/"a"', [(b'"b-gzip"', b"b-gzip"), (b'"a"', b"a")]),
        (b'"a%b"' % TOKEN, [(b'"a%b"' % TOKEN, b"a")]),
        (b'W/"a-gzip%b"' % TOKEN, [(b'"a-gzip%b"' % TOKEN, b"a-gzip")]),
        (b'"a%b-gzip"' % TOKEN, [(b'"a%b-gzip"' % TOKEN, b"a%b-gzip" % TOKEN)]),
        (b"*", []),
        (b"", []),
        (b"a", []),
        (b'"a', []),
    ],
)
def test_entity_tags_and_what_they_say_about_the_content(
    if_none_match: bytes, found: list[tuple[bytes, bytes]]
) -> None:
    assert entity_tags(if_none_match) == found
