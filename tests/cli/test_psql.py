"""psql gets the database of the settings, and no password among its arguments."""

import pytest

from kasparro.cli.psql import without_password
from kasparro.errors import SettingsError


@pytest.mark.parametrize(
    ("url", "bare", "password"),
    [
        ("postgresql://u:p%40ss@h:5/d", "postgresql://u@h:5/d", "p@ss"),
        ("postgresql://u@h/d?password=a+b&sslmode=require", "postgresql://u@h/d?sslmode=require", "a+b"),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql", None),
        ("postgresql://u:p@a:1,b:2/d", "postgresql://u@a:1,b:2/d", "p"),
    ],
)
def test_password_is_no_argument(url: str, bare: str, password: str | None) -> None:
    assert without_password(url) == (bare, password)


def test_password_of_a_key_is_rejected() -> None:
    with pytest.raises(SettingsError, match="sslpassword"):
        without_password("postgresql://h/d?sslpassword=secret")
