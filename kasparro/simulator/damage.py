"""Applies content faults to the records of a response."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Context, Decimal

import msgspec

from kasparro.simulator.coins import Api
from kasparro.simulator.faults import BadRecord, BadRecords, Damage, LostCoins, ScaledPrices, SchemaDrift
from kasparro.simulator.market import stamp

_PRICE: dict[Api, str] = {"coinpaprika": "quotes.USD.price", "coingecko": "current_price"}
_AMOUNTS: dict[Api, tuple[str, ...]] = {
    "coinpaprika": ("quotes.USD.price", "quotes.USD.market_cap", "quotes.USD.volume_24h"),
    "coingecko": ("current_price", "market_cap", "total_volume", "high_24h", "low_24h"),
}
_EXACT = Context(prec=100)
_LONG_NUMBER = b"7" * 400
_LONG_NAME = b'"' + b"A" * 1_000_000 + b'"'


def damaged(records: Sequence[bytes], faults: Sequence[Damage], now: datetime) -> list[bytes]:
    """The records after all faults, applied in order."""
    result = list(records)
    for fault in faults:
        match fault:
            case SchemaDrift():
                result = [_drifted(record, fault) for record in result]
            case LostCoins():
                del result[fault.first - 1 : fault.first - 1 + fault.coins]
            case ScaledPrices():
                result = [_scaled(record, fault) for record in result]
            case BadRecords() if result:
                for number, kind in enumerate(fault.records, start=1):
                    index = number * len(result) // (len(fault.records) + 1)
                    result.insert(index, _bad(kind, records[0], fault.api, now))
    return result


def _bad(kind: BadRecord, good: bytes, api: Api, now: datetime) -> bytes:
    if kind == "duplicate":
        return good
    if kind == "not-an-object":
        return b'"a string among the records"'
    if kind == "missing-id":
        return edited(good, "id", None)
    if kind == "null-id":
        return edited(good, "id", b"null")
    bad = edited(good, "id", f'"bad-{kind}"'.encode())
    match kind:
        case "string-price":
            return edited(bad, _PRICE[api], b'"not a number"')
        case "negative-price":
            return edited(bad, _PRICE[api], b"-1.5")
        case "future":
            return edited(bad, "last_updated", f'"{stamp(now + timedelta(days=10), "seconds")}"'.encode())
        case "long-number":
            return edited(bad, _PRICE[api], _LONG_NUMBER)
        case "nan":
            return edited(bad, _PRICE[api], b"NaN")
        case "long-name":
            return edited(bad, "name", _LONG_NAME)
        case "lone-surrogate":
            return edited(bad, "name", b'"lone \\ud800 surrogate"')
        case "nul":
            return edited(bad, "name", b'"nul \\u0000 inside"')


def edited(record: bytes, path: str, value: bytes | None, *, name: str | None = None) -> bytes:
    """A JSON object with the field at `path` replaced, renamed or, without a value, removed.

    All other values keep their text. An object without the field stays as it is.
    """
    step, _, rest = path.partition(".")
    fields = {key: bytes(raw) for key, raw in _fields(record).items()}
    if step not in fields:
        return record
    if rest:
        fields[step] = edited(fields[step], rest, value, name=name)
    elif value is None:
        del fields[step]
    else:
        fields = {
            (name or key) if key == step else key: value if key == step else raw
            for key, raw in fields.items()
        }
    return b"{" + b",".join(msgspec.json.encode(key) + b":" + raw for key, raw in fields.items()) + b"}"


def _fields(record: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a JSON object; none for any other value."""
    if not record.startswith(b"{"):
        return {}
    return msgspec.json.decode(record, type=dict[str, msgspec.Raw])


def _drifted(record: bytes, fault: SchemaDrift) -> bytes:
    value = _value(record, fault.field)
    if value is None:
        return record
    match fault.change:
        case "drop":
            return edited(record, fault.field, None)
        case "null":
            return edited(record, fault.field, b"null")
        case "retype":
            return edited(record, fault.field, _retyped(value))
        case "rename":
            return edited(record, fault.field, value, name=fault.to)
        case "copy":
            # The copy follows directly, as part of the value's text.
            return edited(record, fault.field, value + b"," + msgspec.json.encode(fault.to) + b":" + value)


def _scaled(record: bytes, fault: ScaledPrices) -> bytes:
    for path in _AMOUNTS[fault.api]:
        value = _value(record, path)
        if value is not None and value[:1] in b"-0123456789":
            scaled = _EXACT.multiply(Decimal(value.decode()), Decimal(fault.factor))
            record = edited(record, path, str(scaled).encode())
    return record


def _value(record: bytes, path: str) -> bytes | None:
    """The text of the value at `path`; None if there is none."""
    value = record
    for step in path.split("."):
        raw = _fields(value).get(step)
        if raw is None:
            return None
        value = bytes(raw)
    return value


def _retyped(value: bytes) -> bytes:
    """Numbers become strings; other values are wrapped in an object."""
    if value[:1] in b"-0123456789":
        return b'"' + value + b'"'
    return b'{"value":' + value + b"}"
