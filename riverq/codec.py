"""The one encoder of job args: JSON exactly as Go's `encoding/json` writes it.

The same text is stored and hashed, so one byte of difference to Go would be a second job where a unique one was meant.
The standard encoders differ from Go in many small ways (times, floats, escapes, NaN, sets), hence an own one. Classes
keep the order of their declaration, as Go structs do; a plain dict is sorted by key, as Go maps are; an `OrderedDict`
keeps its own order. docs/guides/go-structs.md shows both languages side by side.

What has no single meaning in Go is refused with its path: sets, NaN and infinities, naive datetimes, keys that are no
text, a `timedelta` without a mark; and what `jsonb` cannot hold: NUL and lone surrogates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple, get_args, get_origin
from uuid import UUID

import msgspec

from riverq.errors import ArgsEncodeError, ConfigError
from riverq.fields import Field, Shape, fields_of, is_collection, nanoseconds, omitempty, shape_of, split, without_none
from riverq.gojson import (
    HTML,
    SPECIAL,
    Refusal,
    encode_bytes,
    encode_decimal,
    encode_float,
    encode_integer,
    encode_nanoseconds,
    encode_string,
    encode_time,
    encode_time_of_day,
)
from riverq.validation import nearest

Encoder = Callable[[Any], str]

_RAW_TEXT = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')


def encode(value: object, path: str = "args") -> str:
    """`value` as Go's JSON, compact. Raises ArgsEncodeError, which names the offending value's path."""
    return _run(_value, value, path)


def encoder_of(annotation: Any) -> Callable[[object, str], str]:
    """`encode` for values declared as `annotation`; only a TypedDict needs it, whose values do not know their type."""
    encoder = _marked(*split(annotation)) or _value
    return lambda value, path: _run(encoder, value, path)


def _run(encoder: Encoder, value: object, path: str) -> str:
    try:
        return encoder(value)
    except Refusal as refusal:
        path += "".join(reversed(refusal.steps))
        raise ArgsEncodeError(f"cannot encode {path}: {refusal.message}", path) from refusal.__cause__
    except RecursionError as error:
        raise ArgsEncodeError(f"cannot encode {path}: it is nested too deeply, or holds itself", path) from error


# -- encoded text: compact it, take it apart


def compact(text: str | bytes, path: str = "args") -> str:
    """A JSON text as Go passes it on: without white space, with Go's escapes, order and numbers untouched.

    Raises ArgsEncodeError where it is not JSON, or holds what `jsonb` cannot.
    """
    try:
        given = text.decode() if isinstance(text, bytes) else text
        encode(json.loads(given), path)
    except ValueError as error:
        if isinstance(error, ArgsEncodeError):
            raise
        raise ArgsEncodeError(f"cannot encode {path}: not JSON: {error}", path) from error
    return SPECIAL.sub(lambda found: HTML[found[0]], _RAW_TEXT.sub(lambda found: found[1] or "", given))


# -- containers and refusals


def _bare_duration(span: timedelta) -> str:
    raise Refusal(
        f"a timedelta ({span}) has no one form in JSON "
        "(Annotated[timedelta, riverq.nanoseconds] is Go's time.Duration; or store seconds as a number)"
    )


def _set(value: object) -> str:
    raise Refusal(f"a {type(value).__name__} has no order, so equal args could differ (use a sorted list)")


# No parameter of these has a default: CPython 3.13.0 forgets such calls when it guards against endless recursion.
def _map(value: Mapping[Any, Any]) -> str:
    return _object(value, _sorted_keys(value), None)


def _map_of(value: Mapping[Any, Any], encoder: Encoder) -> str:
    return _object(value, _sorted_keys(value), encoder)


def _ordered(value: Mapping[Any, Any]) -> str:
    return _object(value, value, None)


def _sorted_keys(value: Mapping[Any, Any]) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        return list(value)  # not all of them are text, which is refused with its path


def _object(value: Mapping[Any, Any], keys: Any, encoder: Encoder | None) -> str:
    parts: list[str] = []
    for key in keys:
        if not isinstance(key, str):
            raise Refusal(f"key {key!r} is no text (keys of JSON objects are: use str({key!r}))")
        item = value[key]
        try:
            encode_item = encoder or _ENCODERS.get(type(item)) or _find(type(item))
            parts.append(f"{encode_string(key.value if isinstance(key, Enum) else key)}:{encode_item(item)}")
        except Refusal as refusal:
            refusal.steps.append(f".{key}")
            raise
    return "{" + ",".join(parts) + "}"


def _list(value: Any) -> str:
    return _list_of(value, None)


def _list_of(value: Any, encoder: Encoder | None) -> str:
    parts: list[str] = []
    try:
        for item in value:
            encode_item = encoder or _ENCODERS.get(type(item)) or _find(type(item))
            parts.append(encode_item(item))  # not a comprehension: its length tells the path of a refusal
    except Refusal as refusal:
        refusal.steps.append(f"[{len(parts)}]")
        raise
    return "[" + ",".join(parts) + "]"


def _value(value: Any) -> str:
    return (_ENCODERS.get(type(value)) or _find(type(value)))(value)


def _find(cls: type) -> Encoder:
    """The encoder for a type seen for the first time; remembered."""
    encoder = _by_shape(cls) or next((found for base, found in _BY_BASE if issubclass(cls, base)), None)
    if encoder is None:
        raise Refusal(
            f"{cls.__module__}.{cls.__qualname__} is no type that riverq can encode (turn it into text, numbers, "
            "lists, dicts, or a dataclass)"
        )
    _ENCODERS[cls] = encoder
    return encoder


def _by_shape(cls: type) -> Encoder | None:
    shape = shape_of(cls)
    if shape is None or shape is Shape.TYPED_DICT:
        return None
    try:
        return _pydantic(cls) if shape is Shape.PYDANTIC else _class(cls)
    except ConfigError as error:
        raise Refusal(str(error)) from error


# -- classes


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How one field is written: its key with the colon, an encoder where the type asks for one, and when to omit it."""

    attribute: str
    wire_name: str
    prefix: str
    encoder: Encoder | None
    omit: Callable[[Any], bool] | None


