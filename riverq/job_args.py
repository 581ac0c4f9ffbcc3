"""Which class stands for which kind of job: the decorator, args without a class, and what riverq knows of each.

A class is looked into when its first job is inserted or its worker registered, not when it is decorated: by then every
name in its annotations exists, and the order of decorators does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Unpack

from riverq.codec import compact, encode, encoder_of
from riverq.decoder import decode_object, decoder_of
from riverq.errors import ArgsEncodeError, ConfigError
from riverq.fields import Shape, fields_of, shape_of
from riverq.insert_opts import DEFAULT_NAMES, DefaultOptions, check_kind, check_options
from riverq.unique import Path, unique_paths
from riverq.validation import fail

C = TypeVar("C", bound=type)
T = TypeVar("T")

_DECLARED = "__riverq_declared__"
_SPEC = "__riverq_spec__"


@dataclass(frozen=True, slots=True)
class _Declared:
    kind: str
    aliases: tuple[str, ...]
    defaults: DefaultOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgsSpec:
    """What riverq knows of one kind of job.

    `encode` turns args into the stored text and raises ArgsEncodeError; `decode` turns the text into an instance of
    `cls` (a dict for raw jobs) and raises ArgsDecodeError. `unique_paths` are the fields marked `riverq.unique`, as
    paths of JSON names; empty means all args.
    """

    kind: str
    cls: type
    encode: Callable[[Any], str]
    decode: Callable[[str], Any]
    aliases: tuple[str, ...] = ()
    defaults: DefaultOptions
    unique_paths: tuple[Path, ...] = ()


def job_args(kind: str, *, aliases: Iterable[str] = (), **options: Unpack[DefaultOptions]) -> Callable[[C], C]:
    """Declare a dataclass, msgspec Struct, attrs class, TypedDict or pydantic model as the args of `kind`.

    `aliases` are older kinds that a worker of this class answers too; inserted is always `kind`. `options` (queue,
    priority, max_attempts, tags, delay, unique_opts) hold for every insert that does not say otherwise. Raises
    ConfigError where they cannot be.
    """
    check_kind(kind)
    names = _checked_aliases("aliases", aliases)
    check_options(options, DEFAULT_NAMES)

    def declare(cls: C) -> C:
        if not isinstance(cls, type):
            raise fail("job_args", "to decorate a class", cls)
        setattr(cls, _DECLARED, _Declared(kind, names, options))
        return cls

    return declare


class RawArgs:
    """Args of any kind without a class: a dict, or the JSON text of an object.

    A dict stands for a Go map and is sorted by key at every level; an `OrderedDict` keeps its order, as a Go struct
    does; a text keeps everything but white space. Raises ConfigError for other args.
    """

    __slots__ = ("args", "kind")

    def __init__(self, kind: str, args: Mapping[str, Any] | str | bytes) -> None:
        check_kind(kind)
        if not isinstance(args, (Mapping, str, bytes)):
            raise fail("args", "to be a dict or JSON text", args)
        self.kind = kind
        self.args = args

    def __repr__(self) -> str:
        return f"RawArgs({self.kind!r}, {self.args!r})"


class TypedArgs(Generic[T]):
    """A TypedDict's value together with its class, since the dict alone does not know what it is.

    `client.insert(riverq.TypedArgs(SendEmail, {"to": "a@b.c"}))`
    """

    __slots__ = ("args", "cls")

    def __init__(self, cls: type[T], args: T) -> None:
        self.cls: type = cls
        self.args = args

    def __repr__(self) -> str:
        return f"TypedArgs({self.cls.__qualname__}, {self.args!r})"


def spec_of(args_or_class: object) -> ArgsSpec:
    """What riverq knows of these args or this class. Raises ConfigError for a class that declares no kind."""
    if isinstance(args_or_class, RawArgs):
        return raw_spec(args_or_class.kind)
    if isinstance(args_or_class, TypedArgs):
        cls = args_or_class.cls
    else:
        cls = args_or_class if isinstance(args_or_class, type) else type(args_or_class)
    known: ArgsSpec | None = cls.__dict__.get(_SPEC)
    if known is None:
        declared = _declared(cls)
        if declared is None:
            raise _unknown(args_or_class, cls)
        known = _build(cls, declared)
        setattr(cls, _SPEC, known)
    return known


def raw_spec(kind: str) -> ArgsSpec:
    """The spec of a kind without a class."""
    return ArgsSpec(kind=kind, cls=dict, encode=_encode_raw, decode=decode_object, defaults={})


def spec_for_kind(cls: type, kind: str) -> ArgsSpec:
    """The spec of `cls` under another kind than the one that it declares, if it declares one."""
    declared = _declared(cls)
    return _build(cls, _Declared(kind, (), declared.defaults if declared else {}))


def _declared(cls: type) -> _Declared | None:
    """What the decorator left on this very class, or what the attribute `kind` says."""
    found: _Declared | None = cls.__dict__.get(_DECLARED)
    if found is not None:
        return found
    kind, aliases = getattr(cls, "kind", None), getattr(cls, "kind_aliases", ())
    if shape_of(cls) is None or not isinstance(kind, str) or any(each.attribute == "kind" for each in fields_of(cls)):
        return None
    check_kind(kind)
    return _Declared(kind, _checked_aliases("kind_aliases", aliases), {})


def _checked_aliases(name: str, aliases: Iterable[str]) -> tuple[str, ...]:
    if isinstance(aliases, str) or not isinstance(aliases, Iterable):
        raise fail(name, "to be a list of kinds", aliases)
    names = tuple(aliases)
    for alias in names:
        check_kind(alias)
    return names


def _unknown(given: object, cls: type) -> ConfigError:
    if isinstance(given, dict):
        return ConfigError(
            "cannot tell the kind of a dict "
            "(use riverq.RawArgs(kind, {…}), or riverq.TypedArgs(cls, {…}) for a TypedDict)"
        )
    return ConfigError(
        f"{cls.__qualname__} declares no kind of job (decorate it with @riverq.job_args('…'); a subclass needs its own)"
    )


def _build(cls: type, declared: _Declared) -> ArgsSpec:
    fields_of(cls)  # first, since it explains best what is wrong with a class
    return ArgsSpec(
        kind=declared.kind,
        cls=cls,
        encode=_encode_typed_dict(cls) if shape_of(cls) is Shape.TYPED_DICT else _encode_instance,
        decode=decoder_of(cls, declared.kind),
        aliases=declared.aliases,
        defaults=declared.defaults,
        unique_paths=unique_paths(cls),
    )


def _encode_instance(args: object) -> str:
    return _object(encode(args))


def _encode_typed_dict(cls: type) -> Callable[[Any], str]:
    encode_dict = encoder_of(cls)
    return lambda args: encode_dict(args.args if isinstance(args, TypedArgs) else args, "args")


def _encode_raw(args: object) -> str:
    content = args.args if isinstance(args, RawArgs) else args
    return _object(compact(content) if isinstance(content, (str, bytes)) else encode(content))


def _object(encoded: str) -> str:
    if not encoded.startswith("{"):
        raise ArgsEncodeError(f"expected args to be a JSON object, got: {encoded[:80]}")
    return encoded
