"""Python values as JSON values, and where exactly that is impossible.

msgspec alone would write bytes as base64 and could not say where a value stands that it refuses.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

from perdure.core.errors import PerdureError
from perdure.core.limits import JSON_DEPTH_MAX as DEPTH_MAX

_SCALARS = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})
_TEXT = frozenset({str})
_BYTES = (bytes, bytearray, memoryview)


class Unserialisable(PerdureError):
    """A value cannot be JSON: the message names its type and its place."""


def plain(value: Any) -> Any:
    """Return `value` in terms of None, bool, int, float, str, list and dict, as a copy.

    Knows dataclasses, named tuples, enums, sets, msgspec structs, pydantic models, dates, Decimal
    and UUID. NaN and the infinities become None, as JSON has no such numbers. Raises
    `Unserialisable` for anything else.
    """
    return recorded(value)[0]


def recorded(value: Any) -> tuple[Any, bytes]:
    """Return `value` as `plain` does, and its JSON."""
    if _is_json(value, 0):
        try:
            body = msgspec.json.encode(value)
        except (OverflowError, ValueError):
            pass
        else:
            return msgspec.json.decode(body), body
    value = _plain(value, "$", 0)
    return value, msgspec.json.encode(value)


def _is_json(value: Any, depth: int) -> bool:
    """Say whether a value is made of nothing but JSON's own types: nearly all are."""
    kind = type(value)
    if kind in _JSON_SCALARS:
        return True
    if depth >= DEPTH_MAX:
        return False
    items: Any
    if kind is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        items = value.values()
    elif kind is list:
        items = value
    else:
        return False
    if _JSON_SCALARS.issuperset(map(type, items)):
        return True
    return all(_is_json(item, depth + 1) for item in items)


def _plain(value: Any, path: str, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if depth > DEPTH_MAX:
        raise Unserialisable(f"it is nested deeper than {DEPTH_MAX} levels, or contains itself")
    if isinstance(value, enum.Enum):
        return _plain(value.value, path, depth + 1)
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise Unserialisable(f"the integer at `{path}` does not fit into 64 bits")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        # A set of text has another order in every process, and an agent's digest must not.
        items = [_plain(item, f"{path}{{...}}", depth + 1) for item in value]
        return sorted(items, key=msgspec.json.encode)
    if isinstance(value, Mapping):
        return {
            _key(key, path): _plain(item, f"{path}.{key}", depth + 1) for key, item in value.items()
        }
    if isinstance(value, _SCALARS):
        return msgspec.to_builtins(value)
    fields = _fields(value)
    if fields is not None:
        return _plain(fields, path, depth + 1)
    advice = "; return its text, or where it is kept" if isinstance(value, _BYTES) else ""
    raise Unserialisable(f"`{type(value).__qualname__}` at `{path}` cannot be JSON{advice}")


def _text(value: str, path: str) -> str:
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        raise Unserialisable(f"the text at `{path}` has lone surrogates") from None
    return str.__str__(value)


def _key(key: object, path: str) -> str:
    key = key.value if isinstance(key, enum.Enum) else key
    if isinstance(key, str):
        return _text(key, path)
    if isinstance(key, (int, float, *_SCALARS)) and not isinstance(key, bool):
        return str(msgspec.to_builtins(key))
    raise Unserialisable(f"a key of type `{type(key).__qualname__}` in `{path}` cannot be JSON")


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of an object under the names they have in JSON; None: it has none."""
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        named = {
            each.encode_name: field
            for each in msgspec.structs.fields(value)
            if (field := getattr(value, each.name)) is not msgspec.UNSET
        }
        return tag | named
    if dataclasses.is_dataclass(value):
        names = (each.name for each in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names}
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else None
