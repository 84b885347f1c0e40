"""The hand-written SQL: every file's statements by name, read once and made for the case at hand."""

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

_NAME = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)
_INCLUDE = re.compile(r"^[ ]*/\* include (\w+) \*/((?: /\* if \w+ \*/)*)[ ]*\n", re.MULTILINE)
_OPTIONAL = re.compile(r"^.*?/\* if .*\n", re.MULTILINE)
_CONDITION = re.compile(r"/\* if (\w+) \*/")
_IDENTIFIER = re.compile(r':"(\w+)"')
_VALUE = re.compile(r"(?<!:):([a-z_0-9]+)\b")


class Statement(msgspec.Struct, frozen=True):
    """SQL with numbered parameters, and the names of the values in their order."""

    text: str
    names: tuple[str, ...]

    def values(self, named: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters."""
        return [named[name] for name in self.names]


def folder(name: str) -> Traversable:
    """A folder of the SQL tree: inside the package where it is installed, beside it in a checkout."""
    packaged = files("kasparro") / "sql" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / name


@cache
def statements(path: str) -> MappingProxyType[str, str]:
    """The statements of one file, such as `read/data.sql`, each under its `-- name:` line, with the lines of
    another in place of `/* include other */`."""
    room, _, name = path.rpartition("/")
    text = (folder(room) / name).read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    found = {name: body.strip() + "\n" for name, body in zip(parts[::2], parts[1::2], strict=True)}

    def included(match: re.Match[str]) -> str:
        # What an include stands under, each of its lines stands under.
        return _INCLUDE.sub(included, found[match[1]]).replace("\n", f"{match[2]}\n")

    return MappingProxyType({name: _INCLUDE.sub(included, body).strip() for name, body in found.items()})


@lru_cache(maxsize=4_096)
def compose(
    text: str, conditions: frozenset[str] = frozenset(), identifiers: tuple[tuple[str, str], ...] = ()
) -> Statement:
    """A statement for one case: without the lines whose `/* if x */` is not among `conditions`, with its
    identifiers in place and its values numbered.

    Identifiers and conditions come from fixed lists; values never enter the text.
    """
    names: dict[str, int] = {}
    chosen = dict(identifiers)

    def kept(line: re.Match[str]) -> str:
        return line[0] if conditions.issuperset(_CONDITION.findall(line[0])) else ""

    text = _OPTIONAL.sub(kept, text + "\n").rstrip()
    text = _IDENTIFIER.sub(lambda match: chosen[match[1]], text)
    text = _VALUE.sub(lambda match: f"${names.setdefault(match[1], len(names) + 1)}", text)
    return Statement(text, tuple(names))
