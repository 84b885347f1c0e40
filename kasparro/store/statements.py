"""The hand-written SQL: every file's statements by name, read once."""

import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

_NAME = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)


def folder(name: str) -> Traversable:
    """A folder of the SQL tree: inside the package where it is installed, beside it in a checkout."""
    packaged = files("kasparro") / "sql" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / name


@cache
def statements(path: str) -> MappingProxyType[str, str]:
    """The statements of one file, such as `read/data.sql`, each under its `-- name:` line."""
    room, _, name = path.rpartition("/")
    text = (folder(room) / name).read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return MappingProxyType({name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)})
