"""Parses query strings into structs; each struct also defines what errors and the OpenAPI document allow."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache, partial
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import msgspec

from kasparro.web.http.problems import Problem, bad_parameter

T = TypeVar("T", bound=msgspec.Struct)

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# An item of a comma list: it has no comma, and spaces around it do not count.
_ITEM = r"^[^,]*[^,\s][^,]*$"
# Enough for every JSON number that a double can hold, and for longer ones.
DECIMAL_CHARACTERS = 400
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_FIELD_OF_ERROR = re.compile(r"`\$\.(\w+)")
_AWARE: Any = Annotated[datetime, msgspec.Meta(tz=True)]
# A moment, or a date for the last microsecond, or the first, of that day in UTC.
MomentOrDay = Annotated[datetime, msgspec.Meta(tz=True, extra={"date": "end"})]
MomentOrDayStart = Annotated[datetime, msgspec.Meta(tz=True, extra={"date": "start"})]
# An unescaped plus sign arrives as a space. In front of an offset, a space can be nothing else.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)", re.ASCII)


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a route without parameters."""


class _Parameter(msgspec.Struct, frozen=True):
    is_list: bool
    is_choice: bool
    allowed: str
    required: bool
    # Converts the text of a value. Raises ValueError if it is not valid.
    parse: Callable[[str], Any]


def parse(struct: type[T], query: bytes) -> T:
    """The struct with the values of a raw query string.

    Raises Problem (400), with the name of the parameter and what is allowed, if a parameter is unknown,
    missing or repeated without being a list, if its value does not fit, or if it is not UTF-8. The struct's
    `__post_init__` may raise its own Problem for fields that exclude each other.
    """
    values: dict[str, Any] = {}
    if query:
        known = _parameters(struct)
        for pair in query.split(b"&"):
            if pair:
                _add(values, known, pair)
    for name, parameter in _required(struct):
        if name not in values:
            raise bad_parameter(name, f"{name} is missing; allowed: {parameter.allowed}.", parameter.allowed)
    try:
        return msgspec.convert(values, struct)
    except msgspec.ValidationError as error:
        # All names are known, so the error is about a value.
        (name,) = _FIELD_OF_ERROR.findall(str(error))
        raise _invalid(name, values[name], _parameters(struct)[name]) from None


def serialize(struct: msgspec.Struct, **changes: Any) -> str:
    """The query string of a struct with these changes. Defaults are left out."""
    values = given(struct) | changes
    pairs = []
    for name, (encode_name, default) in _names(type(struct)).items():
        if name in values and (value := values[name]) is not None and value != default:
            pairs.append(f"{encode_name}={quote(format_value(value), safe=',')}")
    return "&".join(pairs)


