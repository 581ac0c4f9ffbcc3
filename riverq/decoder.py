"""Stored JSON back into the user's class: msgspec's decoders, pydantic's for its own models.

Unknown members are ignored, as Go's decoder does, unless the class itself forbids them; so a fleet may be upgraded in
any order. A field that the sender leaves out needs a default.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, get_args, get_origin

import msgspec

from riverq.errors import ArgsDecodeError, ConfigError
from riverq.fields import Shape, fields_of, is_collection, nanoseconds, shape_of, split, without_none

Restorer = Callable[[Any], Any]

_DAY = timedelta(days=1)


def decoder_of(cls: type, kind: str) -> Callable[[str], Any]:
    """A function from stored text to an instance of `cls`, which raises ArgsDecodeError.

    Raises ConfigError where values of `cls` cannot be decoded at all.
    """
    read = _reader(cls)
    restore = _restorer(cls, {}) if _has_durations(cls, set()) else None

    def decode(text: str) -> Any:
        try:
            return read(text if restore is None else json.dumps(restore(json.loads(text))))
        except Exception as error:  # a validator or `__post_init__` of the user's may raise anything
            raise ArgsDecodeError(f"cannot decode args of kind {kind!r} as {cls.__qualname__}: {error}") from error

    return decode


def decode_object(text: str) -> dict[str, Any]:
    """Args without a class. Raises ArgsDecodeError where they are not a JSON object."""
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArgsDecodeError(f"cannot decode args: {error}") from error
    if not isinstance(decoded, dict):
        raise ArgsDecodeError(f"expected args to be a JSON object, got: {text[:80]}")
    return decoded


def _reader(cls: type) -> Callable[[str], Any]:
    if shape_of(cls) is Shape.PYDANTIC:
        _refuse_ambiguous_bytes(cls)
        reader: Callable[[str], Any] = sys.modules["pydantic"].TypeAdapter(cls).validate_json
        return reader
    try:
        return msgspec.json.Decoder(cls, dec_hook=_foreign).decode
    except (TypeError, NameError, msgspec.MsgspecError) as error:
        raise ConfigError(f"values of {cls.__qualname__} cannot be decoded: {error}") from error


def _foreign(cls: type, value: Any) -> Any:
    """A pydantic model inside a class that msgspec decodes."""
    if shape_of(cls) is Shape.PYDANTIC:
        return sys.modules["pydantic"].TypeAdapter(cls).validate_python(value)
    raise NotImplementedError(f"fields of type {cls.__qualname__} cannot be decoded")


def _refuse_ambiguous_bytes(cls: type) -> None:
    """Bytes are base64 on the wire, as in Go; pydantic would read them as UTF-8 unless it is told."""
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    if config.get("val_json_bytes") == "base64":
        return
    for field in fields_of(cls):
        if without_none(field.annotation)[0] is bytes:
            raise ConfigError(
                f"field {field.attribute!r} of {cls.__qualname__} holds bytes, which are base64 on the wire "
                '(set model_config = ConfigDict(val_json_bytes="base64"))'
            )


# -- durations: integers of nanoseconds become ISO 8601 texts, which both decoders read


def _has_durations(annotation: Any, seen: set[type]) -> bool:
    """Whether a marked duration is anywhere below; nearly always not, and then texts are decoded in one go."""
    if shape_of(annotation) is not None:
        if annotation in seen:
            return False
        seen.add(annotation)
        return any(
            nanoseconds in field.marks or _has_durations(field.annotation, seen) for field in fields_of(annotation)
        )
    parts = [split(part) for part in get_args(annotation)]
    return any(nanoseconds in marks or _has_durations(part, seen) for part, marks in parts)


def _restorer(annotation: Any, known: dict[type, Restorer]) -> Restorer:
    """A function that rewrites the marked durations in decoded JSON of this type."""
    if shape_of(annotation) is not None:
        return known.get(annotation) or _class_restorer(annotation, known)
    inner, marks, optional = without_none(annotation)
    if optional:
        return _marked_restorer(inner, marks, known)
    given = [item for item in get_args(annotation) if item is not Ellipsis]
    origin = get_origin(annotation)
    if not given or not is_collection(annotation) or (origin is tuple and len(given) > 1):
        return _as_it_is
    restore = _marked_restorer(*split(given[-1]), known)
    if issubclass(origin or list, Mapping):
        return lambda value: {k: restore(v) for k, v in value.items()} if isinstance(value, dict) else value
    return lambda value: [restore(item) for item in value] if isinstance(value, list) else value


def _marked_restorer(annotation: Any, marks: tuple[Any, ...], known: dict[type, Restorer]) -> Restorer:
    return _duration_text if nanoseconds in marks else _restorer(annotation, known)


def _class_restorer(cls: type, known: dict[type, Restorer]) -> Restorer:
    restorers: dict[str, Restorer] = {}

    def restore_members(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: restorers.get(name, _as_it_is)(item) for name, item in value.items()}

    known[cls] = restore_members  # before its fields: the class may contain itself
    restorers.update(
        (field.wire_name, _marked_restorer(field.annotation, field.marks, known)) for field in fields_of(cls)
    )
    return restore_members


def _as_it_is(value: Any) -> Any:
    return value


def _duration_text(count: Any) -> Any:
    if not isinstance(count, int) or isinstance(count, bool):
        return count
    span = timedelta(microseconds=abs(count) // 1000)
    rest = span % _DAY
    return f"{'-' if count < 0 else ''}P{span // _DAY}DT{rest.seconds}.{rest.microseconds:06}S"
