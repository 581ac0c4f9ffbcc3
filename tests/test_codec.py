"""The encoder against Go's rules, and what it refuses."""

from __future__ import annotations

import json
import math
import uuid
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverq.codec import compact, encode
from riverq.errors import ArgsEncodeError
from riverq.gojson import encode_float, members

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Colour(Enum):
    RED = "r&d"


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    ONE = "one"


class Mixed(str, Enum):  # noqa: UP042  # a StrEnum's text is its value, that of this one is not
    KEY = "key"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Node:
    z: int
    a: int
    child: Node | None = None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        (True, "true"),
        (2**70, str(2**70)),
        (0.0, "0"),
        (-0.0, "-0"),
        (1.0, "1"),
        (1e15, "1000000000000000"),
        (1e16, "10000000000000000"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-9, "1.5e-9"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        ("a<b> & c", '"a\\u003cb\\u003e \\u0026 c"'),
        ("\u2028\u2029", '"\\u2028\\u2029"'),
        ("\b\f\n\r\t\x01\x1f", '"\\b\\f\\n\\r\\t\\u0001\\u001f"'),
        ("\x7f é 🦀 /", '"\x7f é 🦀 /"'),
        ('"\\', '"\\"\\\\"'),
        (AT, '"2026-01-02T03:04:05Z"'),
        (AT.replace(microsecond=120_000), '"2026-01-02T03:04:05.12Z"'),
        (AT.replace(microsecond=1), '"2026-01-02T03:04:05.000001Z"'),
        (AT.replace(tzinfo=timezone(timedelta(hours=2))), '"2026-01-02T03:04:05+02:00"'),
        (AT.replace(tzinfo=timezone(-timedelta(hours=3, minutes=30))), '"2026-01-02T03:04:05-03:30"'),
        (datetime(1, 1, 1, tzinfo=UTC), '"0001-01-01T00:00:00Z"'),
        (date(2026, 1, 2), '"2026-01-02"'),
        (time(3, 4, 5, 500_000), '"03:04:05.5"'),
        (b"\xfb\xff", '"+/8="'),
        (bytearray(b"a"), '"YQ=="'),
        (Decimal("1.50"), '"1.50"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (Colour.RED, '"r\\u0026d"'),
        (Level.HIGH, "3"),
        (Word.ONE, '"one"'),
        ({Mixed.KEY: 1, Word.ONE: 2}, '{"key":1,"one":2}'),
        (Point(1, 2), "[1,2]"),
        ((1, "a"), '[1,"a"]'),
        ([], "[]"),
        ({}, "{}"),
        ({"zulu": 1, "10": 2, "2": 3, "alpha": {"b": 1, "a": 2}}, '{"10":2,"2":3,"alpha":{"a":2,"b":1},"zulu":1}'),
        (OrderedDict(z=1, a=2), '{"z":1,"a":2}'),
        (defaultdict(int, z=1, a=2), '{"a":2,"z":1}'),
        ({"\ue000": 1, "🦀": 2, "é": 3}, '{"é":3,"\ue000":1,"🦀":2}'),
        (Node(1, 2, Node(3, 4)), '{"z":1,"a":2,"child":{"z":3,"a":4,"child":null}}'),
    ],
)
def test_writes_what_go_writes(value: object, expected: str) -> None:
    assert encode(value) == expected


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"a": [{"x": {1}}]}, "args.a[0].x", "sorted list"),
        ({"a": frozenset({1})}, "args.a", "sorted list"),
        ([float("nan")], "args[0]", "nan"),
        ({"a": {"b": float("inf")}}, "args.a.b", "inf"),
        ({"at": datetime(2026, 1, 1)}, "args.at", "naive datetime"),  # noqa: DTZ001  # it is the point
        ({"at": AT.replace(tzinfo=timezone(timedelta(seconds=30)))}, "args.at", "whole minute"),
        ({"at": time(1, tzinfo=UTC)}, "args.at", "with a zone"),
        ({"a": {1: 2}}, "args.a", "key 1 is no text"),
        ({"a": {1: 2, "b": 3}}, "args.a", "key 1 is no text"),
        ({"a": {None: 2}}, "args.a", "is no text"),
        ({"d": timedelta(seconds=1)}, "args.d", "riverq.nanoseconds"),
        ({"s": "a\0b"}, "args.s", "NUL"),
        ({"s\0": 1}, "args.s\0", "NUL"),
        ({"s": ["ok", "\ud800"]}, "args.s[1]", "surrogate"),
        ({"d": Decimal("NaN")}, "args.d", "no JSON number"),
        ({"o": object()}, "args.o", "builtins.object"),
        ({"g": (n for n in "ab")}, "args.g", "generator"),
        (Node(1, 2, Node(3, {4})), "args.child.a", "sorted list"),  # type: ignore[arg-type]  # it is the point
        (CYCLE, "args", "holds itself"),
        ({"n": 10**5000}, "args.n", "too large"),
    ],
)
def test_refuses_with_the_path(value: object, path: str, words: str) -> None:
    with pytest.raises(ArgsEncodeError) as caught:
        encode(value)
    assert caught.value.path == path
    assert words in str(caught.value)
    assert path in str(caught.value)