def _class(cls: type) -> Encoder:
    tag, omit_defaults = "", False
    if issubclass(cls, msgspec.Struct):
        config = cls.__struct_config__
        omit_defaults = config.omit_defaults
        if config.tag_field is not None:
            tag = f"{encode_string(config.tag_field)}:{_value(config.tag)}"
    plans = [_plan(field, omit_defaults=omit_defaults) for field in fields_of(cls)]

    def encoder(value: Any) -> str:
        parts = [tag] if tag else []
        for plan in plans:
            item = getattr(value, plan.attribute)
            if item is msgspec.UNSET or (plan.omit is not None and plan.omit(item)):
                continue
            _member(parts, plan, item)
        return "{" + ",".join(parts) + "}"

    return encoder


@functools.lru_cache(maxsize=1024)
def _typed_dict_plans(cls: type) -> dict[str, tuple[_Plan, bool]]:
    return {field.attribute: (_plan(field), field.required) for field in fields_of(cls)}


def _typed_dict(cls: type) -> Encoder:
    def encoder(value: Any) -> str:
        plans = _typed_dict_plans(cls)  # not before: the class may contain itself
        if not isinstance(value, Mapping):
            raise Refusal(f"expected the dict of a {cls.__qualname__}, got: {value!r}")
        for key in value:
            if key not in plans:
                raise Refusal(f"{cls.__qualname__} has no key {key!r} ({nearest(str(key), plans)})")
        parts: list[str] = []
        for name, (plan, required) in plans.items():
            if name in value:
                item = value[name]
                if plan.omit is None or not plan.omit(item):
                    _member(parts, plan, item)
            elif required:
                raise Refusal(f"key {name!r} of {cls.__qualname__} is missing")
        return "{" + ",".join(parts) + "}"

    return encoder


class _Dumped(NamedTuple):
    """What pydantic made of a value, beside the value."""

    raw: Any
    dumped: Any


@functools.lru_cache(maxsize=1024)
def _pydantic_plans(cls: type) -> dict[str, _Plan]:
    return {field.wire_name: _plan(field) for field in fields_of(cls)}


def _pydantic(cls: type) -> Encoder:
    """What the model dumps (aliases, serializers and exclusions are pydantic's business), in Go's bytes."""
    adapter = sys.modules["pydantic"].TypeAdapter(cls)
    return lambda value: _dumped(_Dumped(value, adapter.dump_python(value, by_alias=True)))


def _dumped(pair: _Dumped) -> str:
    """A dump beside what it was made from, which tells a model (order of declaration) from a dict (a Go map)."""
    raw, dumped = pair
    if type(dumped) is dict and shape_of(type(raw)) is not None:
        return _dumped_model(raw, dumped)
    if type(dumped) is dict and isinstance(raw, Mapping):
        pairs = {key: _Dumped(raw.get(key), item) for key, item in dumped.items()}
        return _ordered(pairs) if isinstance(raw, OrderedDict) else _map(pairs)
    if isinstance(dumped, (list, tuple)) and isinstance(raw, (list, tuple)) and len(raw) == len(dumped):
        return _list([_Dumped(one, other) for one, other in zip(raw, dumped, strict=True)])
    if type(dumped) in _ENCODERS or hasattr(dumped, "get_secret_value"):
        return _value(dumped)
    return _value(sys.modules["pydantic_core"].to_jsonable_python(dumped))


