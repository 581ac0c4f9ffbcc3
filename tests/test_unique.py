"""Unique keys against golden vectors of River's, built through args classes where a class can hold them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import attrs
import msgspec
import pydantic
import pytest

from riverq.fields import omitempty
from riverq.job import JobState
from riverq.job_args import ArgsSpec, RawArgs, spec_for_kind, spec_of
from riverq.unique import (
    UniqueOpts,
    unique,
    unique_key,
    unique_text,
)

NOW = datetime(2026, 8, 5, 13, 37, 23, 123000, tzinfo=UTC)
LATER_NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)
BY_ARGS = UniqueOpts(by_args=True)


@dataclass
class Plain:
    description: str
    count: int


@dataclass
class Email:
    recipient: Annotated[str, unique]
    subject: Annotated[str, unique]
    body: str = "not part of the key"


@dataclass
class Phone:
    phone_number: Annotated[str, unique]
    email: Annotated[str, unique, omitempty] = ""
    note: str = ""


@dataclass
class Absent:
    a: Annotated[str, unique, omitempty] = ""
    b: int = 1


@attrs.define
class Address:
    street: str
    recipient: Annotated[str, unique]


class Letter(msgspec.Struct):
    trace_id: str
    subject: Annotated[str, unique]
    addresses: Annotated[Address, unique]


class Account(msgspec.Struct):
    region: Annotated[str, unique, omitempty] = ""
    id: Annotated[str, unique, omitempty] = ""
    name: str = "n"


class Selected(msgspec.Struct):
    slash: Annotated[str, unique, omitempty] = msgspec.field(default="", name="path/key")
    label: Annotated[str, unique, omitempty] = ""
    account: Annotated[Account, unique, omitempty] = msgspec.field(default_factory=Account)
    other: int = 0


class SelectedModel(pydantic.BaseModel):
    slash: Annotated[str, unique, omitempty] = pydantic.Field(default="", alias="path/key")
    account: dict[str, str] = {}
    other: int = 0


class Nested(msgspec.Struct):
    z: int
    a: int


@dataclass
class HoldsNested:
    nested: Nested


@dataclass
class Moments:
    whole: datetime
    millis: datetime
    micros: datetime
    fraction: datetime


@dataclass
class Collections:
    pointer: str | None
    objects: list[Nested]
    missing: dict[str, str] | None
    matrix: list[list[int]]
    labels: dict[str, str]
    empty: tuple[int, ...]


@dataclass
class Nothing:
    pass


def spec(cls: type, kind: str) -> ArgsSpec:
    return spec_for_kind(cls, kind)


def text_of(args: Any, kind: str, opts: UniqueOpts, *, at: datetime = NOW, queue: str = "default") -> str:
    known = spec_of(args) if isinstance(args, RawArgs) else spec(type(args), kind)
    return unique_text(opts, kind=kind, encoded_args=known.encode(args), paths=known.unique_paths, at=at, queue=queue)


ALL = "conformance_all_args"
SOME = "conformance_selected_args"


def period(**length: float) -> UniqueOpts:
    return UniqueOpts(by_period=timedelta(**length))


CASES: list[tuple[Callable[[], str], str, str]] = [
    (
        lambda: text_of(Nothing(), "worker_7", UniqueOpts(by_state=JobState)),
        "&kind=worker_7",
        "6ad46d4771a5db81e05a454f0cae07dc75bd0a77152255d4852a7463161df3cb",
    ),
    (
        lambda: text_of(Nothing(), "worker_6", UniqueOpts(by_queue=True), queue="email_queue"),
        "&kind=worker_6&queue=email_queue",
        "26b1abe28abd7a0d215b0881bff7a77e408d71da6166d43272c0179ea058d3dc",
    ),
    (
        lambda: text_of(Plain("A generic job without unique fields.", 10), "worker_3", BY_ARGS),
        '&kind=worker_3&args={"count":10,"description":"A generic job without unique fields."}',
        "57514e752744015802c9d4d4935f9d216a943cf859a21e577b65741dac7302e4",
    ),
    (
        lambda: text_of(Email("user@example.com", "Test Email"), "worker_1", BY_ARGS),
        '&kind=worker_1&args={"recipient":"user@example.com","subject":"Test Email"}',
        "924d0ae47cfc7fa39a6ac83c366368583aa6406612772dd007cad2527989ed80",
    ),
    (
        lambda: text_of(Phone("555-5678"), "worker_2", BY_ARGS),
        '&kind=worker_2&args={"phone_number":"555-5678"}',
        "ff609368ab8b62a17352c2ba00016f15471460e142551698a7b16961f35bf6e9",
    ),
    (
        lambda: text_of(Nothing(), "worker_1", BY_ARGS),
        "&kind=worker_1&args={}",
        "8a7ac299a41c27cd6f9fd578368f1330752168a7bf53761a5baba22ec7ab226a",
    ),
    (
        lambda: text_of(Absent(), "worker_1", BY_ARGS),
        "&kind=worker_1&args=",
        "65453d4f9fcd8870038129f35287f2a561fe80a1bb8e71b3d0be15877d3672ae",
    ),
    (
        lambda: text_of(Letter("t", "Another Test Email", Address("s", "john@example.com")), "worker_1", BY_ARGS),
        '&kind=worker_1&args={"addresses":{"recipient":"john@example.com"},"subject":"Another Test Email"}',
        "d178957fb90c9a06f83b4141be35e7f3ad4b06af382245b0a27558eb2f7130b6",
    ),
    (
        lambda: text_of(RawArgs("k", {"task_id": "task_123"}), "k", UniqueOpts(by_args=True, exclude_kind=True)),
        '&args={"task_id":"task_123"}',
        "4b48cf5f2559d1de919b01391108cc5577d10e6e56a10bda33618b98b6054252",
    ),
    (
        lambda: text_of(RawArgs("k", {"q": "a<b> & c"}), "k", BY_ARGS),
        '&kind=k&args={"q":"a\\u003cb\\u003e \\u0026 c"}',
        "a651fca357c536dbf8f6b0ea9cf83a5116021c82bb21871a2419f293eaa99e19",
    ),
    (
        lambda: text_of(RawArgs("k", {"name": "Zoë"}), "k", BY_ARGS),
        '&kind=k&args={"name":"Zoë"}',
        "7730b0a9c63f844e0b5ad80542dbc6e142f8a5effd867c274a60e5a28241fd89",
    ),
    (
        lambda: text_of(Nothing(), "worker_4", period(hours=1)),
        "&kind=worker_4&period=2026-08-05T13:00:00Z",
        "107201caa6d7fca391d2fcb6967665545de658e36ecf7e0c51c998a7cfe39e10",
    ),
    (
        lambda: text_of(Nothing(), "worker_4", period(hours=24)),
        "&kind=worker_4&period=2026-08-05T00:00:00Z",
        "ed4c1b0014f69d3e436f7b1bf074b4891afdc32bf285884b18209a25a146427c",
    ),
    (
        lambda: text_of(Nothing(), "worker_4", period(days=7)),
        "&kind=worker_4&period=2026-08-03T00:00:00Z",
        "460efb44819ce5edd8556bd388830b3a0626014889b162cbe58e88da264677fd",
    ),
    (
        lambda: text_of(
            RawArgs("sync", {"account_id": 42}),
            "sync",
            UniqueOpts(by_args=True, by_period=timedelta(minutes=15), by_queue=True),
        ),
        '&kind=sync&args={"account_id":42}&period=2026-08-05T13:30:00Z&queue=default',
        "6ad5bf5fad6a5014dd5961b1b0aadff2b48a2296f563df25e69aad71b160b8d0",
    ),
    (
        lambda: text_of(Nothing(), "worker_4", period(seconds=7)),
        "&kind=worker_4&period=2026-08-05T13:37:17Z",
        "87761cf2abcde87068a796c53a70e7c7269a717d427daeb5c441cd82a787f084",
    ),
    (
        lambda: text_of(Selected(), SOME, BY_ARGS),
        f"&kind={SOME}&args=",
        "23aa86692d9807ab10e433e378f1c0804573f5e345818461b919322dd381b4c3",
    ),
    (
        lambda: text_of(Selected(slash="slash", account=Account("west", "acct")), SOME, BY_ARGS),
        f'&kind={SOME}&args={{"account":{{"id":"acct","region":"west"}},"path/key":"slash"}}',
        "7d62e81ac25cfa2dec69ad5a41e0b78188ee1b299bed329b453da6b3abca70bd",
    ),
    (
        lambda: text_of(Selected(label="selected", account=Account(id="acct-123")), SOME, BY_ARGS),
        f'&kind={SOME}&args={{"account":{{"id":"acct-123"}},"label":"selected"}}',
        "6130dc4f753402d1faeb6bbc3e6c21415245bb282ad1fd16bcbfeebde525e726",
    ),
    (
        lambda: text_of(HoldsNested(Nested(1, 2)), ALL, BY_ARGS),
        f'&kind={ALL}&args={{"nested":{{"z":1,"a":2}}}}',
        "46ff499cb031d0458bb00ef87e7b83321eefb6e7534497c279c4ae0f474cdde0",
    ),
    (
        lambda: text_of(RawArgs(ALL, {"nested": OrderedDict(z=1, a=2)}), ALL, BY_ARGS),
        f'&kind={ALL}&args={{"nested":{{"z":1,"a":2}}}}',
        "46ff499cb031d0458bb00ef87e7b83321eefb6e7534497c279c4ae0f474cdde0",
    ),
    (
        lambda: text_of(RawArgs(ALL, '{"nested": {"z": 1, "a": 2}}'), ALL, BY_ARGS),
        f'&kind={ALL}&args={{"nested":{{"z":1,"a":2}}}}',
        "46ff499cb031d0458bb00ef87e7b83321eefb6e7534497c279c4ae0f474cdde0",
    ),
    (
        lambda: text_of(
            RawArgs(
                ALL,
                {
                    "zeta": 'quoted \\"value\\" and \\\\ slash',
                    "maximum": 9007199254740991,
                    "alpha": "<alpha>&\u2028line",
                },
            ),
            ALL,
            BY_ARGS,
        ),
        (
            f'&kind={ALL}&args={{"alpha":"\\u003calpha\\u003e\\u0026\\u2028line","maximum":9007199254740991,'
            r'"zeta":"quoted \\\"value\\\" and \\\\ slash"}'
        ),
        "7a84c62c8d470ca388a0a1e41c311b9eb1ea21f7b88157ceb876fc82e698b6af",
    ),
    (
        lambda: text_of(
            RawArgs(
                ALL,
                {"a.b": 1, "@x": 2, ":lead": 3, "!bang": 4, "[open": 5, "{brace": 6, "a\\b": 7, "": 0},
            ),
            ALL,
            BY_ARGS,
        ),
        f'&kind={ALL}&args={{"":0,"!bang":4,":lead":3,"@x":2,"[open":5,"a.b":1,"a\\\\b":7,"{{brace":6}}',
        "1d254dda1efe1009ffb205ede791d481545d66abb8542e85f0d895415b05cdf9",
    ),
    (
        lambda: text_of(
            Moments(
                datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
                datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC),
                datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC),
                datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC),
            ),
            ALL,
            BY_ARGS,
        ),
        (
            f'&kind={ALL}&args={{"fraction":"2026-01-02T03:04:05.5Z","micros":"2026-01-02T03:04:05.123456Z",'
            '"millis":"2026-01-02T03:04:05.12Z","whole":"2026-01-02T03:04:05Z"}'
        ),
        "18b38780de3019cc75d49ff24a74eecdcff99fda0bb36c0244a35f262b15322b",
    ),
    (
        lambda: text_of(
            Collections(None, [], None, [], {"zulu": "last", "10": "ten", "alpha": "first", "2": "two"}, ()),
            ALL,
            BY_ARGS,
        ),
        (
            f'&kind={ALL}&args={{"empty":[],"labels":{{"10":"ten","2":"two","alpha":"first","zulu":"last"}},"matrix":[],'
            '"missing":null,"objects":[],"pointer":null}'
        ),
        "38406019aea1ea67f81186d845e983b197b2d919ded5eca871e4fef0c8b0ad30",
    ),
    (
        lambda: text_of(Nothing(), ALL, BY_ARGS),
        f"&kind={ALL}&args={{}}",
        "fe05a58ddb79a8d4544da962582d9a290d59788c920afd3597da3a62e3c1b0ac",
    ),
    (
        lambda: text_of(Nothing(), "conformance_simple", period(hours=1.5), at=LATER_NOW),
        "&kind=conformance_simple&period=2026-01-02T03:00:00Z",
        "5396f06a082abd7a929915135ebd363a9a47d800176b03ce7736f93a5ba9e22e",
    ),
    (
        lambda: text_of(
            Nothing(), "conformance_simple", period(hours=1), at=LATER_NOW.astimezone(timezone(timedelta(hours=5)))
        ),
        "&kind=conformance_simple&period=2026-01-02T03:00:00Z",
        "5396f06a082abd7a929915135ebd363a9a47d800176b03ce7736f93a5ba9e22e",
    ),
    (
        lambda: text_of(Nothing(), "k", UniqueOpts(by_queue=True, exclude_kind=True), queue="priority_emails"),
        "&queue=priority_emails",
        "d20ce47da8e8015e68b020bbca2b17494139519ae05f8985e5992db4d8dd8a09",
    ),
]


@pytest.mark.parametrize(("build", "text", "digest"), CASES, ids=[text[:60] for _, text, _ in CASES])
def test_golden_texts_and_hashes(build: Callable[[], str], text: str, digest: str) -> None:
    assert build() == text
    assert hashlib.sha256(build().encode()).hexdigest() == digest


def test_the_key_is_the_hash_of_the_text() -> None:
    key = unique_key(
        UniqueOpts(by_queue=True), kind="worker_6", encoded_args="{}", paths=(), at=NOW, queue="email_queue"
    )
    assert key.hex() == "26b1abe28abd7a0d215b0881bff7a77e408d71da6166d43272c0179ea058d3dc"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ('{"a<b>":1,"é&":{"<":1}}', '{"a<b>":1,"é\\u0026":{"<":1}}'),
        ('{"b":1,"a\\"b":2}', '{"a\\"b":2,"b":1}'),
        ('{"b":1,"a":2,"b":3}', '{"a":2,"b":1}'),
        ('{"a\\u003c\x7f":1}', '{"a<\x7f":1}'),
        ('{"\\u2028":1,"tab\\t<":2}', '{"tab\\t\\u003c":2,"\\u2028":1}'),
    ],
)
def test_top_level_keys_are_spelt_as_rivers(args: str, expected: str) -> None:
    text = unique_text(BY_ARGS, kind="k", encoded_args=args, paths=(), at=NOW, queue="q")
    assert text == f"&kind=k&args={expected}"
