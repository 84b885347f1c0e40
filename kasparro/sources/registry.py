"""Finds the installed sources: each is an entry point of the group `kasparro.sources`."""

import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

import msgspec

from kasparro import settings as environment
from kasparro.errors import SettingsError, SourceError, one_line
from kasparro.model.batch import Batch
from kasparro.settings import Settings, SourceSettings, Variable
from kasparro.sources.base import AnySource, Source, SourceContext, SourceDefinition

GROUP = "kasparro.sources"
OURS = "kasparro"
# The order of the documentation, which package metadata does not keep. Other sources follow by name.
_LISTED = ("coinpaprika", "coingecko", "csv")


class BrokenSource(msgspec.Struct, frozen=True):
    """An entry point that gives no usable source, and why."""

    name: str
    package: str
    reason: str

    def __str__(self) -> str:
        return f"the source {self.name} of the package {self.package} cannot be used: {self.reason}"


class _Found(msgspec.Struct):
    definitions: dict[str, AnySource] = {}
    packages: dict[str, str] = {}
    broken: list[BrokenSource] = []


@cache
def _discovered() -> _Found:
    found = _Found()
    points = sorted(metadata.entry_points(group=GROUP), key=_position)
    for point in points:
        try:
            found.definitions[point.name] = _definition(point, found.definitions)
            found.packages[point.name] = _package(point)
        except Exception as error:  # noqa: BLE001 - a package may raise anything; the other sources go on
            found.broken.append(BrokenSource(point.name, _package(point), _reason(error)))
    if not any(_package(point) == OURS for point in points):
        raise RuntimeError(
            "Kasparro's own sources are not declared in its package metadata, which is older than its code; "
            "install it again (in a checkout: .venv/bin/pip install --no-deps --no-build-isolation -e .)"
        )
    return found


def _position(point: metadata.EntryPoint) -> tuple[bool, int, str]:
    # Our own come first, so that no other package takes the name or a setting of one.
    listed = _LISTED.index(point.name) if point.name in _LISTED else len(_LISTED)
    return _package(point) != OURS, listed, point.name


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "(unknown)"


def _definition(point: metadata.EntryPoint, found: Mapping[str, AnySource]) -> AnySource:
    """Load a definition. Raises what the package raises, and ValueError if the definition conflicts."""
    definition = point.load()
    if not isinstance(definition, SourceDefinition):
        raise TypeError(f"{point.value} is no SourceDefinition")
    if definition.name != point.name:
        raise ValueError(f"the entry point has another name than the source, {definition.name!r}")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", definition.name):
        raise ValueError("a name has up to 40 lower-case letters, digits and _, and starts with a letter")
    if definition.name in found:
        raise ValueError("another package has a source of this name")
    if not issubclass(definition.settings, SourceSettings):
        raise TypeError(f"{definition.settings.__name__} is no SourceSettings")
    taken = {variable.name for variable in environment.variables(_settings_types(found))}
    for variable in environment.declared(definition.settings).values():
        if variable.name in taken:
            raise ValueError(f"another setting has the name {variable.name}")
    return definition


def definitions() -> dict[str, AnySource]:
    """The installed sources by their names, ours first."""
    return _discovered().definitions


def names() -> tuple[str, ...]:
    """The names of the installed sources."""
    return tuple(definitions())


def api_names() -> list[str]:
    """The names of the installed sources that call an upstream."""
    return [name for name, source in definitions().items() if source.is_api]


def broken() -> list[BrokenSource]:
    """Entry points of installed packages that give no usable source."""
    return _discovered().broken


def _settings_types(sources: Mapping[str, AnySource]) -> dict[str, type[Any]]:
    return {name: source.settings for name, source in sources.items()}


def variables() -> list[Variable]:
    """All environment variables, those of the installed sources included."""
    return environment.variables(_settings_types(definitions()))


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment. Raises SettingsError."""
    try:
        return environment.load(environ, _settings_types(definitions()))
    except SettingsError as error:
        if broken() and str(error).startswith("KASPARRO_SOURCES "):
            raise SettingsError("; ".join([str(error), *map(str, broken())])) from None
        raise


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables whose names begin like ours but are unknown, each with the most similar known name."""
    return environment.unknown(environ, _settings_types(definitions()))


def settings_of(settings: Settings, name: str) -> Any:
    """The settings of one source; its defaults if `settings` has none."""
    found = settings.source_settings.get(name)
    return definitions()[name].settings() if found is None else found


def monthly_calls(settings: Settings, name: str) -> int | None:
    """The call budget a month of one source; None: nothing limits its calls."""
    limit: int | None = settings_of(settings, name).monthly_calls
    return limit


def is_paged(name: str) -> bool:
    """Whether the upstream of a source divides its list into pages."""
    return definitions()[name].max_pages is not None


def max_pages(settings: Settings, name: str) -> int:
    """How many pages of its upstream's list a source fetches at most; 1 if the list has no pages."""
    count = definitions()[name].max_pages
    return 1 if count is None else count(settings_of(settings, name))


class UnavailableSource:
    """Stands for a source whose package failed to build it. Its runs fail with the reason."""

    def __init__(self, broken: BrokenSource) -> None:
        self.name = broken.name
        self._broken = broken

    async def extract(self, context: SourceContext) -> AsyncGenerator[Batch, None]:
        """No batch. Raises SourceError."""
        del context
        raise SourceError(str(self._broken))
        yield  # makes this an async generator, as for every source


def build(settings: Settings, chosen: Iterable[str]) -> list[Source]:
    """The named sources, ready for a run."""
    return [_build(settings, name) for name in chosen]


def _build(settings: Settings, name: str) -> Source:
    try:
        return definitions()[name].build(settings_of(settings, name))
    except Exception as error:  # noqa: BLE001 - a package may raise anything; the other sources go on
        package = _discovered().packages[name]
        return UnavailableSource(BrokenSource(name, package, _reason(error)))
