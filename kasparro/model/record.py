"""The unified record, the checks of its values, and its form for COPY."""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b

import msgspec

# Limits of texts, in characters. Real ids and names are far shorter. An index row is limited to 2,700 bytes.
ID_LIMIT = 200
SYMBOL_LIMIT = 200
NAME_LIMIT = 1_000
# Limits of the digits before and after the decimal point. Supplies reach 1e33, and an exactly written binary
# float can have 55 decimal places.
WHOLE_DIGITS = 60
FRACTION_DIGITS = 100
RANK_LIMIT = 2**31 - 1
# No market is older than the first block of Bitcoin (3 January 2009).
EARLIEST = datetime(2009, 1, 1, tzinfo=UTC)
# The clocks of upstreams may be fast by this much.
CLOCK_TOLERANCE = timedelta(minutes=10)

VALUE_FIELDS = (
    "price_usd",
    "market_cap_usd",
    "volume_24h_usd",
    "circulating_supply",
    "total_supply",
    "max_supply",
    "percent_change_1h",
    "percent_change_24h",
    "percent_change_7d",
)


class InvalidValue(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A value that its field cannot have. The record is accepted with null instead.

    `field` is the record's field and `reason` says what is wrong, with the value. `location` is the file of
    an archive. `place` finds the record: the id of a coin, or the line in the file.
    """

    field: str
    reason: str
    place: str
    location: str | None = None

    @property
    def kind(self) -> str:
        """The reason without the value, by which invalid values are counted."""
        return self.reason.partition(":")[0]


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One coin as one source reported it at one moment.

    Numbers are decimal digits as `canonical_decimal` returns them. `has_source_time` says whether
    `observed_at` came from the source. If not, it is the time of fetching, which the content hash leaves out.
    `invalid` are the values that became null because their field cannot have them.
    """

    source_id: str
    symbol: str | None
    name: str | None
    observed_at: datetime
    has_source_time: bool = True
    rank: int | None = None
    price_usd: str | None = None
    market_cap_usd: str | None = None
    volume_24h_usd: str | None = None
    circulating_supply: str | None = None
    total_supply: str | None = None
    max_supply: str | None = None
    percent_change_1h: str | None = None
    percent_change_24h: str | None = None
    percent_change_7d: str | None = None
    invalid: tuple[InvalidValue, ...] = ()


# The fields that describe the coin and its rank. An archive may have no column for them. Its records then
# leave the newest known value of the coin unchanged.
LABELS = ("symbol", "name", "rank")

# Rejects are counted by reason. All rejected files are counted under this one, because their own reasons
# are too many.
FILE_REJECTED = "file rejected"


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """A rejected record: the reason, the field, its file and line in an archive, and its raw text.

    A file that is rejected, all of it or from some row on, is also one reject: `location` is the file, and
    `line` is None. `setting` is the line of the file's overrides that would make the file loadable, if known.
    """

    reason: str
    field: str | None = None
    raw: str = ""
    location: str | None = None
    line: int | None = None
    setting: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether a file was rejected, not a single record."""
        return self.location is not None and self.line is None

    @property
    def kind(self) -> str:
        """The reason without its value, by which rejects are counted."""
        return FILE_REJECTED if self.is_file else self.reason.partition(":")[0]

    @property
    def summary(self) -> str:
        """The reject of a file in one line: the file, the reason, and the setting that would help."""
        text = f"{self.location}: {self.reason}"
        if self.setting is None or self.location is None:
            return text
        return f"{text}; {self.location.rpartition('/')[2]}.toml next to it can say: {self.setting}"


class RejectedValue(Exception):
    """A value that makes its record a reject, with the field and the reason."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?", re.ASCII)


def canonical_decimal(text: str, field: str) -> str:
    """The exact value of a number, without exponent, superfluous zeros, or a sign before zero.

    Accepts an optional sign, digits with an optional point, and an optional exponent: the numbers of JSON,
    and also `+1`, `.5` and `1.`. Raises RejectedValue for other texts and for numbers with too many digits.
    """
    if text.isdigit() and text.isascii() and len(text) <= WHOLE_DIGITS:
        return text.lstrip("0") or "0"
    match = _NUMBER.fullmatch(text) if len(text) <= 400 else None
    if match is None or not (match[2] or match[3]):
        raise RejectedValue(field, f"not a number: {_quoted(text)}")
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", match[4]
    if exponent is not None:
        shift = int(exponent)
        if not (whole + fraction).strip("0"):
            return "0"
        # Reject it before its digits are written out, which could fill the memory.
        if abs(shift) > 1_000:
            raise RejectedValue(field, f"number out of bounds: {_quoted(text)}")
        if shift >= 0:
            fraction = fraction.ljust(shift, "0")
            whole, fraction = whole + fraction[:shift], fraction[shift:]
        else:
            whole = whole.rjust(-shift, "0")
            whole, fraction = whole[:shift], whole[shift:] + fraction
    whole, fraction = whole.lstrip("0"), fraction.rstrip("0")
    if len(whole) > WHOLE_DIGITS or len(fraction) > FRACTION_DIGITS:
        raise RejectedValue(field, f"number out of bounds: {_quoted(text)}")
    if not whole and not fraction:
        return "0"
    minus = "-" if sign == "-" else ""
    return f"{minus}{whole or '0'}.{fraction}" if fraction else minus + whole


def check_not_negative(value: str | None, field: str) -> str | None:
    """Return the value. Raises RejectedValue if it is below zero."""
    if value is not None and value[0] == "-":
        raise RejectedValue(field, f"below zero: {_quoted(value)}")
    return value


