"""Query strings into the structs that describe them: what a struct says is what is allowed and documented."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, unquote_to_bytes

import msgspec

from kasparro.web.http.problems import Problem, bad_parameter

T = TypeVar("T", bound=msgspec.Struct)

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# An item of a comma list: a comma would divide it, and blanks around it are left out.
_ITEM = r"^[^,]*[^,\s][^,]*$"
# Every number of JSON that a double can hold, and longer ones.
DECIMAL_CHARACTERS = 400
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_PATH = re.compile(r"`\$\.(\w+)")
_AWARE: Any = Annotated[datetime, msgspec.Meta(tz=True)]
# A moment that may also be given as a date, which stands for the last microsecond of that day in UTC.
MomentOrDay = Annotated[datetime, msgspec.Meta(tz=True, extra={"date": True})]
# A plus sign that was not percent-encoded is a space; before an offset it can be nothing else.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)", re.ASCII)


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of a route that takes none."""


class _Parameter(msgspec.Struct, frozen=True):
    many: bool
    choice: bool
    allowed: str
    required: bool
    # What a value's text means. Raises ValueError where it means nothing.
    read: Callable[[str], Any]


def read(shape: type[T], query: bytes) -> T:
    """The struct that a raw query string tells.

    Raises Problem (400) that names the parameter and what is allowed: for a name that is none of the
    struct's fields, one that is missing, a value that does not fit, a repeated one that is no list, and what
    is not UTF-8. A
    struct's `__post_init__` may raise one of its own for fields that do not go together.
    """
    values: dict[str, Any] = {}
    if query:
        known = _parameters(shape)
        for pair in query.split(b"&"):
            if pair:
                _take(values, known, pair)
    for name, parameter in _parameters(shape).items():
        if parameter.required and name not in values:
            raise bad_parameter(name, f"{name} is missing; allowed: {parameter.allowed}.", parameter.allowed)
    try:
        return msgspec.convert(values, shape)
    except msgspec.ValidationError as error:
        # Names were looked at already, so the error is of a field's value.
        (name,) = _PATH.findall(str(error))
        raise _not_allowed(name, values[name], _parameters(shape)[name]) from None


def write(told: msgspec.Struct, **changes: Any) -> str:
    """The query string that gives this struct with these changes; what is at its default is left out."""
    pairs = []
    for field in _fields(type(told)):
        value = changes.get(field.name, getattr(told, field.name))
        if value not in (field.default, None):
            text = written(value)
            pairs.append(f"{field.encode_name}={quote(text, safe=',')}")
    return "&".join(pairs)


def describe(shape: type[msgspec.Struct], where: str) -> list[dict[str, Any]]:
    """The struct's fields as OpenAPI parameters of the `query` or the `path`."""
    _, components = msgspec.json.schema_components([shape])
    required = components[shape.__name__].get("required", ())
    found = []
    for name, told in components[shape.__name__]["properties"].items():
        description, examples = told.pop("description", ""), told.pop("examples", [])
        # What may be left out is null inside, and no value in a query string.
        schema = next((one for one in told.get("anyOf", ()) if one != {"type": "null"}), told)
        if not schema.get("default"):
            schema.pop("default", None)
        for one in (schema, schema.get("items", {})):
            if "enum" in one:
                one["type"] = "string"
        if schema.get("format") == "decimal":
            schema["type"] = "number"
        if schema.get("format") == "date-time" and _takes_dates(_types(shape)[name]):
            schema = {"anyOf": [schema, {"type": "string", "format": "date"}]}
        parameter: dict[str, Any] = {"name": name, "in": where, "schema": schema}
        if description:
            parameter["description"] = description
        if where == "path" or name in required:
            parameter["required"] = True
        if schema.get("type") == "array":
            parameter |= {"style": "form", "explode": False}
            schema.setdefault("minItems", 1)
            if "enum" not in schema["items"]:
                schema["items"]["pattern"] = _ITEM
        if examples:
            # In the schema, not beside it: there, Swagger UI would fill every field in before the first try.
            schema["examples"] = examples
        if "example" in schema:
            # An example that Swagger UI is meant to fill in.
            parameter["example"] = schema.pop("example")
        found.append(parameter)
    return found


def _take(values: dict[str, Any], known: dict[str, _Parameter], pair: bytes) -> None:
    raw_name, _, raw_value = pair.partition(b"=")
    name = _decoded(raw_name, "the query string")
    parameter = known.get(name)
    if parameter is None:
        raise bad_parameter(
            name, f"{_shown(name)} is no parameter of this route.", ", ".join(known) or "no parameters"
        )
    value = _decoded(raw_value, name)
    if parameter.many:
        items = [item.strip() for item in value.split(",")]
        if not all(items):
            raise _not_allowed(name, value, parameter)
        values.setdefault(name, []).extend(items)
    elif name in values:
        raise bad_parameter(name, f"{name} is given more than once.", parameter.allowed + ", once")
    else:
        try:
            values[name] = parameter.read(value)
        except ValueError:
            raise _not_allowed(name, value, parameter) from None


