"""Reads the overrides of an archive: settings in small TOML files that outrank what the archive says."""

import difflib
import hashlib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from kasparro.model.record import ID_LIMIT, NAME_LIMIT, SYMBOL_LIMIT, RejectedValue, check_id, compose_id
from kasparro.printable import one_line
from kasparro.sources.archives.errors import Guess
from kasparro.sources.archives.files import OpenFiles
from kasparro.sources.archives.numbers import DecimalSign
from kasparro.sources.archives.text import text_codec
from kasparro.sources.archives.times import ORDER_NAMES, Epoch, Order, Stamp, period_words, read_time

FOLDER_FILE = "kasparro.toml"
SUFFIX = ".toml"
SIZE_LIMIT = 64 * 1024
# Overrides need keys of at most two parts and values of at most two levels. The parser's time grows with the
# square of either.
PARTS_LIMIT = 8
DEPTH_LIMIT = 8
# Tokens of TOML. Strings and comments are whole tokens, because signs in them are not structure. A string
# that is never closed extends to the end.
_TOKENS = re.compile(
    r"""
    "{3}[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*(?:"{3,5}|\\?\Z)
    |'{3}[^']*+(?:'(?!'')[^']*+)*(?:'{3,5}|\Z)
    |"[^"\\\n]*+(?:\\.[^"\\\n]*+)*"?
    |'[^'\n]*+'?
    |\#[^\n]*+
    |[^"'\#.\n=,\[\]{}]++
    |(?P<sign>.|\n)
    """,
    re.VERBOSE | re.DOTALL,
)

ColumnField = Literal[
    "source_id",
    "symbol",
    "name",
    "rank",
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
    "observed_at",
    "currency",
    "ignore",
]
_ORDERS: dict[str, Order] = {name: order for order, name in ORDER_NAMES.items()}

_Text = Annotated[str, msgspec.Meta(min_length=1)]


class OverridesRejected(Exception):
    """A TOML file next to an archive is invalid. The text names the file, the key and what is allowed."""


class Coin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one coin of a file."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_LIMIT)] | None = None
    symbol: Annotated[str, msgspec.Meta(min_length=1, max_length=SYMBOL_LIMIT)] | None = None
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LIMIT)] | None = None

    @property
    def source_id(self) -> str:
        """Its id, or one made of symbol and name. Raises RejectedValue if they do not give one."""
        return check_id(self.id) if self.id else compose_id(self.symbol or "", self.name or "")


