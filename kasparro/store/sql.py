"""The hand-written SQL of `sql/`: each file's statements by name.

Each statement follows a `-- name: NAME --` line. A file may be a Jinja template; the imports of macros above
its first statement hold for all of them. The variables of a template choose between lines and give column
names, from fixed lists, and limits. Values never enter the text: they are written `:name`, and sent as
parameters.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import jinja2
import msgspec

# The variables of a template, each with its value.
Variables: TypeAlias = frozenset[tuple[str, Any]]

_NAME = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n\s*\n+")
_VALUE = re.compile(r"(?<!:):([a-z_0-9]+)\b")
# Where Jinja has something to do.
_JINJA = re.compile(r"\{[{%#]")


class Statement(msgspec.Struct, frozen=True):
    """SQL with numbered parameters, and the names of their values in order."""

    text: str
    names: tuple[str, ...]

    def values(self, named: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters."""
        return [named[name] for name in self.names]


class Template(msgspec.Struct, frozen=True):
    """A statement whose text depends on variables."""

    source: str

    def compose(self, common: Variables = frozenset(), /, **variables: Any) -> Statement:
        """The statement for these variables, which must be hashable.

        `common` has those that many calls share: Python computes the hash of a set once. Raises
        jinja2.UndefinedError if the template needs a variable that is missing.
        """
        return _compose(self.source, common, frozenset(variables.items()))


def folder(name: str) -> Traversable:
    """A folder of `sql/`: inside the package if it is installed, next to it in a checkout."""
    packaged = files("kasparro") / "sql" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / name


@cache
def templates(path: str) -> MappingProxyType[str, Template]:
    """The statements of one file, such as `read/data.sql`, by name."""
    preamble, *parts = _NAME.split(_read(path))
    # Comments above the first name are about the file.
    imports = "".join(line for line in preamble.splitlines(keepends=True) if not line.startswith("--"))
    return MappingProxyType(
        {
            name: Template(imports + body.strip() if _JINJA.search(body) else body.strip())
            for name, body in zip(parts[::2], parts[1::2], strict=True)
        }
    )


def compile_templates() -> None:
    """Compile all templates, which takes a fifth of a second, so that no request waits for it later."""
    for each in ("assets", "load", "operations", "read"):
        for file in folder(each).iterdir():
            for template in templates(f"{each}/{file.name}").values():
                if _JINJA.search(template.source):
                    _compiled(template.source)
    for file in folder("macros").iterdir():
        _environment().get_template(f"macros/{file.name}")


class Statements(Mapping[str, str]):
    """Statements without variables and named values, by name.

    A text is rendered when it is first used. Rendering all of them takes a fifth of a second, and most
    processes use few.
    """

    def __init__(self, sources: Mapping[str, Template]) -> None:
        self._sources = sources
        self._texts: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        text = self._texts.get(name)
        if text is None:
            text = self._texts[name] = _render(self._sources[name].source, {})
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __or__(self, other: "Statements") -> "Statements":
        """The statements of both files."""
        return Statements({**self._sources, **other._sources})


@cache
def statements(path: str) -> Statements:
    """The statements of one file; none of them has variables or named values."""
    return Statements(templates(path))


# Clients choose limit, fields and filters. An entry takes about 6 KB; composing one takes 0.1 to 0.3 ms.
@lru_cache(maxsize=1_024)
def _compose(source: str, common: Variables, variables: Variables) -> Statement:
    numbers: dict[str, int] = {}
    text = _VALUE.sub(
        lambda match: f"${numbers.setdefault(match[1], len(numbers) + 1)}",
        _render(source, dict(common | variables)),
    )
    return Statement(text, tuple(numbers))


def _render(source: str, variables: Mapping[str, Any]) -> str:
    # Most statements are no templates, and compiling one takes a millisecond.
    text = _compiled(source).render(variables) if _JINJA.search(source) else source
    return _BLANK_LINES.sub("\n", text).strip()


@cache
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701 - SQL, not HTML
        loader=jinja2.FunctionLoader(_read),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(path: str) -> str:
    parent, _, name = path.rpartition("/")
    return (folder(parent) / name).read_text(encoding="utf-8")