def _whole_number(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise ValueError("not a whole number")
    return int(text)


def _boolean(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ValueError("not a boolean")
    return text == "true"


def _decimal(text: str) -> Decimal:
    if len(text) > DECIMAL_CHARACTERS or not _DECIMAL.fullmatch(text):
        raise ValueError("not a decimal number")
    # One spelling for one value, as cursors are told by it.
    plain = f"{Decimal(text):f}"
    value = Decimal(plain.rstrip("0") if "." in plain else plain)
    return value or Decimal(0)


def _moment(text: str) -> datetime:
    told: datetime = msgspec.convert(_LOST_PLUS.sub("+", text), _AWARE)
    try:
        return told.astimezone(UTC)
    except OverflowError:
        raise ValueError("out of bounds") from None


def _moment_or_day(text: str) -> datetime:
    try:
        day = msgspec.convert(text, date)
    except msgspec.ValidationError:
        return _moment(text)
    return datetime.combine(day, time.max, UTC)


def written(value: Any) -> str:
    """A value as a query string has it, before percent-encoding."""
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


def _decoded(raw: bytes, where: str) -> str:
    if _BAD_ESCAPE.search(raw):
        raise bad_parameter(
            where, f"{where} holds a % that two hexadecimal digits do not follow.", "%25 for %"
        )
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise bad_parameter(where, f"{where} is not UTF-8.", "percent-encoded UTF-8") from None
    if "\x00" in text:
        raise bad_parameter(where, f"{where} holds a NUL character.", "any other character")
    return text


def _not_allowed(name: str, value: Any, parameter: _Parameter) -> Problem:
    told = ",".join(value) if isinstance(value, list) else str(value)
    said = f"{name} is {_shown(told)}" if told else f"{name} is empty"
    one = "one of these, not a list: " if parameter.choice and "," in told else ""
    return bad_parameter(name, f"{said}; allowed: {one}{parameter.allowed}.", parameter.allowed)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")


@cache
def _fields(shape: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    # Found out from the annotations each time that msgspec is asked, which takes longer than a page.
    return msgspec.structs.fields(shape)


@cache
def _parameters(shape: type[msgspec.Struct]) -> dict[str, _Parameter]:
    found = {}
    for field in _fields(shape):
        described = _types(shape)[field.encode_name]
        kind = _present(described)
        found[field.encode_name] = _Parameter(
            isinstance(kind, msgspec.inspect.VarTupleType),
            isinstance(kind, msgspec.inspect.LiteralType),
            _allowed(described),
            field.required,
            _moment_or_day if _takes_dates(described) else _READERS.get(type(kind), str),
        )
    return found


@cache
def _types(shape: type[msgspec.Struct]) -> dict[str, msgspec.inspect.Type]:
    return {field.encode_name: msgspec.inspect.type_info(field.type) for field in _fields(shape)}


_READERS: dict[type[msgspec.inspect.Type], Callable[[str], Any]] = {
    msgspec.inspect.BoolType: _boolean,
    msgspec.inspect.IntType: _whole_number,
    msgspec.inspect.DecimalType: _decimal,
    msgspec.inspect.DateTimeType: _moment,
}


def _layers(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    # A described type sits in a Metadata, and what may be left out in a Union with None.
    while True:
        yield kind
        if isinstance(kind, msgspec.inspect.Metadata):
            kind = kind.type
        elif isinstance(kind, msgspec.inspect.UnionType):
            kind = next(each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
        else:
            return


def _present(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    *_, innermost = _layers(kind)
    return innermost


def _takes_dates(kind: msgspec.inspect.Type) -> bool:
    return any(
        isinstance(layer, msgspec.inspect.Metadata) and (layer.extra or {}).get("date", False)
        for layer in _layers(kind)
    )


def _allowed(kind: msgspec.inspect.Type) -> str:
    match _present(kind):
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.DecimalType():
            return "a decimal number"
        case msgspec.inspect.DateTimeType() if _takes_dates(kind):
            return (
                "an RFC 3339 time, such as 2024-06-01T12:00:00Z, or a date, such as 2024-06-01, "
                "for the end of that day in UTC"
            )
        case msgspec.inspect.DateTimeType():
            return "an RFC 3339 time, such as 2024-06-01T12:00:00Z"
        case msgspec.inspect.LiteralType(values=values):
            # A value beside its opposite: price_usd, -price_usd.
            return ", ".join(sorted(map(str, values), key=lambda value: (value.lstrip("-"), len(value))))
        case msgspec.inspect.StrType(min_length=low, max_length=high):
            return f"{low} to {high} characters"
        case msgspec.inspect.VarTupleType(item_type=item, max_length=most):
            return f"up to {most}, divided by commas, of: {_allowed(item)}"
        case other:
            raise TypeError(f"a query parameter cannot be described: {other!r}")