class Overrides(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The overrides of an archive. What is None is detected from the archive itself."""

    columns: dict[_Text, ColumnField] = {}
    header: tuple[str, ...] | None = None
    coin: Coin | None = None
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3,5}$")] | None = None
    decimal: DecimalSign | None = None
    day_order: Literal["day-first", "month-first", "year-first"] | None = None
    epoch: Epoch | None = None
    timezone: _Text | None = None
    observed_at: str | None = None
    encoding: _Text | None = None
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    period: _Text | None = None
    candle_times: Literal["begin", "end"] | None = None
    pegged_as_usd: bool = False

    @property
    def order(self) -> Order | None:
        """The order of day, month and year, as `times` names it."""
        return _ORDERS[self.day_order] if self.day_order else None

    @property
    def length(self) -> timedelta | None:
        """The length of its candles. Raises LookupError if the text means none, or several."""
        if self.period is None:
            return None
        lengths = period_words(self.period)
        if len(lengths) != 1:
            raise LookupError(self.period)
        return next(iter(lengths))

    @property
    def moment(self) -> Stamp | None:
        """The time of all its figures."""
        return read_time(self.observed_at, None) if self.observed_at else None

    @property
    def digest(self) -> str:
        """A digest that does not depend on the layout of the TOML; empty if there are no overrides."""
        encoded = msgspec.json.encode(self, order="deterministic")
        return "" if encoded == b"{}" else hashlib.sha256(encoded).hexdigest()


NO_OVERRIDES = Overrides()


def with_guesses(overrides: Overrides, guesses: Iterable[Guess]) -> Overrides:
    """Overrides with the values of guesses."""
    values: dict[str, Any] = msgspec.to_builtins(overrides)
    for guess in guesses:
        for key, value in guess.values.items():
            field, _, inner = key.partition(".")
            if inner:
                values[field] = values.get(field, {}) | {inner: value}
            elif isinstance(value, Mapping):
                values[field] = values.get(field, {}) | dict(value)
            else:
                values[field] = value
    return msgspec.convert(values, Overrides)


_ALLOWED = {
    "columns": f'"HEADER" = one of {", ".join(ColumnField.__args__)}',  # type: ignore[attr-defined]
    "header": "a list of texts: the column names of a file without a header",
    "coin": "id, symbol and name, each a text",
    "currency": 'an upper-case code such as "USD"',
    "decimal": '"." or ","',
    "day_order": ", ".join(f'"{name}"' for name in _ORDERS),
    "epoch": '"s", "ms", "us" or "ns"',
    "timezone": 'a name such as "Europe/Berlin"',
    "observed_at": "a date or a date and time",
    "encoding": 'an encoding of text such as "utf-8", "utf-16", "cp1252", "iso-8859-2" or "shift_jis"',
    "delimiter": '",", ";", "\\t" or "|"',
    "period": 'a length such as "1m", "15m", "1h", "4h", "1d", "1w" or "1mo"',
    "candle_times": '"begin" or "end": what the time of a candle is',
    "pegged_as_usd": "true or false: whether prices in USDT, USDC and other pegged coins count as US dollars",
}


def read_overrides(files: OpenFiles, name: str) -> Overrides:
    """The overrides of the archive `name`. For each key, `NAME.toml` outranks the folder's kasparro.toml.

    Raises OverridesRejected.
    """
    of_folder = _read(files.folder_overrides, FOLDER_FILE)
    of_file = _read(files.file_overrides, one_line(name) + SUFFIX)
    given = {
        field: getattr(of_file, field)
        for field in Overrides.__struct_fields__
        if getattr(of_file, field) != getattr(NO_OVERRIDES, field)
    }
    return msgspec.structs.replace(of_folder, **given)


def _read(file: int | OSError | None, name: str) -> Overrides:
    if file is None:
        return NO_OVERRIDES
    try:
        if isinstance(file, OSError):
            raise file
        content = os.pread(file, SIZE_LIMIT + 1, 0)
    except OSError as error:
        raise OverridesRejected(f"{name}: cannot be read ({error.strerror or error})") from None
    if len(content) > SIZE_LIMIT:
        raise OverridesRejected(f"{name}: longer than {SIZE_LIMIT // 1024} KiB")
    try:
        text = content.decode("utf-8-sig")
        _require_shallow(text)
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise OverridesRejected(f"{name}: not TOML ({one_line(str(error))[:200]})") from None
    for key, value in given.items():
        if key not in _ALLOWED:
            meant = difflib.get_close_matches(key[:60], _ALLOWED, n=1)
            hint = f"did you mean {meant[0]}?" if meant else f"allowed: {', '.join(_ALLOWED)}"
            raise OverridesRejected(f"{name}: unknown key {one_line(key)[:60]!r}; {hint}")
        if not _allowed(key, value):
            raise OverridesRejected(
                f"{name}: {key} is {_quoted(value)}, which is not allowed; allowed: {_ALLOWED[key]}"
            )
    return msgspec.convert({key: _plain(value) for key, value in given.items()}, Overrides)


def _require_shallow(text: str) -> None:
    # Looks at each character once, before a slower parser does.
    parts, depth = 1, 0
    for token in _TOKENS.finditer(text):
        match token["sign"]:
            case ".":
                parts += 1
            case "[" | "{":
                parts, depth = 1, depth + 1
            case "]" | "}":
                parts, depth = 1, depth - 1
            case "\n" | "=" | ",":
                parts = 1
        if parts > PARTS_LIMIT:
            raise ValueError(f"a key has more than {PARTS_LIMIT} parts")
        if depth > DEPTH_LIMIT:
            raise ValueError(f"values are nested more than {DEPTH_LIMIT} deep")


def _quoted(value: Any) -> str:
    # Python does not convert a number of thousands of digits to text.
    try:
        return one_line(repr(value))[:120]
    except ValueError:
        return "a number of thousands of digits"


def _plain(value: Any) -> Any:
    # TOML has its own type for times.
    return value.isoformat() if isinstance(value, date) else value


def _allowed(key: str, value: Any) -> bool:
    try:
        overrides = msgspec.convert({key: _plain(value)}, Overrides)
        _ = overrides.length
        if overrides.timezone:
            ZoneInfo(overrides.timezone)
        if overrides.encoding and text_codec(overrides.encoding) is None:
            return False
        if overrides.coin is not None:
            _ = overrides.coin.source_id
        _ = overrides.moment
    except (msgspec.ValidationError, RejectedValue, LookupError, ValueError, OverflowError, OSError):
        return False
    fields = [field for field in overrides.columns.values() if field != "ignore"]
    return len(set(fields)) == len(fields) and overrides.header != () and value not in ("", {})
