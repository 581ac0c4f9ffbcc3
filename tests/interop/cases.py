"""Unique-key cases, generated: many shapes, hostile strings and numbers, every unique option. Same seed, same cases."""

from __future__ import annotations

import base64
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

SEED = 20260805
FIRST_YEAR = datetime(1970, 1, 1, tzinfo=UTC)

STRINGS = (
    "",
    "plain",
    "a<b> & c",
    'quoted "value" and \\ slash /',
    "line\nfeed\ttab\rreturn\bback\fform",
    "control \x01\x1f\x0b\x7f",
    "line \u2028 and paragraph \u2029",
    "Zoë, größer, naïve",
    "日本語",
    "astral 🦀 𝒳",
    "e\u0301 combining, \ufeff mark, \xa0 space, \x85 next",
    "undefined",
    "null",
    "&kind=x&args={}",
    "\ufffd \uffff \ue000",
    " spaces  kept ",
)
FLOATS = (
    0.0,
    -0.0,
    0.1,
    1.0,
    -1.0,
    100.0,
    1e21,
    1e20,
    123456789012345680000.0,
    1e-6,
    1e-7,
    9.99e-7,
    1.5e-9,
    1e100,
    5e-324,
    1.7976931348623157e308,
    2.5,
    0.3,
    1 / 3,
    1e15,
    1e16,
    123456.789,
    9007199254740993.0,
    -1e21,
    -1.234e-8,
    999999999999999900000.0,
)
INTEGERS = (0, 1, -1, 7, 42, 2**31, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, -(2**63))
KEYS = (
    "a",
    "b",
    "Z",
    "10",
    "2",
    "_x",
    "é",
    "a<b",
    "a&b",
    "key with space",
    "",
    "a.b",
    "日本",
    "🦀",
    'quo"te',
    "back\\slash",
    "\u2028",
)
ODD_KEYS = (
    "",
    "!bang",
    ":lead",
    "@x",
    "[open",
    "a.b",
    "a\\b",
    "{brace",
    "a<b>&",
    "é&",
    'a"b',
    "#",
    "*",
    "?",
    "a|b",
    "tab\t",
    "\u2028",
    "\x7f",
    "a<\x7f",
    "~",
    "Ω",
)
ZONES = (UTC, timezone(timedelta(hours=2)), timezone(-timedelta(hours=3, minutes=30)), timezone(timedelta(hours=14)))
PERIODS = (timedelta(seconds=1), timedelta(seconds=7), timedelta(minutes=15), timedelta(hours=1), timedelta(minutes=90),
           timedelta(hours=24), timedelta(days=7), timedelta(days=30), timedelta(seconds=1.5))  # fmt: skip
QUEUES = ("default", "mail", "priority_emails", "a-b_c-9", "a|b")
STATE_SETS: tuple[tuple[str, ...], ...] = (
    ("available", "pending", "running", "scheduled"),
    ("available", "completed", "pending", "running", "scheduled"),
    ("scheduled", "running", "retryable", "pending", "completed", "available"),
    ("available", "cancelled", "completed", "discarded", "pending", "retryable", "running", "scheduled"),
    ("running", "available", "scheduled", "pending", "discarded", "running"),
)


@dataclass(frozen=True)
class Unique:
    """Unique options, in words of neither side."""

    by_args: bool = False
    by_period: timedelta | None = None
    by_queue: bool = False
    by_state: tuple[str, ...] | None = None
    exclude_kind: bool = False

    def for_oracle(self) -> dict[str, Any]:
        return {
            "by_args": self.by_args,
            "by_period": self.by_period.total_seconds() if self.by_period else 0,
            "by_queue": self.by_queue,
            "by_state": list(self.by_state) if self.by_state else None,
            "exclude_kind": self.exclude_kind,
        }


@dataclass(frozen=True)
class Case:
    """A job about to be inserted. `shape` is empty for a raw job of `kind`; `values` is what its JSON says.

    River gets the text of `values` in their order; riverq sorts a plain dict, as Go does its maps, and keeps the order
    of an `OrderedDict`, as Go does that of raw JSON.
    """

    values: dict[str, Any]
    shape: str = ""
    kind: str = ""
    unique: Unique = field(default_factory=lambda: Unique(by_args=True))
    queue: str = "default"
    scheduled_at: datetime | None = None
    now: datetime = datetime(2026, 8, 5, 13, 37, 23, 123000, tzinfo=UTC)

    def for_oracle(self) -> dict[str, Any]:
        request = {
            "shape": self.shape,
            "kind": self.kind,
            "args": json.dumps(
                self.values, ensure_ascii=False, sort_keys=not self.shape and not isinstance(self.values, OrderedDict)
            ),
            "unique": self.unique.for_oracle(),
            "queue": self.queue,
            "now": self.now.isoformat(),
        }
        if self.scheduled_at is not None:
            request["scheduled_at"] = self.scheduled_at.isoformat()
        return request


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    rng = random.Random(SEED)
    return [*_each_hard_value(), *_each_shape(rng), *_each_option(rng), *_raw(rng)]


