"""The unified record, and the readers that turn what a source wrote into its exact values."""

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import repeat

import msgspec

# Longest texts that are kept; real ids and names stay far below, and an index row must fit 2,700 bytes.
ID_LIMIT = 200
SYMBOL_LIMIT = 200
NAME_LIMIT = 1_000
# Digits on either side of the point. Supplies reach 1e33 and binary floats written out 55 places.
WHOLE_DIGITS = 60
FRACTION_DIGITS = 100
RANK_LIMIT = 2**31 - 1
# No market is older than Bitcoin's first block (3 January 2009), and clocks of upstreams run ahead a little.
EARLIEST = datetime(2009, 1, 1, tzinfo=UTC)
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


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One coin as one source reported it at one moment.

    Numbers are plain decimal digits as `digits` gives them. `has_source_time` says whether `observed_at`
    came from the source. Otherwise it is the time of fetching, which the content hash leaves out.
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


# The fields that say which coin a record is of and where it stands in its source's list. A file may have no
# column for them; the newest known value of the coin then stands.
LABELS = ("symbol", "name", "rank")

# What counts of rejects call all refused files; their reasons are too many to count by.
FILE_REJECTED = "file rejected"


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """One record refused: why, which field, where it stood (file and line of an archive) and its raw text.

    A file that is refused, whole or from some row on, is one reject: `location` names it, and `line` is None.
    `setting` is the line of its description that would settle what it leaves open.
    """

    reason: str
    field: str | None = None
    raw: str = ""
    location: str | None = None
    line: int | None = None
    setting: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether a file was refused, and not a record."""
        return self.location is not None and self.line is None

    @property
    def kind(self) -> str:
        """What this reject has in common with others like it: its reason without the value."""
        return FILE_REJECTED if self.is_file else self.reason.partition(":")[0]

    @property
    def summary(self) -> str:
        """The reject of a file in one line: which, why, and what would settle it."""
        why = f"{self.location}: {self.reason}"
        if self.setting is None or self.location is None:
            return why
        return f"{why}; {self.location.rpartition('/')[2]}.toml beside it can tell: {self.setting}"


class RejectedValue(Exception):
    """A record cannot be taken; carries the field and the reason of its `Reject`."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?", re.ASCII)


def canonical_decimal(text: str, field: str) -> str:
    """The exact value of a decimal number in plain notation: no exponent, no needless zeros, `-` only before
    a value below zero.

    Reads JSON's numbers and their usual kin (`+1`, `.5`, `1.`): an optional sign, digits with an optional
    point, an optional exponent. Raises RejectedValue for anything else and for numbers of absurd length.
    """
    if text.isdigit() and text.isascii() and len(text) <= WHOLE_DIGITS:
        return text.lstrip("0") or "0"
    match = _NUMBER.fullmatch(text) if len(text) <= 400 else None
    if match is None or not (match[2] or match[3]):
        raise RejectedValue(field, f"not a number: {_shown(text)}")
    sign, whole, fraction, exponent = match[1], match[2], match[3] or "", match[4]
    if exponent is not None:
        shift = int(exponent)
        if not (whole + fraction).strip("0"):
            return "0"
        # Before so many digits are written out.
        if abs(shift) > 1_000:
            raise RejectedValue(field, f"number out of bounds: {_shown(text)}")
        if shift >= 0:
            fraction = fraction.ljust(shift, "0")
            whole, fraction = whole + fraction[:shift], fraction[shift:]
        else:
            whole = whole.rjust(-shift, "0")
            whole, fraction = whole[:shift], whole[shift:] + fraction
    whole, fraction = whole.lstrip("0"), fraction.rstrip("0")
    if len(whole) > WHOLE_DIGITS or len(fraction) > FRACTION_DIGITS:
        raise RejectedValue(field, f"number out of bounds: {_shown(text)}")
    if not whole and not fraction:
        return "0"
    minus = "-" if sign == "-" else ""
    return f"{minus}{whole or '0'}.{fraction}" if fraction else minus + whole


def check_not_negative(value: str | None, field: str) -> str | None:
    """The value as it is, where it is not below zero. Raises RejectedValue where it is."""
    if value is not None and value[0] == "-":
        raise RejectedValue(field, f"below zero: {_shown(value)}")
    return value


