"""Reads the user's rules: a TOML file that links and parts coins for good."""

import hashlib
import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import msgspec

from kasparro.errors import SettingsError, one_line
from kasparro.model.asset import RESERVED, Key
from kasparro.model.record import ID_LIMIT, RejectedValue, check_id, slug
from kasparro.settings import Settings

SETTING = "KASPARRO_ASSET_RULES"
SIZE_LIMIT = 4 * 1024 * 1024
_TABLES = {"link": {"rows", "asset", "reason"}, "part": {"rows", "asset", "reason"}}


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Rows that are one coin (a link) or are different coins (a part).

    `asset` is the asset that the rows of a link belong to, or that the rows of a part do not belong to.
    """

    rows: tuple[Key, ...]
    asset: str | None = None
    reason: str = ""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a file. They win over all other evidence and over existing links."""

    links: tuple[Rule, ...] = ()
    parts: tuple[Rule, ...] = ()

    @property
    def digest(self) -> str:
        """A digest that does not depend on the layout of the file."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


NO_RULES = Rules()


class _Invalid(Exception):
    # A rule is invalid. The text says where and why.
    pass


def load_rules(settings: Settings) -> Rules:
    """The rules of the file that the settings name. Raises SettingsError."""
    if settings.asset_rules is None:
        return NO_RULES
    return read_rules(settings.asset_rules, settings.source_settings)


def read_rules(path: Path, sources: Collection[str]) -> Rules:
    """The rules of a file; `sources` are the sources that are installed.

    Raises SettingsError, in one line that names the file, the table and the key, and says what is allowed.
    """
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        return _parse(content, sources)
    except OSError as error:
        raise SettingsError(f"{SETTING}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{SETTING}: {path} is not in UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{SETTING}: {path} is not valid TOML: {one_line(error)}") from None
    except _Invalid as error:
        raise SettingsError(f"{SETTING}: {path}: {error}") from None


def _parse(content: bytes, sources: Collection[str]) -> Rules:
    if len(content) > SIZE_LIMIT:
        raise _Invalid(f"it is larger than {SIZE_LIMIT // 1024**2} MB")
    tables = tomllib.loads(content.decode("utf-8-sig"))
    for name in tables:
        if name not in _TABLES:
            raise _Invalid(f"unknown table {name!r}; allowed: [[link]] and [[part]]")
    rules = Rules(
        links=tuple(_rules("link", tables.get("link", []), sources)),
        parts=tuple(_rules("part", tables.get("part", []), sources)),
    )
    _check_links(rules.links)
    _check_parts(rules)
    return rules


def _rules(table: str, given: Any, sources: Collection[str]) -> Iterable[Rule]:
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise _Invalid(f"{table} is written as [[{table}]], once for each rule")
    for number, each in enumerate(given, start=1):
        where = f"[[{table}]] {number}"
        for key in each:
            if key not in _TABLES[table]:
                raise _Invalid(f"{where}: unknown key {key!r}; allowed: rows, asset, reason")
        rows = each.get("rows")
        if not isinstance(rows, list) or not rows or not all(isinstance(row, str) for row in rows):
            raise _Invalid(f'{where}: rows must be a list of texts such as ["coingecko/bitcoin", "csv/btc"]')
        asset = each.get("asset")
        if asset is not None and (not isinstance(asset, str) or not asset or slug(asset) != asset):
            raise _Invalid(f'{where}: asset must be an id in lower case such as "btc-bitcoin"')
        if asset in RESERVED:
            raise _Invalid(f"{where}: asset cannot be {asset!r}, which is a path of the API")
        if asset is not None and len(asset) > ID_LIMIT:
            raise _Invalid(f"{where}: asset is longer than {ID_LIMIT} characters")
        if not isinstance(each.get("reason", ""), str):
            raise _Invalid(f"{where}: reason must be a text")
        if asset is None and len(rows) < 2:
            raise _Invalid(f"{where}: rows must have at least two rows, or asset must be given")
        keys = tuple(_row(where, row, sources) for row in rows)
        if len(set(keys)) < len(keys):
            raise _Invalid(f"{where}: rows has a row twice")
        yield Rule(rows=keys, asset=asset, reason=each.get("reason", ""))


def _row(where: str, text: str, sources: Collection[str]) -> Key:
    source, slash, source_id = text.partition("/")
    if not slash or not source_id:
        raise _Invalid(f"{where}: rows has {text!r}, which is not SOURCE/SOURCE_ID")
    if source not in sources:
        raise _Invalid(
            f"{where}: rows has {text!r}, whose source is unknown; allowed: {', '.join(sorted(sources))}"
        )
    try:
        return source, check_id(source_id)
    except RejectedValue as error:
        raise _Invalid(f"{where}: rows has {text!r}, whose id cannot be: {error.reason}") from None


def _check_links(links: Iterable[Rule]) -> None:
    linked: dict[Key, int] = {}
    assets: dict[str, int] = {}
    for number, rule in enumerate(links, start=1):
        taken: dict[str, Key] = {}
        for row in rule.rows:
            if (other := linked.setdefault(row, number)) != number:
                raise _Invalid(f"[[link]] {number}: {_text(row)} is in [[link]] {other} too")
            if (first := taken.setdefault(row[0], row)) != row:
                raise _Invalid(
                    f"[[link]] {number}: {_text(first)} and {_text(row)} are two ids of one source, "
                    "which never share an asset"
                )
        if rule.asset is not None and (other := assets.setdefault(rule.asset, number)) != number:
            raise _Invalid(f"[[link]] {number}: asset {rule.asset} is in [[link]] {other} too; use one rule")


def _check_parts(rules: Rules) -> None:
    linked = {row: (number, rule) for number, rule in enumerate(rules.links, start=1) for row in rule.rows}
    for number, rule in enumerate(rules.parts, start=1):
        found: dict[int, Key] = {}
        for row in rule.rows:
            if row not in linked:
                continue
            link, its_rule = linked[row]
            if rule.asset is not None and its_rule.asset == rule.asset:
                raise _Invalid(
                    f"[[part]] {number}: {_text(row)} is linked to {rule.asset} by [[link]] {link}"
                )
            if rule.asset is None and (first := found.setdefault(link, row)) != row:
                raise _Invalid(
                    f"[[part]] {number}: {_text(first)} and {_text(row)} are linked by [[link]] {link}"
                )


def _text(row: Key) -> str:
    return "/".join(row)
