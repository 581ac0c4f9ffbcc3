"""Classes as args: declaring, encoding and decoding in every family, and args without a class."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from riverq.errors import ArgsDecodeError, ArgsEncodeError, ConfigError
from riverq.fields import nanoseconds
from riverq.job_args import RawArgs, TypedArgs, job_args, raw_spec, spec_for_kind, spec_of
from riverq.unique import UniqueOpts, unique

AT = datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC)


@dataclass
class Line:
    item: str
    wait: Annotated[timedelta, nanoseconds] = timedelta(0)
    after: Line | None = None


@job_args("order_dataclass", aliases=["old_order"], queue="orders", tags=["sales"])
@dataclass
class OrderData:
    id: int
    at: datetime
    lines: list[Line] = field(default_factory=list)
    data: bytes = b""


@job_args("order_slots")
@dataclass(slots=True, frozen=True)
class OrderSlots:
    id: int
    at: datetime


@dataclass(slots=True)
@job_args("order_reversed")
class OrderReversed:
    id: int
    at: datetime


@job_args("order_struct")
class OrderStruct(msgspec.Struct, rename="camel"):
    id: int
    created_at: datetime
    lines: dict[str, Line] = {}


@job_args("order_attrs")
@attrs.define
class OrderAttrs:
    id: int
    at: datetime


@job_args("order_typed_dict")
class OrderDict(TypedDict):
    id: int
    at: datetime
    note: NotRequired[str]


class Item(pydantic.BaseModel):
    wait: Annotated[timedelta, nanoseconds] = timedelta(seconds=1)


@job_args("order_model")
class OrderModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(val_json_bytes="base64", strict=True)

    id: Annotated[int, unique]
    at: datetime
    items: list[Item] = []
    data: bytes = b""
    short: str = pydantic.Field(default="", alias="s")


@job_args("order_mixed")
@dataclass
class OrderMixed:
    model: Item


@dataclass
class ByAttribute:
    kind: ClassVar[str] = "by_attribute"
    kind_aliases: ClassVar[tuple[str, ...]] = ("older",)
    id: int = 1


@dataclass
class HasKindField:
    kind: str = "no_kind_of_job"


INSTANCES = [
    OrderData(1, AT, [Line("a", timedelta(seconds=2), Line("b", -timedelta(days=1, microseconds=3)))], b"\xfb\xff"),
    OrderSlots(1, AT),
    OrderReversed(1, AT),
    OrderStruct(1, AT, {"x": Line("a", timedelta(microseconds=1))}),
    OrderAttrs(1, AT),
    OrderModel(id=1, at=AT, items=[Item(wait=timedelta(days=400))], data=b"\xfb\xff", s="z"),
    OrderMixed(Item(wait=timedelta(hours=1))),
    ByAttribute(3),
]


@pytest.mark.parametrize("args", INSTANCES, ids=lambda args: type(args).__name__)
def test_args_come_back_as_they_went(args: Any) -> None:
    spec = spec_of(args)
    assert spec.decode(spec.encode(args)) == args
    assert spec_of(type(args)) is spec


def test_a_typed_dict_is_inserted_with_its_class() -> None:
    value: OrderDict = {"note": "n", "id": 1, "at": AT}
    args = TypedArgs(OrderDict, value)
    spec = spec_of(args)
    assert spec.kind == "order_typed_dict"
    assert spec.encode(args) == '{"id":1,"at":"2026-01-02T03:04:05.12Z","note":"n"}'
    assert spec.decode(spec.encode(args)) == value
    with pytest.raises(ConfigError, match="TypedArgs"):
        spec_of(value)


def test_the_declaration_is_kept() -> None:
    spec = spec_of(OrderData)
    assert (spec.kind, spec.aliases, spec.cls) == ("order_dataclass", ("old_order",), OrderData)
    assert spec.defaults == {"queue": "orders", "tags": ["sales"]}
    assert spec_of(OrderModel).unique_paths == (("id",),)
    assert (spec_of(ByAttribute).kind, spec_of(ByAttribute).aliases) == ("by_attribute", ("older",))


def test_unknown_members_are_ignored_and_defaults_fill_in() -> None:
    decoded = spec_of(OrderData).decode('{"id":1,"new":[1],"at":"2026-01-02T03:04:05.123456789+02:00"}')
    assert decoded == OrderData(1, datetime.fromisoformat("2026-01-02T03:04:05.123457+02:00"))
    assert spec_of(OrderModel).decode('{"id":1,"new":[1],"at":"2026-01-02T03:04:05Z"}').items == []


@pytest.mark.parametrize("cls", [OrderData, OrderSlots, OrderStruct, OrderAttrs, OrderDict, OrderModel])
@pytest.mark.parametrize("text", ["{", "[]", '{"id":"x"}', '{"id":1}', "null"])
def test_args_that_do_not_fit_are_an_error_of_their_own(cls: type, text: str) -> None:
    with pytest.raises(ArgsDecodeError, match=spec_of(cls).kind):
        spec_of(cls).decode(text)


def test_an_error_of_the_users_own_code_is_a_decode_error() -> None:
    @dataclass
    class Fussy:
        id: int

        def __post_init__(self) -> None:
            raise KeyError("fussy")

    with pytest.raises(ArgsDecodeError, match="fussy"):
        spec_for_kind(Fussy, "fussy").decode('{"id":1}')


def test_null_and_wrong_durations() -> None:
    spec = spec_for_kind(Line, "line")
    assert spec.decode('{"item":"a","wait":-1000,"after":null}').wait == -timedelta(microseconds=1)
    with pytest.raises(ArgsDecodeError, match="wait"):
        spec.decode('{"item":"a","wait":true}')


# -- without a class


def test_raw_args_take_a_dict_or_text() -> None:
    spec = spec_of(RawArgs("any", {}))
    assert (spec.kind, spec.cls, spec.unique_paths) == ("any", dict, ())
    assert spec.encode(RawArgs("any", {"b": 1, "a": {"d": 1, "c": 2}})) == '{"a":{"c":2,"d":1},"b":1}'
    assert spec.encode(RawArgs("any", OrderedDict(b=1, a=OrderedDict(d=1, c=2)))) == '{"b":1,"a":{"d":1,"c":2}}'
    assert spec.encode(RawArgs("any", '{"b": 1,\n"a": "<"}')) == '{"b":1,"a":"\\u003c"}'
    assert spec.encode(RawArgs("any", b"{}")) == "{}"
    assert spec.decode('{"a":[1]}') == {"a": [1]}


def test_raw_args_are_objects() -> None:
    for text in ("[1]", "3", '"a"'):
        with pytest.raises(ArgsEncodeError, match="JSON object"):
            raw_spec("any").encode(RawArgs("any", text))
        with pytest.raises(ArgsDecodeError, match="JSON object"):
            raw_spec("any").decode(text)
    with pytest.raises(ConfigError, match="dict or JSON text"):
        RawArgs("any", [1])  # type: ignore[arg-type]  # it is the point
    with pytest.raises(ArgsDecodeError):
        raw_spec("any").decode("{")


# -- what cannot be


def test_a_subclass_needs_a_kind_of_its_own() -> None:
    @dataclass
    class Special(OrderData):
        pass

    with pytest.raises(ConfigError, match="Special declares no kind"):
        spec_of(Special(1, AT))


@pytest.mark.parametrize("value", [1, "text", object(), HasKindField(), Line("a")])
def test_args_without_a_kind_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="declares no kind"):
        spec_of(value)


def test_a_class_without_fields_to_read_is_refused() -> None:
    @job_args("opaque")
    class Opaque:
        pass

    with pytest.raises(ConfigError, match="make it a dataclass"):
        spec_of(Opaque())


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("", {}, "kind"),
        ("x" * 128, {}, "127 characters"),
        (b"x", {}, "kind"),
        ("a\0b", {}, "kind"),
        ("ok", {"aliases": "old"}, "list of kinds"),
        ("ok", {"aliases": [""]}, "kind"),
        ("ok", {"aliases": 5}, "list of kinds"),
        ("ok", {"queues": "x"}, "did you mean 'queue'"),
        ("ok", {"metadata": {}}, "unknown insert option 'metadata'"),
        ("ok", {"scheduled_at": AT}, "unknown insert option"),
        ("ok", {"priority": 5}, "from 1 to 4"),
    ],
)
def test_declarations_that_cannot_be_are_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job_args(kind, **options)


@pytest.mark.parametrize("aliases", ["old", None, [""]])
def test_aliases_as_an_attribute_are_checked_too(aliases: Any) -> None:
    @dataclass
    class Renamed:
        kind: ClassVar[str] = "renamed"
        kind_aliases: ClassVar[Any] = aliases

    with pytest.raises(ConfigError, match="kind"):
        spec_of(Renamed)


def test_bytes_in_a_model_need_to_be_told_apart() -> None:
    class Holds(pydantic.BaseModel):
        data: bytes

    with pytest.raises(ConfigError, match="val_json_bytes"):
        spec_for_kind(Holds, "holds")


def test_annotations_that_cannot_be_read_are_explained() -> None:
    @job_args("unreadable")
    @dataclass
    class Unreadable:
        when: NotImported  # type: ignore[name-defined]  # noqa: F821  # it is the point

    with pytest.raises(ConfigError, match="import it at run time"):
        spec_of(Unreadable(1))


def test_a_type_that_cannot_be_decoded_is_found_at_once() -> None:
    @dataclass
    class Holds:
        both: dict[str, int] | list[int] | set[int]

    with pytest.raises(ConfigError, match="cannot be decoded"):
        spec_for_kind(Holds, "holds")


def test_options_are_those_of_the_class() -> None:
    by_args = UniqueOpts(by_args=True)

    @job_args("unique_order", unique_opts=by_args, delay=timedelta(seconds=1), max_attempts=3, priority=2)
    @dataclass
    class UniqueOrder:
        id: int

    assert spec_of(UniqueOrder).defaults["unique_opts"] == by_args


def test_representations_name_what_they_hold() -> None:
    assert repr(RawArgs("k", {"a": 1})) == "RawArgs('k', {'a': 1})"
    assert repr(TypedArgs(OrderDict, {"id": 1, "at": AT})).startswith("TypedArgs(OrderDict, {'id': 1")
