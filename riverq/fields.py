"""What the fields of a user's class are called on the wire, in which order, and how they are marked.

One reading of dataclasses, msgspec Structs, attrs classes, TypedDicts and pydantic models, so that encoding and unique
keys see them alike. Order is the order of declaration, as in a Go struct; names follow msgspec's `rename`/`name=` and
pydantic's alias. pydantic is never imported here: a class of its kind can only exist where it was imported.

Before it: a class. After it: `riverq.codec` (bytes) and `riverq.unique` (which fields make the key).
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, NotRequired, Required, Union, get_args, get_origin, get_type_hints
from typing import is_typeddict as _is_typeddict

import msgspec

from riverq.errors import ConfigError


class Mark:
    """A word that is put on a field: `Annotated[str, riverq.unique]`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"riverq.{self.name}"


omitempty: Final = Mark("omitempty")
"""The field is left out where Go's `omitempty` leaves it out.

That is: False, 0, "" and None; an empty list, tuple, dict or bytes. A field that may be None stands for a Go pointer
(`str | None` for `*string`) and is then left out only when it is None, unless it holds a collection.
"""

nanoseconds: Final = Mark("nanoseconds")
"""The field, a `timedelta`, is written as an integer of nanoseconds, as Go writes a `time.Duration`."""


class Shape(StrEnum):
    """Which family a class belongs to."""

    ATTRS = "attrs"
    DATACLASS = "dataclass"
    PYDANTIC = "pydantic"
    STRUCT = "struct"
    TYPED_DICT = "typed dict"


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One field: the attribute, the name in JSON, the type without `Annotated`, and what was annotated.

    `default` is MISSING or a function that makes the default; only a Struct with `omit_defaults` asks for it.
    """

    attribute: str
    wire_name: str
    annotation: Any
    marks: tuple[Any, ...] = ()
    default: Callable[[], Any] | None = None
    required: bool = True


def shape_of(cls: object) -> Shape | None:
    """The family of `cls`, or None for a class whose fields riverq cannot know."""
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        return Shape.STRUCT
    if _is_typeddict(cls):
        return Shape.TYPED_DICT
    if hasattr(cls, "__pydantic_fields__") or hasattr(cls, "__pydantic_core_schema__"):
        return Shape.PYDANTIC
    if dataclasses.is_dataclass(cls):
        return Shape.DATACLASS
    return Shape.ATTRS if hasattr(cls, "__attrs_attrs__") else None


@functools.lru_cache(maxsize=1024)
def fields_of(cls: type) -> tuple[Field, ...]:
    """The fields of `cls` in order. Raises ConfigError where an annotation cannot be resolved."""
    shape = shape_of(cls)
    if shape is None:
        raise ConfigError(
            f"{cls.__qualname__} has no fields that riverq can read "
            "(make it a dataclass, a msgspec.Struct, an attrs class, a TypedDict or a pydantic model)"
        )
    return _READERS[shape](cls)


def split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without `Annotated`, `Required`, `ClassVar` and kin, and everything that was annotated."""
    marks: tuple[Any, ...] = ()
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            marks = (*annotation.__metadata__, *marks)
            annotation = annotation.__origin__
        elif origin in (Required, NotRequired, Final, ClassVar):
            annotation = get_args(annotation)[0]
        else:
            return annotation, marks


def without_none(annotation: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """What `T | None` holds beside None (`T`, its own marks, True); a type without None as it is, with False."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = get_args(annotation)
        others = [member for member in members if member is not types.NoneType]
        if len(others) < len(members):
            inner = others[0] if len(others) == 1 else Union[tuple(others)]  # noqa: UP007  # from a list
            return *split(inner), True
    return annotation, (), False


def is_collection(annotation: Any) -> bool:
    """Whether values of this type can be empty collections in Go's sense: slices, maps and byte slices."""
    origin = get_origin(annotation) or annotation
    return (
        isinstance(origin, type) and issubclass(origin, (Mapping, Sequence, bytearray)) and not issubclass(origin, str)
    )


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"cannot read the annotations of {cls.__qualname__}: {error} "
            "(define what they name at module level, import it at run time, not under TYPE_CHECKING, "
            "and give no field the name of a type)"
        ) from error


def _dataclass_fields(cls: type) -> tuple[Field, ...]:
    hints = _hints(cls)
    return tuple(Field(item.name, item.name, *split(hints[item.name])) for item in dataclasses.fields(cls) if item.init)


def _attrs_fields(cls: type) -> tuple[Field, ...]:
    hints = _hints(cls)
    attributes: Any = cls.__attrs_attrs__  # type: ignore[attr-defined]  # attrs's own mark of its classes
    return tuple(Field(item.name, item.name, *split(hints.get(item.name, Any))) for item in attributes if item.init)


def _struct_fields(cls: type) -> tuple[Field, ...]:
    if not issubclass(cls, msgspec.Struct):
        raise TypeError(cls)
    if cls.__struct_config__.array_like:
        raise ConfigError(f"{cls.__qualname__} is array_like, and args are JSON objects (drop array_like=True)")
    hints = _hints(cls)
    return tuple(
        Field(item.name, item.encode_name, *split(hints[item.name]), default=_default_of(item))
        for item in msgspec.structs.fields(cls)
    )


def _default_of(item: msgspec.structs.FieldInfo) -> Callable[[], Any] | None:
    if item.default is not msgspec.NODEFAULT:
        default = item.default
        return lambda: default
    if item.default_factory is not msgspec.NODEFAULT:
        factory: Callable[[], Any] = item.default_factory
        return factory
    return None


def _typed_dict_fields(cls: type) -> tuple[Field, ...]:
    required: frozenset[str] = cls.__required_keys__  # type: ignore[attr-defined]  # every TypedDict has it
    found = []
    for name, annotation in _hints(cls).items():
        # `__required_keys__` does not see NotRequired where annotations are texts.
        origin = get_origin(annotation)
        is_required = origin is Required or (name in required and origin is not NotRequired)
        found.append(Field(name, name, *split(annotation), required=is_required))
    return tuple(found)


def _pydantic_fields(cls: type) -> tuple[Field, ...]:
    found: dict[str, Any] | None = getattr(cls, "__pydantic_fields__", None) or getattr(cls, "model_fields", None)
    return tuple(
        Field(
            attribute=name,
            wire_name=info.serialization_alias or info.alias or name,
            annotation=split(info.annotation)[0],
            marks=(*split(info.annotation)[1], *info.metadata),
        )
        for name, info in (found or {}).items()
        if not info.exclude
    )


_READERS: dict[Shape, Callable[[type], tuple[Field, ...]]] = {
    Shape.ATTRS: _attrs_fields,
    Shape.DATACLASS: _dataclass_fields,
    Shape.PYDANTIC: _pydantic_fields,
    Shape.STRUCT: _struct_fields,
    Shape.TYPED_DICT: _typed_dict_fields,
}
