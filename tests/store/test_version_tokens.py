"""Tokens of data versions in entity tags."""

from kasparro.store import version_tokens
from kasparro.store.version_tokens import VersionTokens

TOKENS = VersionTokens(b"key")


def tag(version: int, tokens: VersionTokens = TOKENS) -> str:
    return f'"5f0c{tokens.token(version)}"'


def test_newest_version_of_several_tags() -> None:
    tags = f'{tag(9)}, W/{tag(17)}, {tag(16)}, "without"'.encode()

    assert TOKENS.newest(tags) == 17


def test_tokens_of_another_database_name_no_version() -> None:
    assert TOKENS.newest(tag(9, VersionTokens(b"other")).encode()) == 0


def test_signature_belongs_to_its_version() -> None:
    forged = tag(9).replace("-v9.", "-v99.")

    assert TOKENS.newest(forged.encode()) == 0
    assert TOKENS.newest(b'"5f0c", *') == 0


def test_a_long_list_costs_no_more_than_a_short_one() -> None:
    tags = ", ".join(tag(number) for number in range(1, 3 * version_tokens.TOKENS)).encode()

    assert TOKENS.newest(tags) == version_tokens.TOKENS