def test_refusals_are_not_remembered_as_success() -> None:
    for _ in range(2):
        with pytest.raises(ArgsEncodeError):
            encode({"o": object()})


# -- texts


def test_compact_keeps_order_numbers_and_escapes() -> None:
    text = ' {"b" : [1 , 2.50, 1E3],\n "a\\"x": "<  \\\\ \\u00e9 \u2028" , "b":{ } } '
    assert compact(text) == '{"b":[1,2.50,1E3],"a\\"x":"\\u003c  \\\\ \\u00e9 \\u2028","b":{}}'
    assert compact(text.encode()) == compact(text)


@pytest.mark.parametrize("text", ["{", '{"a":"\\u0000"}', '{"a":"\\ud800"}', '{"a":NaN}', b"\xff", "{'a':1}"])
def test_compact_refuses_what_jsonb_would(text: str | bytes) -> None:
    with pytest.raises(ArgsEncodeError):
        compact(text)


def test_members_are_split_without_being_decoded() -> None:
    text = '{"a":1.50,"b\\"":{"x":[1,{"y":"}"}]},"":"\\u003c","a":null}'
    assert list(members(text)) == [("a", "1.50"), ('b"', '{"x":[1,{"y":"}"}]}'), ("", '"\\u003c"'), ("a", "null")]
    assert [list(members(other)) for other in ("{}", "[1]", "null", '"{"')] == [[], [], [], []]


# -- properties

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(JSON)
def test_what_is_encoded_reads_back(value: object) -> None:
    text = encode(value)
    assert json.loads(text) == value
    assert encode(json.loads(text)) == text
    assert not set(text) & set("<>&\u2028\u2029")


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_members_put_together_again_are_the_object(value: dict[str, object]) -> None:
    text = encode(value)
    parts = [f"{encode(key)}:{inner}" for key, inner in members(text)]
    assert "{" + ",".join(parts) + "}" == text
    assert [key for key, _ in members(text)] == sorted(value, key=str.encode)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(JSON)
def test_compact_undoes_indentation(value: object) -> None:
    if isinstance(value, dict):
        assert json.loads(compact(json.dumps(value, indent=2, ensure_ascii=False))) == value


@settings(derandomize=True, max_examples=500, deadline=None)
@given(FLOAT | st.floats(1e-8, 1e-5) | st.floats(1e14, 1e23))
def test_floats_have_gos_layout(number: float) -> None:
    text = encode_float(number)
    assert float(text) == number
    assert math.copysign(1, float(text)) == math.copysign(1, number)
    mantissa, letter, exponent = text.partition("e")
    assert bool(letter) == (number != 0 and not 1e-6 <= abs(number) < 1e21)
    if letter:
        assert exponent[0] in "+-"
        assert exponent[1] != "0"
        assert 1 <= abs(float(mantissa)) < 10
    digits = mantissa.lstrip("-").replace(".", "").strip("0")
    assert len(digits) <= 17
    assert not (("." in mantissa) and mantissa.endswith(("0", ".")))