def _each_hard_value() -> Iterator[Case]:
    for text in STRINGS:
        yield Case({"name": text, "count": 1}, "Simple")
        yield Case({"trace_id": "t", "customer_id": text, "amount": 3}, "Selected")
    for number in FLOATS:
        yield Case({"one": number, "many": [number, -number], "table": {"k": number}}, "Floats")
    for number in INTEGERS:
        yield Case(
            {"small": number % 100, "large": number, "unsigned": abs(number), "flag": number % 2 == 0}, "Integers"
        )
    yield Case({"unsigned": 2**64 - 1}, "Integers")
    for microseconds in (0, 100_000, 120_000, 123_456, 1, 999_999):
        at = datetime(2026, 1, 2, 3, 4, 5, microseconds, tzinfo=UTC).isoformat()
        yield Case({"at": at, "maybe": at, "items": [at]}, "Times")


def _each_shape(rng: random.Random) -> Iterator[Case]:
    for shape, values in VALUES.items():
        yield Case({}, shape)
        for _ in range(8):
            yield Case(_shuffled(rng, values(rng)), shape)


def _each_option(rng: random.Random) -> Iterator[Case]:
    for period in PERIODS:
        for scheduled in (False, True):
            for _ in range(3):
                at = _moment(rng)
                yield Case(
                    {"name": "n"},
                    "Simple",
                    unique=Unique(by_period=period),
                    now=_moment(rng),
                    scheduled_at=at if scheduled else None,
                )
    for _ in range(60):
        states = rng.choice((None, *STATE_SETS))
        options = Unique(
            by_args=rng.random() < 0.6,
            by_period=rng.choice((None, None, *PERIODS)),
            by_queue=rng.random() < 0.5,
            by_state=states,
        )
        if options == Unique():
            options = Unique(by_queue=True)
        if (options.by_args or options.by_period or options.by_queue) and rng.random() < 0.3:
            options = Unique(options.by_args, options.by_period, options.by_queue, states, exclude_kind=True)
        shape = rng.choice(list(VALUES))
        scheduled_at = _moment(rng) if rng.random() < 0.5 else None
        yield Case(
            VALUES[shape](rng),
            shape,
            unique=options,
            queue=rng.choice(QUEUES),
            scheduled_at=scheduled_at,
            now=_moment(rng),
        )


def _raw(rng: random.Random) -> Iterator[Case]:
    """Kinds without a class: any object, any key. No floats: in Go's raw JSON their text is the sender's."""
    for key in ODD_KEYS:
        yield Case({key: "value", "plain": {key: 1, "z": 2, "a": None}}, kind="raw_kind")
        ordered: OrderedDict[str, Any] = OrderedDict(z=OrderedDict([("z", 1), (key, "<"), ("a", True)]))
        ordered[key] = None
        yield Case(ordered, kind="raw_kind")
    for _ in range(20):
        keys = rng.sample(ODD_KEYS + KEYS, 6)
        yield Case(
            {key: rng.choice((rng.choice(STRINGS), rng.choice(INTEGERS), True, None, [], {})) for key in keys},
            kind="raw/kind",
        )


def _text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(STRINGS)
    points = (
        rng.choice((rng.randrange(0x20, 0x3000), rng.randrange(1, 0x80), rng.randrange(0x10000, 0x20000)))
        for _ in range(rng.randrange(12))
    )
    return "".join(map(chr, points))


def _moment(rng: random.Random) -> datetime:
    seconds = rng.randrange(4 * 10**9)
    at = FIRST_YEAR + timedelta(seconds=seconds, microseconds=rng.choice((0, 500_000, 999_999, rng.randrange(10**6))))
    return at.astimezone(rng.choice(ZONES))


def _some(rng: random.Random, make: Callable[[], Any]) -> Any:
    """A list of up to three, or none."""
    return rng.choice((None, [make() for _ in range(rng.randrange(4))]))


def _map(rng: random.Random, make: Callable[[], Any]) -> Any:
    return rng.choice((None, {key: make() for key in rng.sample(KEYS, rng.randrange(5))}))


def _shuffled(rng: random.Random, values: dict[str, Any]) -> dict[str, Any]:
    """The same object with its members in another order and some left out: what arrives is not what is encoded."""
    names = [name for name in values if rng.random() < 0.9]
    rng.shuffle(names)
    return {name: values[name] for name in names}


def _inner(rng: random.Random) -> dict[str, Any]:
    return {"zeta": rng.choice(INTEGERS), "alpha": _text(rng), "mid": rng.random() < 0.5}