def _dumped_model(raw: Any, dumped: dict[str, Any]) -> str:
    cls: type = type(raw)
    plans = _pydantic_plans(cls)
    parts: list[str] = []
    for key, item in dumped.items():
        plan = plans.get(key)
        if plan is None:  # a computed field
            _member(parts, _Plan(key, key, f"{encode_string(key)}:", None, None), item)
        elif plan.omit is None or not plan.omit(item):
            beside = _Dumped(getattr(raw, plan.attribute, None), item)
            _member(parts, plan, item if plan.encoder else beside)
    return "{" + ",".join(parts) + "}"


def _member(parts: list[str], plan: _Plan, item: Any) -> None:
    try:
        parts.append(plan.prefix + (plan.encoder or _ENCODERS.get(type(item)) or _find(type(item)))(item))
    except Refusal as refusal:
        refusal.steps.append(f".{plan.wire_name}")
        raise


def _plan(field: Field, *, omit_defaults: bool = False) -> _Plan:
    prefix = f"{encode_string(field.wire_name)}:"
    encoder = _marked(field.annotation, field.marks)
    return _Plan(field.attribute, field.wire_name, prefix, encoder, _omit_rule(field, omit_defaults=omit_defaults))


def _omit_rule(field: Field, *, omit_defaults: bool) -> Callable[[Any], bool] | None:
    inner, marks, optional = without_none(field.annotation)
    if omitempty in field.marks or omitempty in marks:
        if optional and not is_collection(inner):
            return lambda item: item is None
        return _is_empty
    default = field.default
    if omit_defaults and default is not None:
        return lambda item: bool(item == default())
    return None


def _is_empty(item: Any) -> bool:
    if isinstance(item, Enum):
        item = item.value
    if item is None or item is False:
        return True
    return isinstance(item, (str, int, float, bytes, bytearray, list, tuple, Mapping)) and not item


def _declared(annotation: Any) -> Encoder | None:
    """An encoder where values alone would not tell: a TypedDict, a marked timedelta, and containers of these."""
    if shape_of(annotation) is Shape.TYPED_DICT:
        return _typed_dict(annotation)
    inner, marks, optional = without_none(annotation)
    if optional:
        found = _marked(inner, marks)
        return None if found is None else lambda value: "null" if value is None else found(value)
    given = [item for item in get_args(annotation) if item is not Ellipsis]
    origin = get_origin(annotation)
    if not given or not is_collection(annotation) or (origin is tuple and len(given) > 1):
        return None
    item_encoder = _marked(*split(given[-1]))
    if item_encoder is None:
        return None
    if issubclass(origin or list, Mapping):
        return lambda value: _map_of(value, item_encoder) if isinstance(value, Mapping) else _value(value)
    return lambda value: _list_of(value, item_encoder) if isinstance(value, (list, tuple)) else _value(value)


def _marked(annotation: Any, marks: tuple[Any, ...]) -> Encoder | None:
    return _duration if nanoseconds in marks else _declared(annotation)


def _duration(value: Any) -> str:
    return encode_nanoseconds(value) if isinstance(value, timedelta) else _value(value)


def _null(_: None) -> str:
    return "null"


def _bool(value: bool) -> str:  # noqa: FBT001  # it is the value
    return "true" if value else "false"


def _plain_text(value: Any) -> str:
    """Of UUIDs and dates: their text needs no escapes."""
    return f'"{value}"'


_ENCODERS: dict[type, Encoder] = {
    str: encode_string,
    int: encode_integer,
    bool: _bool,
    type(None): _null,
    float: encode_float,
    dict: _map,
    list: _list,
    tuple: _list,
    datetime: encode_time,
    _Dumped: _dumped,
}
"""By exact type; `_find` adds what it meets."""

_BY_BASE: tuple[tuple[type, Encoder], ...] = (
    (Enum, lambda value: _value(value.value)),
    (str, lambda value: encode_string(str.__str__(value))),
    (int, encode_integer),
    (float, encode_float),
    (datetime, encode_time),
    (date, _plain_text),
    (time, encode_time_of_day),
    (timedelta, _bare_duration),
    (UUID, _plain_text),
    (Decimal, encode_decimal),
    (bytes, encode_bytes),
    (bytearray, encode_bytes),
    (memoryview, encode_bytes),
    (OrderedDict, _ordered),
    (Mapping, _map),
    (list, _list),
    (tuple, _list),
    (set, _set),
    (frozenset, _set),
)
"""By base class, the first that fits."""
