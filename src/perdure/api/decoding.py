"""Requests as typed values: a body or a query in, a shape out, or every field that is wrong.

Each field is read by itself, so that one answer names all that is wrong. A field that a shape does
not know is wrong where the shape forbids it; else it is left out, and named to who asks. A blank
string is no value: it is refused where one is needed, and reads as null where null may be. An
integer or a boolean may come as a string, as it does in a query.
"""

from __future__ import annotations

import json
import re
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from perdure.api.errors import BLANK, INVALID, Rejected
from perdure.api.limits import BODY_BYTES_MAX
from perdure.core.limits import JSON_DEPTH_MAX, clip, may_be_too_deep, too_deep

NAMED_MAX = 8
"""So many fields that nobody knows are named, and of each name so many characters:"""

NAMED_CHARS_MAX = 80

T = TypeVar("T", bound=msgspec.Struct)

_AS_TEXT = re.compile(r"-?\d{1,19}(\.\d{1,9})?|true|false")
_LENGTH = re.compile(r"of length (>=|<=) (\d+)")
_BOUND = re.compile(r"(>=|<=|<|>) (-?\d+)")
_STEP = re.compile(r"\.(\w+)|\[[^\]]*\]")
_KINDS = {
    "str": "a string",
    "int": "an integer",
    "bool": "true or false",
    "float": "a number",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


class _Field(msgspec.Struct, frozen=True):
    """What is asked of one field."""

    name: str
    type: Any
    required: bool
    may_be_null: bool
    is_text: bool
    choices: tuple[str, ...]


def decode_body(
    body: bytes,
    shape: type[T],
    bytes_max: int = BODY_BYTES_MAX,
    unknown: list[str] | None = None,
) -> T:
    """Return the request in `body`; an empty body reads as an empty object.

    Names that are left out because the shape does not know them are added to `unknown`. Raises
    `Rejected`: 413 too large, 400 no JSON object or one with a name twice, 422 with the fields that
    are wrong.
    """
    if len(body) > bytes_max:
        raise Rejected(413, f"the body has {len(body)} bytes; at most {bytes_max} are taken")
    try:
        value = msgspec.json.decode(body) if body.strip() else {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Rejected(400, f"Bad Request: the body is not JSON: {error}") from None
    except RecursionError:
        value = None
    if value is None or (may_be_too_deep(body) and too_deep(value)):
        expected = f"expected a JSON object nested at most {JSON_DEPTH_MAX} deep"
        raise Rejected(400, f"Bad Request: {expected}")
    if not isinstance(value, dict):
        raise Rejected(400, "Bad Request: expected a JSON object")
    if (twice := _said_twice(body)) is not None:
        raise Rejected(
            400, f"Bad Request: an object of the body has {clip(twice, NAMED_CHARS_MAX)!r} twice"
        )
    return decode_fields(value, shape, unknown)


def _said_twice(body: bytes) -> str | None:
    """Return a name that an object of this JSON has twice: readers differ in which one counts."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in pairs}) < len(pairs):
            found.append(Counter(name for name, _ in pairs).most_common(1)[0][0])

    if body.strip():
        json.loads(body, object_pairs_hook=look, parse_int=len, parse_float=len)
    return found[0] if found else None


def decode_query(
    pairs: Iterable[tuple[str, str]], shape: type[T], unknown: list[str] | None = None
) -> T:
    """Return the request in the parameters of a query; the last of a name counts.

    Names that the shape does not know are added to `unknown`. Raises `Rejected` (422) with the
    parameters that are wrong.
    """
    return decode_fields(dict(pairs), shape, unknown)


def decode_id(text: str) -> int:
    """Return an id from a path.

    Raises `Rejected`: 400 for what is no integer, 404 for one that no id can be.
    """
    if re.fullmatch(r"\d{1,19}", text) is None or not text.isascii():
        raise Rejected(400, "Bad Request: the id in the path must be an integer")
    number = int(text)
    if not 0 < number < 2**63:
        raise Rejected(404, "not found")
    return number


def decode_fields(values: Mapping[str, Any], shape: type[T], unknown: list[str] | None = None) -> T:
    """Return `values` as `shape`; raise `Rejected` (422) with every field that is wrong."""
    taken: dict[str, Any] = {}
    wrong: dict[str, list[str]] = {}
    names = [field.name for field in _fields(shape)]
    extra = [name for name in values if name not in names]
    if shape.__struct_config__.forbid_unknown_fields:
        said = [f"is not known; expected {_or(names)}"]
        wrong = {clip(name, NAMED_CHARS_MAX): said for name in extra[:NAMED_MAX]}
    elif unknown is not None:
        unknown += extra[:NAMED_MAX]
    for field in _fields(shape):
        if field.name in values or field.required:
            _take(field, values.get(field.name), taken, wrong)
    if wrong:
        raise Rejected(422, _sentence(shape, wrong, values) or wrong)
    return shape(**taken)


def _sentence(
    shape: type[msgspec.Struct], wrong: Mapping[str, list[str]], values: Mapping[str, Any]
) -> str | None:
    """Return the one sentence that clients of Norns expect instead of a map, if it is such."""
    always: Mapping[str, str] = getattr(shape, "SAID_IF_WRONG", {})
    missing: Mapping[str, str] = getattr(shape, "SAID_IF_MISSING", {})
    for name, said in wrong.items():
        if name in always:
            return always[name]
        if name in missing and said == [BLANK] and values.get(name) is None:
            return missing[name]
    return None


def _take(field: _Field, value: Any, taken: dict[str, Any], wrong: dict[str, list[str]]) -> None:
    if isinstance(value, str) and not value.strip() and (field.may_be_null or field.is_text):
        value = None
    if value is None and not field.may_be_null:
        wrong[field.name] = [BLANK]
        return
    try:
        taken[field.name] = _convert(value, field.type)
    except msgspec.ValidationError as error:
        wrong[field.name] = [_said(str(error), field)]


def _convert(value: Any, type_: Any) -> Any:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError:
        if isinstance(value, str) and _AS_TEXT.fullmatch(value) and value.isascii():
            return msgspec.convert(value, type_, strict=False)
        raise


def _said(error: str, field: _Field) -> str:
    """Return what was expected, in the words that clients of Norns know where it has some."""
    text, _, path = error.partition(" - at ")
    where = f" at {path.strip('`').removeprefix('$').lstrip('.')}" if path else ""
    unit = "item(s)" if "`array`" in text else "character(s)"
    if found := _LENGTH.search(text):
        return f"should be at {'most' if found[1] == '<=' else 'least'} {found[2]} {unit}{where}"
    if found := _BOUND.search(text):
        words = {
            "<=": "less than or equal to",
            ">=": "greater than or equal to",
            "<": "less than",
            ">": "greater than",
        }
        return f"must be {words[found[1]]} {found[2]}{where}"
    if choices := field.choices if not path else _choices_at(field.type, path):
        return f"{INVALID}: expected {_or(choices)}{where}"
    if found := re.match(r"Expected `([^`]+)`", text):
        kinds = [_KINDS.get(kind.strip(), kind.strip()) for kind in found[1].split("|")]
        return f"{INVALID}: expected {_or(kinds)}{where}"
    return f"{INVALID}: {text[:1].lower()}{text[1:].replace('`', '')}{where}"


def _or(words: Iterable[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last


@cache
def _fields(shape: type[msgspec.Struct]) -> tuple[_Field, ...]:
    hints = get_type_hints(shape, include_extras=True)
    found = []
    for field in msgspec.structs.fields(shape):
        parts = [part for part in _parts(hints[field.name]) if part is not msgspec.UnsetType]
        choices = [choice for part in parts for choice in _choices(part)]
        found.append(
            _Field(
                name=field.encode_name,
                type=hints[field.name],
                required=field.required,
                may_be_null=type(None) in parts,
                is_text=any(_plain(part) in (str, Any) for part in parts) or bool(choices),
                choices=tuple(choices),
            )
        )
    return tuple(found)


def _choices_at(type_: Any, path: str) -> list[Any]:
    """Return what may stand at a place inside a field, as msgspec names it: `$.messages[0].role`.

    None where anything of a kind may.
    """
    parts = _parts(type_)
    for name in _STEP.findall(path):
        if name:
            shapes = [part for part in parts if isinstance(part, type)]
            hints = [get_type_hints(shape, include_extras=True) for shape in shapes]
            inside = [found[name] for found in hints if name in found]
        else:
            inside = [one for part in parts for one in get_args(_plain(part))[:1]]
        parts = [part for one in inside for part in _parts(one)]
    return [choice for part in parts for choice in _choices(part)]


def _plain(type_: Any) -> Any:
    return _plain(get_args(type_)[0]) if get_origin(type_) is Annotated else type_


def _parts(type_: Any) -> list[Any]:
    if get_origin(type_) is Annotated and get_origin(_plain(type_)) in (Union, types.UnionType):
        type_ = _plain(type_)
    if get_origin(type_) in (Union, types.UnionType):
        return [inner for part in get_args(type_) for inner in _parts(part)]
    return [type_]


def _choices(type_: Any) -> tuple[Any, ...]:
    plain = _plain(type_)
    return get_args(plain) if get_origin(plain) is Literal else ()