def _customer(rng: random.Random) -> dict[str, Any]:
    return {"name": _text(rng), "id": _text(rng), "region": rng.choice(("", "west", "<east>"))}


def _label(rng: random.Random) -> Any:
    return rng.choice((None, True, _text(rng), {"z": 1.5, "a": {"y": None, "b": []}}, ["x", {"k": "<"}], 2.5))


def _time(rng: random.Random) -> str:
    return _moment(rng).isoformat()


VALUES: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "Empty": lambda _: {},
    "Simple": lambda rng: {"name": _text(rng), "count": rng.choice(INTEGERS)},
    "Ordered": lambda rng: {
        "zeta": rng.choice(INTEGERS),
        "nested": _inner(rng),
        "alpha": _text(rng),
        "Mid": True,
        "_under": 3,
        "a.b": _text(rng),
        "path/key": "s",
    },
    "Floats": lambda rng: {
        "one": rng.choice((rng.choice(FLOATS), rng.uniform(-1e9, 1e9), rng.random() * 10.0 ** rng.randrange(-30, 30))),
        "many": _some(rng, lambda: rng.choice(FLOATS)),
        "table": _map(rng, lambda: rng.choice(FLOATS)),
    },
    "Integers": lambda rng: {
        "small": rng.randrange(-128, 128),
        "large": rng.choice(INTEGERS),
        "unsigned": rng.randrange(2**64),
        "flag": rng.random() < 0.5,
    },
    "Times": lambda rng: {
        "at": _time(rng),
        "maybe": rng.choice((None, _time(rng))),
        "later": rng.choice((None, _time(rng))),
        "items": _some(rng, lambda: _time(rng)),
    },
    "Omitting": lambda rng: {
        "text": rng.choice(("", "t")),
        "number": rng.choice((0, 5)),
        "real": rng.choice((0.0, -0.0, 0.5)),
        "flag": rng.random() < 0.5,
        "items": rng.choice((None, [], ["", "x"])),
        "table": rng.choice((None, {}, {"b": "1", "a": ""})),
        "pointer": rng.choice((None, "", "p")),
        "object": rng.choice((None, _inner(rng))),
        "last": _text(rng),
    },
    "Nullable": lambda rng: {
        "text": rng.choice((None, _text(rng))),
        "number": rng.choice((None, 0, 9)),
        "object": rng.choice((None, _inner(rng))),
        "items": _some(rng, lambda: _text(rng)),
        "table": _map(rng, lambda: _text(rng)),
    },
    "Collections": lambda rng: {
        "objects": _some(rng, lambda: _inner(rng)),
        "by_name": _map(rng, lambda: _inner(rng)),
        "matrix": _some(rng, lambda: [1, 2]),
        "labels": _map(rng, lambda: _label(rng)),
        "pair": [_text(rng), _text(rng)],
    },
    "Bytes": lambda rng: {"data": rng.choice((None, "", base64.b64encode(rng.randbytes(rng.randrange(20))).decode()))},
    "Selected": lambda rng: {
        "trace_id": _text(rng),
        "customer_id": _text(rng),
        "amount": rng.choice(INTEGERS),
        "note": _text(rng),
    },
    "SelectedNested": lambda rng: {
        "subject": _text(rng),
        "customer": _customer(rng),
        "trace_id": _text(rng),
        "label": rng.choice((None, _text(rng))),
    },
    "SelectedPointer": lambda rng: {"trace_id": _text(rng), "customer": rng.choice((None, _customer(rng)))},
    "SelectedWhole": lambda rng: {
        "trace_id": _text(rng),
        "object": _inner(rng),
        "table": _map(rng, lambda: _text(rng)),
        "items": _some(rng, lambda: rng.choice(INTEGERS)),
    },
    "SelectedOmitting": lambda rng: {"left": rng.choice(("", "l")), "right": rng.choice((0, 8)), "other": _text(rng)},
    "SelectedSiblings": lambda rng: {"payer": _customer(rng), "payee": _customer(rng), "trace_id": _text(rng)},
    "SelectedSiblingsMarked": lambda rng: {"payer": _customer(rng), "payee": _customer(rng), "trace_id": _text(rng)},
    "Embedded": lambda rng: {"tenant_id": _text(rng), "actor": _text(rng), "subject": _text(rng), "body": _text(rng)},
    "EmbeddedPlain": lambda rng: {"middle": _text(rng), "flag": True, "zed": _text(rng), "able": rng.choice(INTEGERS)},
    "SelectedOddNames": lambda rng: {
        "a.b": _text(rng),
        "path/key": _text(rng),
        ":lead": _text(rng),
        "é": _text(rng),
        "other": _text(rng),
    },
}