def given(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that differ from their defaults, with their values."""
    # Much faster than getattr for each field: a query gives few of its twenty parameters.
    fields = zip(_names(type(struct)).items(), msgspec.structs.astuple(struct), strict=True)
    return {
        name: value for (name, (_, default)), value in fields if value is not default and value != default
    }


def format_value(value: Any) -> str:
    """The text of a value in a query string, before percent-encoding."""
    match value:
        case bool():
            return "true" if value else "false"
        case tuple():
            return ",".join(value)
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case _:
            return str(value)


def describe(struct: type[msgspec.Struct], location: str) -> list[dict[str, Any]]:
    """The OpenAPI parameters for the struct's fields; `location` is `query` or `path`."""
    _, components = msgspec.json.schema_components([struct])
    required = components[struct.__name__].get("required", ())
    found = []
    for name, field in components[struct.__name__]["properties"].items():
        description, examples = field.pop("description", ""), field.pop("examples", [])
        # An optional field may be null in the struct, but never in a query string.
        schema = next((option for option in field.get("anyOf", ()) if option != {"type": "null"}), field)
        if not schema.get("default"):
            schema.pop("default", None)
        for part in (schema, schema.get("items", {})):
            if "enum" in part:
                part["type"] = "string"
        if schema.get("format") == "decimal":
            schema["type"] = "number"
        if schema.get("format") == "date-time" and _part_of_day(_types(struct)[name]):
            schema = {"anyOf": [schema, {"type": "string", "format": "date"}]}
        parameter: dict[str, Any] = {"name": name, "in": location, "schema": schema}
        if description:
            parameter["description"] = description
        if location == "path" or name in required:
            parameter["required"] = True
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": False}
            schema.setdefault("minItems", 1)
            if "enum" not in schema["items"]:
                schema["items"]["pattern"] = _ITEM
        if examples:
            # In the schema, because Swagger UI would fill in the examples of a parameter.
            schema["examples"] = examples
        if "example" in schema:
            # This one Swagger UI should fill in.
            parameter["example"] = schema.pop("example")
        found.append(parameter)
    return found


def _add(values: dict[str, Any], known: dict[str, _Parameter], pair: bytes) -> None:
    raw_name, _, raw_value = pair.partition(b"=")
    name = _decoded(raw_name, "the query string")
    parameter = known.get(name)
    if parameter is None:
        raise bad_parameter(
            name, f"{_quoted(name)} is no parameter of this route.", ", ".join(known) or "no parameters"
        )
    value = _decoded(raw_value, name)
    if parameter.is_list:
        items = [item.strip() for item in value.split(",")]
        if not all(items):
            raise _invalid(name, value, parameter)
        values.setdefault(name, []).extend(items)
    elif name in values:
        raise bad_parameter(name, f"{name} is given more than once.", parameter.allowed + ", once")
    else:
        try:
            values[name] = parameter.parse(value)
        except ValueError:
            raise _invalid(name, value, parameter) from None


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("not a whole number")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("not a boolean")
    return text == "true"


def _decimal(text: str) -> Decimal:
    if len(text) > DECIMAL_CHARACTERS or not _DECIMAL.fullmatch(text):
        raise ValueError("not a decimal number")
    # Equal values get one form, because the digest in a cursor covers it.
    plain = f"{Decimal(text):f}"
    value = Decimal(plain.rstrip("0") if "." in plain else plain)
    return value or Decimal(0)


def _moment(text: str) -> datetime:
    moment: datetime = msgspec.convert(_LOST_PLUS.sub("+", text), _AWARE)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of bounds") from None


def _moment_or_day(text: str, of_day: time) -> datetime:
    try:
        day = msgspec.convert(text, date)
    except msgspec.ValidationError:
        return _moment(text)
    return datetime.combine(day, of_day, UTC)


def _decoded(raw: bytes, part: str) -> str:
    if b"%" in raw or b"+" in raw:
        if _BAD_ESCAPE.search(raw):
            raise bad_parameter(part, f"{part} has a % without two hexadecimal digits after it.", "%25 for %")
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise bad_parameter(part, f"{part} is not UTF-8.", "percent-encoded UTF-8") from None
    if "\x00" in text:
        raise bad_parameter(part, f"{part} contains a NUL character.", "any other character")
    return text


def _invalid(name: str, value: Any, parameter: _Parameter) -> Problem:
    text = ",".join(value) if isinstance(value, list) else str(value)
    given = f"{name} is {_quoted(text)}" if text else f"{name} is empty"
    only_one = "one of these, not a list: " if parameter.is_choice and "," in text else ""
    return bad_parameter(name, f"{given}; allowed: {only_one}{parameter.allowed}.", parameter.allowed)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")


@cache
def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    # msgspec reads the annotations on every call, which takes longer than a page.
    return msgspec.structs.fields(struct)


@cache
def _parameters(struct: type[msgspec.Struct]) -> dict[str, _Parameter]:
    found = {}
    for field in _fields(struct):
        kind = _types(struct)[field.encode_name]
        innermost = _innermost(kind)
        found[field.encode_name] = _Parameter(
            isinstance(innermost, msgspec.inspect.VarTupleType),
            isinstance(innermost, msgspec.inspect.LiteralType),
            _allowed(kind),
            field.required,
            partial(_moment_or_day, of_day=_TIMES_OF_DAY[part])
            if (part := _part_of_day(kind)) is not None
            else _PARSERS.get(type(innermost), str),
        )
    return found


@cache
def _names(struct: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    # Of each field, by name, the name in a query string and the default.
    return {field.name: (field.encode_name, field.default) for field in _fields(struct)}


@cache
def _required(struct: type[msgspec.Struct]) -> list[tuple[str, _Parameter]]:
    return [item for item in _parameters(struct).items() if item[1].required]


@cache
def _types(struct: type[msgspec.Struct]) -> dict[str, msgspec.inspect.Type]:
    return {field.encode_name: msgspec.inspect.type_info(field.type) for field in _fields(struct)}


_PARSERS: dict[type[msgspec.inspect.Type], Callable[[str], Any]] = {
    msgspec.inspect.BoolType: _boolean,
    msgspec.inspect.IntType: _integer,
    msgspec.inspect.DecimalType: _decimal,
    msgspec.inspect.DateTimeType: _moment,
}


def _layers(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    # msgspec wraps a type with a description in Metadata, and an optional one in a Union with None.
    while True:
        yield kind
        if isinstance(kind, msgspec.inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, msgspec.inspect.UnionType):
            kind = next(option for option in kind.types if not isinstance(option, msgspec.inspect.NoneType))
        else:
            return


def _innermost(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    *_, innermost = _layers(kind)
    return innermost


# What a date stands for, by the part of the day.
_TIMES_OF_DAY = {"start": time.min, "end": time.max}


def _part_of_day(kind: msgspec.inspect.Type) -> str | None:
    # The part of a day that a date stands for; None if the parameter takes no dates.
    for layer in _layers(kind):
        if isinstance(layer, msgspec.inspect.Metadata) and "date" in (layer.extra or {}):
            part: str = (layer.extra or {})["date"]
            return part
    return None


def _allowed(kind: msgspec.inspect.Type) -> str:
    match _innermost(kind):
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.DecimalType():
            return "a decimal number"
        case msgspec.inspect.DateTimeType() if (part := _part_of_day(kind)) is not None:
            return (
                "an RFC 3339 time, such as 2024-06-01T12:00:00Z, or a date, such as 2024-06-01, "
                f"for the {part} of that day in UTC"
            )
        case msgspec.inspect.DateTimeType():
            return "an RFC 3339 time, such as 2024-06-01T12:00:00Z"
        case msgspec.inspect.LiteralType(values=values):
            return ", ".join(in_pairs(values))
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return f"{low} to {high} characters"
        case msgspec.inspect.VarTupleType(item_type=item, max_length=most):
            return f"up to {most}, separated by commas, of: {_allowed(item)}"
        case other:
            raise TypeError(f"no query parameter can have this type: {other!r}")


def in_pairs(values: Any) -> list[str]:
    """The values of a Literal in alphabetical order, each next to its opposite: price_usd, -price_usd."""
    return sorted(map(str, values), key=lambda value: (value.lstrip("-"), len(value)))