def check_text(value: str, field: str, limit: int) -> str:
    """A name as it is. Raises RejectedValue for what PostgreSQL cannot hold and for absurd lengths."""
    if len(value) > limit:
        raise RejectedValue(field, f"longer than {limit} characters: {_shown(value)}")
    if "\x00" in value:
        raise RejectedValue(field, f"holds a NUL character: {_shown(value)}")
    return value


def check_id(value: str, field: str = "id") -> str:
    """A source's id of a coin as it is. Raises RejectedValue where it is empty, too long or not printable."""
    if not value.strip():
        raise RejectedValue(field, "empty")
    if not value.isprintable() and any(unicodedata.category(c) == "Cc" for c in value):
        raise RejectedValue(field, f"holds a control character: {_shown(value)}")
    return check_text(value, field, ID_LIMIT)


def check_time(value: datetime, field: str, now: datetime) -> datetime:
    """An aware time in UTC. Raises RejectedValue where no market was yet, or it is still to come at `now`."""
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
    """Lower case, words joined by single dashes, as CoinPaprika makes its ids: `bitcoin-cash`."""
    return _NOT_SLUG.sub("-", text.lower()).strip("-")


def compose_id(symbol: str, name: str) -> str:
    """The id of a coin that its source gives none: `slug(symbol)-slug(name)`.

    Raises RejectedValue where neither leaves a letter or digit.
    """
    return check_id("-".join(part for part in (slug(symbol), slug(name)) if part), "id")


# COPY's text format: tab between columns, \N for null, and these characters escaped.
# https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# A record is written in two lines that its position in the batch joins: what tells it from all others, and
# what it tells. Of records that are stored already only the first is ever sent.
KEY_COLUMNS = ("position", "content_hash", "has_source_time", "observed_at", "source_id")
CONTENT_COLUMNS = ("position", "symbol", "name", "rank", *VALUE_FIELDS)


class CopyLines(msgspec.Struct, frozen=True):
    """Records as COPY text, a line each, in the order of `KEY_COLUMNS` and of `CONTENT_COLUMNS`."""

    keys: bytes
    contents: bytes


def copy_cell(value: str | int | None) -> str:
    """A value as COPY's text format writes it."""
    return "\\N" if value is None else str(value).translate(_ESCAPES)


def copy_lines(
    position: int, keys: Sequence[str], contents: Sequence[str], lacks: Sequence[str] = ()
) -> CopyLines:
    """Records that tell their time as COPY text.

    `keys` holds the time and the id of each, `contents` the other values from the symbol on, as `copy_cell`
    gives them, joined by tabs; `position` is the first one's place in its batch. `lacks` names the fields
    that none of them has.
    """
    # Encoding them all at once takes half the time of as many short calls.
    told = "\n".join(map("\t".join, zip(keys, contents, strict=True))).encode().split(b"\n")
    keyed = enumerate(zip(map(_digest, told, repeat(_person(lacks))), keys, strict=True), start=position)
    return CopyLines(
        "".join([f"{place}\t{digest}\tt\t{key}\n" for place, (digest, key) in keyed]).encode(),
        "".join([f"{place}\t{content}\n" for place, content in enumerate(contents, start=position)]).encode(),
    )


def copy_record(record: Record, position: int, lacks: Sequence[str] = ()) -> CopyLines:
    """A record as COPY text; `position` is its place in its batch, `lacks` names the fields that it has not.

    Equal values give equal hashes, because their digits are written in one way only.
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
    told = f"{when}\t{source_id}\t{content}" if record.has_source_time else f"{source_id}\t{content}"
    reported = "t" if record.has_source_time else "f"
    return CopyLines(
        f"{position}\t{_digest(told.encode(), _person(lacks))}\t{reported}\t{when}\t{source_id}\n".encode(),
        f"{position}\t{content}\n".encode(),
    )


def _person(lacks: Sequence[str]) -> bytes:
    # A field that a record lacks is not one that is null. Records that lack none hash as they always have.
    return ",".join(lacks).encode()


def _digest(told: bytes, person: bytes) -> str:
    # The content hash. It covers what the source reports and nothing else.
    return blake2b(told, digest_size=16, person=person).hexdigest()


def _shown(text: str) -> str:
    # A quote of bad input that stays readable in one line of a log or a table.
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