def check_text(value: str, field: str, limit: int) -> str:
    """Return the text. Raises RejectedValue if it is too long or has a NUL, which PostgreSQL cannot store."""
    if len(value) > limit:
        raise RejectedValue(field, f"longer than {limit} characters: {_quoted(value)}")
    if "\x00" in value:
        raise RejectedValue(field, f"contains a NUL character: {_quoted(value)}")
    return value


def check_id(value: str, field: str = "id") -> str:
    """Return the id of a coin. Raises RejectedValue if it is empty, too long or has control characters."""
    if not value.strip():
        raise RejectedValue(field, "empty")
    if not value.isprintable() and any(unicodedata.category(c) == "Cc" for c in value):
        raise RejectedValue(field, f"contains a control character: {_quoted(value)}")
    return check_text(value, field, ID_LIMIT)


def check_time(value: datetime, field: str, now: datetime) -> datetime:
    """Return an aware time in UTC.

    Raises RejectedValue if it is before EARLIEST, or after `now` by more than CLOCK_TOLERANCE.
    """
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise RejectedValue(field, f"out of bounds: {value.isoformat()}") from None
    if utc < EARLIEST:
        raise RejectedValue(field, f"before {EARLIEST:%Y}: {utc.isoformat()}")
    if utc > now + CLOCK_TOLERANCE:
        raise RejectedValue(field, f"in the future: {utc.isoformat()}")
    return utc


_NOT_SLUG = re.compile(r"[\W_]+")


def slug(text: str) -> str:
    """The text in lower case with dashes between words, as in the ids of CoinPaprika: `bitcoin-cash`."""
    return _NOT_SLUG.sub("-", text.lower()).strip("-")


def compose_id(symbol: str, name: str) -> str:
    """The id of a coin to which its source gives no id: `slug(symbol)-slug(name)`.

    Raises RejectedValue if neither has a letter or digit.
    """
    return check_id("-".join(part for part in (slug(symbol), slug(name)) if part), "id")


# The text format of COPY: tabs between columns, \N for null, and these characters escaped.
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# A record becomes a line of keys and a line of contents with the same position in the batch. The keys decide
# whether the record is new. Contents are sent only for new records.
KEY_COLUMNS = ("position", "content_hash", "has_source_time", "observed_at", "source_id")
CONTENT_COLUMNS = ("position", "symbol", "name", "rank", *VALUE_FIELDS)


class CopyLines(msgspec.Struct, frozen=True):
    """Records as COPY text, one line each, with the columns `KEY_COLUMNS` and `CONTENT_COLUMNS`."""

    keys: bytes
    contents: bytes


def copy_cell(value: str | int | None) -> str:
    """A value in the text format of COPY."""
    return "\\N" if value is None else str(value).translate(_ESCAPES)


def copy_lines(
    position: int, keys: Sequence[str], contents: Sequence[str], lacks: Sequence[str] = ()
) -> CopyLines:
    """Records whose source reports times, as COPY text.

    `keys` are the time and the id of each record, and `contents` the other values from the symbol on: results
    of `copy_cell`, joined by tabs. `position` is the position of the first record in its batch. `lacks` are
    the fields that the layout of the records does not have.
    """
    # Encoding all records in one call takes half the time of one call per record, and a copy of a hash two
    # thirds of the time of a new one.
    reported = "\n".join(map("\t".join, zip(keys, contents, strict=True))).encode().split(b"\n")
    copy_hash = _new_hash(lacks).copy
    digests = []
    for values in reported:
        content_hash = copy_hash()
        content_hash.update(values)
        digests.append(content_hash.hexdigest())
    numbered = enumerate(zip(digests, keys, strict=True), start=position)
    return CopyLines(
        "".join([f"{number}\t{digest}\tt\t{key}\n" for number, (digest, key) in numbered]).encode(),
        "".join(
            [f"{number}\t{content}\n" for number, content in enumerate(contents, start=position)]
        ).encode(),
    )


def copy_record(record: Record, position: int, lacks: Sequence[str] = ()) -> CopyLines:
    """A record as COPY text. `position` is its position in the batch, `lacks` as for `copy_lines`.

    Equal values give equal hashes, because `canonical_decimal` writes equal numbers alike.
    """
    values = (
        record.symbol,
        record.name,
        record.rank,
        record.price_usd,
        record.market_cap_usd,
        record.volume_24h_usd,
        record.circulating_supply,
        record.total_supply,
        record.max_supply,
        record.percent_change_1h,
        record.percent_change_24h,
        record.percent_change_7d,
    )
    when, source_id = record.observed_at.isoformat(" "), copy_cell(record.source_id)
    content = "\t".join([copy_cell(value) for value in values])
    hashed = f"{when}\t{source_id}\t{content}" if record.has_source_time else f"{source_id}\t{content}"
    has_source_time = "t" if record.has_source_time else "f"
    content_hash = _new_hash(lacks)
    content_hash.update(hashed.encode())
    return CopyLines(
        f"{position}\t{content_hash.hexdigest()}\t{has_source_time}\t{when}\t{source_id}\n".encode(),
        f"{position}\t{content}\n".encode(),
    )


def _new_hash(lacks: Sequence[str]) -> blake2b:
    # It covers the values that the source reports, and nothing else. A missing field differs from a null one,
    # so it changes the hash.
    return blake2b(digest_size=16, person=",".join(lacks).encode())


def _quoted(text: str) -> str:
    # Short enough for one line of a log or a table.
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
