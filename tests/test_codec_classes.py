"""Classes of every family in Go's bytes: order, names, marks, and what their own settings say."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Annotated, NotRequired, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from riverq.codec import encode, encoder_of
from riverq.errors import ArgsEncodeError
from riverq.fields import nanoseconds, omitempty

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    ONE = "one"


class Timed(msgspec.Struct, rename="camel"):
    run_at: datetime
    time_out: Annotated[timedelta, nanoseconds]
    maybe_wait: Annotated[timedelta | None, nanoseconds] = None
    inner_wait: Annotated[timedelta, nanoseconds] | None = None
    many_waits: list[Annotated[timedelta, nanoseconds]] = []
    by_name: dict[str, Annotated[timedelta, nanoseconds]] = {}


def test_durations_are_nanoseconds_where_marked() -> None:
    second = timedelta(seconds=1)
    value = Timed(AT, second, None, second * 2, [second, -second], {"b": second, "a": timedelta(microseconds=1)})
    assert encode(value) == (
        '{"runAt":"2026-01-02T03:04:05Z","timeOut":1000000000,"maybeWait":null,"innerWait":2000000000,'
        '"manyWaits":[1000000000,-1000000000],"byName":{"a":1000,"b":1000000000}}'
    )


def test_a_duration_beyond_gos_is_refused() -> None:
    with pytest.raises(ArgsEncodeError, match="292 years") as caught:
        encode(Timed(AT, timedelta(days=200_000)))
    assert caught.value.path == "args.timeOut"


@dataclass
class Omits:
    text: Annotated[str, omitempty] = ""
    number: Annotated[int, omitempty] = 0
    flag: Annotated[bool, omitempty] = False
    real: Annotated[float, omitempty] = 0.0
    colour: Annotated[Word | None, omitempty] = None
    pointer: Annotated[int | None, omitempty] = None
    items: Annotated[list[int] | None, omitempty] = None
    map: Annotated[dict[str, int], omitempty] = field(default_factory=dict)
    data: Annotated[bytes, omitempty] = b""
    at: Annotated[datetime, omitempty] = AT
    kept: int | None = None


def test_omitempty_is_gos() -> None:
    assert encode(Omits()) == '{"at":"2026-01-02T03:04:05Z","kept":null}'
    full = Omits("t", 1, True, 0.5, Word.ONE, 0, [], {"a": 1}, b"x")
    assert encode(full) == (
        '{"text":"t","number":1,"flag":true,"real":0.5,"colour":"one","pointer":0,"map":{"a":1},"data":"eA==",'
        '"at":"2026-01-02T03:04:05Z","kept":null}'
    )


class Sparse(msgspec.Struct, omit_defaults=True, tag_field="type", tag="sparse"):
    a: int = 1
    b: int | msgspec.UnsetType = msgspec.UNSET
    c: list[int] = []


def test_structs_keep_their_own_settings() -> None:
    assert encode(Sparse()) == '{"type":"sparse"}'
    assert encode(Sparse(2, 3, [4])) == '{"type":"sparse","a":2,"b":3,"c":[4]}'


def test_a_struct_that_is_an_array_is_refused() -> None:
    class Row(msgspec.Struct, array_like=True):
        a: int

    with pytest.raises(ArgsEncodeError, match="array_like"):
        encode(Row(1))


@attrs.define
class Private:
    b: int
    _a: int = 2
    derived: int = attrs.field(default=3, init=False)


def test_attrs_keep_their_order() -> None:
    assert encode(Private(1, 5)) == '{"b":1,"_a":5}'


class Leaf(TypedDict):
    z: int
    a: NotRequired[Annotated[timedelta, nanoseconds]]
    more: NotRequired[list[Leaf]]


@dataclass
class HoldsLeaves:
    leaves: list[Leaf]
    by_name: dict[str, Leaf]
    maybe: Leaf | None = None
    pair: tuple[int, str] = (1, "b")


def test_typed_dicts_keep_the_order_of_declaration() -> None:
    leaf: Leaf = {"a": timedelta(microseconds=2), "z": 1}
    value = HoldsLeaves([leaf], {"y": leaf, "x": {"z": 5}}, {"more": [{"z": 7}], "z": 6})
    assert encode(value) == (
        '{"leaves":[{"z":1,"a":2000}],"by_name":{"x":{"z":5},"y":{"z":1,"a":2000}},'
        '"maybe":{"z":6,"more":[{"z":7}]},"pair":[1,"b"]}'
    )


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"z": 1, "zz": 2}, "args", "did you mean 'z'"),
        ({"a": timedelta(1)}, "args", "'z' of Leaf is missing"),
        ({"z": 1, "more": [{"z": {1}}]}, "args.more[0].z", "set"),
        ([1], "args", "expected the dict of a Leaf"),
    ],
)
def test_typed_dicts_are_checked(value: object, path: str, words: str) -> None:
    with pytest.raises(ArgsEncodeError) as caught:
        encoder_of(Leaf)(value, "args")
    assert (caught.value.path, words in str(caught.value)) == (path, True)


# -- pydantic


class Inner(pydantic.BaseModel):
    zeta: int = 1
    alpha: str = "<"


@pydantic.dataclasses.dataclass
class PydanticData:
    z: int
    a: int


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=lambda name: name.upper())

    inner: Inner = Inner()
    items: list[Inner] = [Inner(zeta=2)]
    by_name: dict[str, Inner] = {"b": Inner(), "a": Inner()}
    labels: dict[str, int] = {"z": 1, "a": 2}
    at: datetime = AT.replace(microsecond=120_000)
    wait: Annotated[timedelta, nanoseconds] = timedelta(seconds=1)
    text: Annotated[str, omitempty] = ""
    secret: str = pydantic.Field(default="s", exclude=True)
    url: pydantic.AnyUrl = pydantic.AnyUrl("http://a.b/?c&d")
    data: PydanticData = PydanticData(1, 2)
    level: Level = Level.HIGH

    @pydantic.field_serializer("level")
    def name_of(self, level: Level) -> str:
        return level.name

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic documents
    @property
    def twice(self) -> int:
        return 2


def test_models_are_dumped_by_pydantic_in_gos_bytes() -> None:
    assert encode(Model()) == (
        '{"INNER":{"zeta":1,"alpha":"\\u003c"},"ITEMS":[{"zeta":2,"alpha":"\\u003c"}],'
        '"BY_NAME":{"a":{"zeta":1,"alpha":"\\u003c"},"b":{"zeta":1,"alpha":"\\u003c"}},"LABELS":{"a":2,"z":1},'
        '"AT":"2026-01-02T03:04:05.12Z","WAIT":1000000000,"URL":"http://a.b/?c\\u0026d","DATA":{"z":1,"a":2},'
        '"LEVEL":"HIGH","TWICE":2}'
    )


def test_a_secret_is_refused_instead_of_stored_as_stars() -> None:
    class Holds(pydantic.BaseModel):
        password: pydantic.SecretStr

    with pytest.raises(ArgsEncodeError) as caught:
        encode(Holds(password=pydantic.SecretStr("x")))
    assert caught.value.path == "args.password"


def test_sets_in_models_are_refused() -> None:
    class Holds(pydantic.BaseModel):
        ids: set[int]

    with pytest.raises(ArgsEncodeError) as caught:
        encode(Holds(ids={1}))
    assert caught.value.path == "args.ids"


class Patch(msgspec.Struct):
    name: str | msgspec.UnsetType = msgspec.UNSET
    size: int | msgspec.UnsetType | None = msgspec.UNSET


@dataclass
class Derives:
    width: int
    area: int = field(init=False, default=0)


def test_what_is_not_set_and_what_is_derived_are_left_out() -> None:
    assert encode(Patch()) == "{}"
    assert encode(Patch(size=None)) == '{"size":null}'
    assert encode(Derives(2)) == '{"width":2}'
