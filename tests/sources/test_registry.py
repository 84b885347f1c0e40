"""Discovery of sources by entry points."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kasparro.errors import SettingsError, SourceError
from kasparro.sources import registry
from kasparro.sources.archives.source import Archives
from kasparro.sources.base import SourceContext
from tests.support.packages import install_package

SOURCE = """
from typing import Annotated
from kasparro.settings import SourceSettings, Variable, parse_text
from kasparro.sources.base import SourceDefinition

class Settings(SourceSettings, frozen=True, kw_only=True):
    value: Annotated[str, Variable("{setting}", "a value", "none", parse_text)] = ""

SOURCE = SourceDefinition(name="{name}", settings=Settings, build=lambda settings: settings)
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with one source and discover the sources again."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def installed(package: str, point: str, code: str) -> None:
        module = f"module_{len(modules)}"
        modules.append(module)
        install_package(tmp_path, package, {module: code}, {point: f"{module}:SOURCE"})
        registry._discovered.cache_clear()

    yield installed
    registry._discovered.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def test_our_sources_come_in_the_documented_order() -> None:
    assert registry.names() == ("coinpaprika", "coingecko", "csv")
    assert registry.api_names() == ["coinpaprika", "coingecko"]
    assert registry.broken() == []


def test_only_coingecko_is_paged() -> None:
    settings = registry.load_settings({"KASPARRO_COINGECKO_TOP": "300"})

    assert [name for name in registry.names() if registry.is_paged(name)] == ["coingecko"]
    assert [registry.max_pages(settings, name) for name in registry.names()] == [1, 2, 1]


def test_installed_source_follows_ours(install: Install) -> None:
    install("tide", "tide", SOURCE.format(name="tide", setting="KASPARRO_TIDE"))

    assert registry.names() == ("coinpaprika", "coingecko", "csv", "tide")
    assert registry.load_settings({"KASPARRO_TIDE": "x"}).source_settings["tide"].value == "x"  # type: ignore[attr-defined]
    assert registry.unknown_variables({"KASPARRO_TIDE": "x", "KASPARRO_TYDE": "x"}) == {
        "KASPARRO_TYDE": "KASPARRO_TIDE"
    }


@pytest.mark.parametrize(
    ("point", "code", "reason"),
    [
        ("tide", "SOURCE = 1", "TypeError: module_0:SOURCE is no SourceDefinition"),
        ("tide", "", "AttributeError: module 'module_0' has no attribute 'SOURCE'"),
        (
            "tide",
            SOURCE.format(name="ebb", setting="KASPARRO_EBB"),
            "ValueError: the entry point has another name than the source, 'ebb'",
        ),
        (
            "Tide",
            SOURCE.format(name="Tide", setting="KASPARRO_TIDE"),
            "ValueError: a name has up to 40 lower-case letters, digits and _, and starts with a letter",
        ),
        (
            "csv",
            SOURCE.format(name="csv", setting="KASPARRO_TIDE"),
            "ValueError: another package has a source of this name",
        ),
        (
            "tide",
            SOURCE.format(name="tide", setting="KASPARRO_HOME"),
            "ValueError: another setting has the name KASPARRO_HOME",
        ),
        (
            "tide",
            SOURCE.format(name="tide", setting="KASPARRO_TIDE").replace(
                "Settings(SourceSettings,", "Settings(__import__('msgspec').Struct,"
            ),
            "TypeError: Settings is no SourceSettings",
        ),
    ],
    ids=[
        "no definition",
        "no attribute",
        "other name",
        "bad name",
        "taken name",
        "taken setting",
        "other settings",
    ],
)
def test_unusable_definition_is_reported(install: Install, point: str, code: str, reason: str) -> None:
    install("a-package", point, code)

    (broken,) = registry.broken()
    assert (broken.name, broken.package, broken.reason) == (point, "a-package", reason)
    assert registry.names() == ("coinpaprika", "coingecko", "csv")


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (False, "KASPARRO_TIDE cannot be used: invalid literal for int() with base 10: 'x1'"),
        (True, "KASPARRO_TIDE cannot be used"),
    ],
)
def test_error_of_a_parser_names_the_variable(install: Install, secret: bool, message: str) -> None:
    code = SOURCE.format(name="tide", setting="KASPARRO_TIDE")
    install("a-package", "tide", code.replace("parse_text)]", f"int, secret={secret})]"))

    with pytest.raises(SettingsError) as error:
        registry.load_settings({"KASPARRO_TIDE": "x1"})
    assert str(error.value) == message


async def test_source_that_cannot_be_built_fails_with_its_package(install: Install) -> None:
    code = SOURCE.format(name="tide", setting="KASPARRO_TIDE").replace(
        "settings: settings", "settings: 1 / 0"
    )
    install("a-package", "tide", code)
    ours, theirs = registry.build(registry.load_settings({}), ["csv", "tide"])

    assert isinstance(ours, Archives)
    with pytest.raises(SourceError) as error:
        await anext(theirs.extract(SourceContext()))
    assert str(error.value) == (
        "the source tide of the package a-package cannot be used: ZeroDivisionError: division by zero"
    )
