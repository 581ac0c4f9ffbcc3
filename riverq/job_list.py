"""A list of jobs as it is asked for, page by page: filters, ordering, and the cursor that a page ends with.

A page begins after a job and not at a number, so rows that come, go or change between two pages neither hide others nor
show them twice. The place is the value that the list is ordered by, and the id, which decides among equals in the same
direction.

A cursor is Go River's: base64 of a JSON object, and either language reads the other's. Go writes base64's URL alphabet;
from 0.51 on it also reads that one, older versions read the standard one. The two differ in two characters, so what is
written here holds neither: byte for byte Go's text where that is free of them, else the same JSON with escapes instead
of the characters that lead to them. In ASCII only `>`, `?`, `~` and DEL do, as the last of three bytes.

Everything that can be wrong is found here, before a statement is sent.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypedDict, overload

from riverq.codec import encode
from riverq.errors import ConfigError
from riverq.gojson import encode_string, encode_time
from riverq.job import FINAL_STATES, JobRow, JobState
from riverq.validation import fail, integer, known_options, nearest

LARGEST_PAGE = 10_000
LARGEST_ID = 2**63 - 1

ListOrder = Literal["id", "time", "finalized_at", "scheduled_at"]
TimeColumn = Literal["attempted_at", "finalized_at", "scheduled_at"]

ORDERS = ("id", "time", "finalized_at", "scheduled_at")


class JobListOptions(TypedDict, total=False):
    """Which jobs to list, and in which order. Of a filter's values a job needs one; of several filters, each.

    None is no filter. An empty list is one that no job meets, except `tags_all`, which asks for nothing then (in Go
    River an empty list is no filter).

    - `ids`, `kinds`, `queues`, `states`; `priorities`: 1 to 4.
    - `tags_all`: tags that a job must have, all of them.
    - `tags_any`: tags of which a job must have one.
    - `metadata`: a dict that the job's metadata must contain, as Postgres' `@>` has it: keys with their values, nested
      ones too, among any others.
    - `order_by`: `"id"` (the default); `"scheduled_at"`; `"finalized_at"`, for jobs that have ended, which are then the
      only ones listed; `"time"`, which is the time that matters to the first of `states`: `finalized_at` where jobs in
      it have ended, `attempted_at` of running ones, else `scheduled_at`, also without `states`. Jobs without that time
      count as later than all others. Jobs with the same time are ordered by id.
    - `descending`: the largest id, or the latest time, first.
    """

    ids: Collection[int] | None
    kinds: Collection[str] | None
    priorities: Collection[int] | None
    queues: Collection[str] | None
    states: Collection[JobState | str] | None
    tags_all: Collection[str] | None
    tags_any: Collection[str] | None
    metadata: Mapping[str, Any] | None
    order_by: ListOrder | None
    descending: bool | None


@dataclass(frozen=True, slots=True, repr=False)
class JobPage(Sequence[JobRow]):
    """Some of the listed jobs, in order: a sequence of `JobRow`.

    `cursor` is the place of the last one, for `after=` of the same list; None where the page is empty. It is a text
    without white space, also read by Go River; in a URL its `=` may have to be quoted. `has_more` tells whether there
    were further jobs when the page was read.
    """

    jobs: tuple[JobRow, ...]
    cursor: str | None = None
    has_more: bool = False

    def __len__(self) -> int:
        return len(self.jobs)

    @overload
    def __getitem__(self, index: int) -> JobRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[JobRow, ...]: ...
    def __getitem__(self, index: int | slice) -> JobRow | tuple[JobRow, ...]:
        return self.jobs[index]

    def __repr__(self) -> str:
        return f"<JobPage of {len(self.jobs)}{', and more' if self.has_more else ''}>"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list: that of a job, by the ordering's time and its id. `time` is None where the job has none."""

    id: int
    kind: str
    queue: str
    order_by: str
    time: datetime | None = None

    def encode(self) -> str:
        """The text, as in the module's docstring."""
        at = _NO_TIME if self.time is None else encode_time(self.time.astimezone(UTC))
        text = (
            f'{{"id":{self.id},"kind":{encode_string(self.kind)},"queue":{encode_string(self.queue)},'
            f'"sort_field":{encode_string(self.order_by)},"time":{at}}}'
        )
        encoded = base64.b64encode(text.encode()).decode()
        if "+" in encoded or "/" in encoded:
            encoded = base64.b64encode(_TELLING.sub(_escape, text).encode()).decode()
        return encoded

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """The opposite of `encode`: either alphabet, padded or not. Raises ConfigError."""
        try:
            data = json.loads(_unbase64(text))
            cursor = cls(data["id"], data["kind"], data["queue"], data["sort_field"], _parse_time(data["time"]))
            integer("id", cursor.id, 1, LARGEST_ID)
            _texts("cursor", (cursor.kind, cursor.queue, cursor.order_by))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            raise fail("after", "to be the cursor of a page", shown, "pass page.cursor on as it is") from error
        return cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class JobListParams:
    """One page about to be read, everything resolved and validated.

    None is no filter. `metadata` is encoded. `column` is the time that orders the list, None where only the id does;
    `nullable` tells whether a listed job may lack it.
    """

    limit: int = 100
    ids: tuple[int, ...] | None = None
    kinds: tuple[str, ...] | None = None
    priorities: tuple[int, ...] | None = None
    queues: tuple[str, ...] | None = None
    states: tuple[JobState, ...] | None = None
    tags_all: tuple[str, ...] | None = None
    tags_any: tuple[str, ...] | None = None
    metadata: str | None = None
    order_by: ListOrder = "id"
    column: TimeColumn | None = None
    nullable: bool = False
    descending: bool = False
    after: Cursor | None = None

    def place_of(self, job: JobRow) -> Cursor:
        """Where `job` stands in this list."""
        time = None if self.column is None else getattr(job, self.column)
        return Cursor(job.id, job.kind, job.queue, self.order_by, time)

    def following(self, job: JobRow) -> JobListParams:
        """The page after `job`."""
        return replace(self, after=self.place_of(job))

    def page(self, found: Sequence[JobRow]) -> JobPage:
        """A page of `found`, which is one more job than its limit where there are more."""
        jobs = tuple(found[: self.limit])
        return JobPage(jobs, self.place_of(jobs[-1]).encode() if jobs else None, len(found) > self.limit)


def list_params(
    options: Mapping[str, Any], *, limit: int, after: str | JobRow | None, limit_name: str = "limit"
) -> JobListParams:
    """What listing with `options` means. Raises ConfigError."""
    known_options("list option", options, JobListOptions.__annotations__)
    integer(limit_name, limit, 1, LARGEST_PAGE)
    given = {name: value for name, value in options.items() if value is not None}
    filters: dict[str, Any] = {name: _CHECKS[name](given[name]) for name in _CHECKS if name in given}
    order_by, descending = given.get("order_by", "id"), given.get("descending", False)
    if order_by not in ORDERS:
        raise fail("order_by", f"to be one of {', '.join(ORDERS)}", order_by)
    if not isinstance(descending, bool):
        raise fail("descending", "to be True or False", descending)
    states: tuple[JobState, ...] | None = filters.pop("states", None)
    if order_by == "finalized_at":
        states = _final(states)
    elif order_by == "time" and states is not None and not isinstance(given["states"], Sequence):
        _same_time(states)
    column = _column(order_by, states)
    params = JobListParams(
        limit=limit,
        states=states,
        order_by=order_by,
        column=column,
        nullable=column == "attempted_at" or (column == "finalized_at" and not FINAL_STATES.issuperset(states or ())),
        descending=descending,
        **filters,
    )
    return params if after is None else replace(params, after=_after(after, params))


# -- the ordering


def _column(order_by: str, states: Sequence[JobState] | None) -> TimeColumn | None:
    if order_by == "id":
        return None
    if order_by == "finalized_at":
        return "finalized_at"
    return _time_of(states[0]) if order_by == "time" and states else "scheduled_at"


def _time_of(state: JobState) -> TimeColumn:
    if state.is_final:
        return "finalized_at"
    return "attempted_at" if state is JobState.RUNNING else "scheduled_at"


def _final(states: tuple[JobState, ...] | None) -> tuple[JobState, ...]:
    if states is None:
        return tuple(sorted(FINAL_STATES))
    for state in states:
        if not state.is_final:
            raise fail("states", "to be final ones for order_by='finalized_at'", str(state), "or order_by='time'")
    return states


def _same_time(states: tuple[JobState, ...]) -> None:
    if len({_time_of(state) for state in states}) > 1:
        raise ConfigError(
            f"expected states to be a list for order_by='time', got: the set {{{', '.join(sorted(states))}}} "
            "(the first state decides which time orders the jobs, and a set has no first)"
        )


# -- the place to begin after


def _after(after: str | JobRow, params: JobListParams) -> Cursor:
    if isinstance(after, JobRow):
        cursor = params.place_of(after)
    elif isinstance(after, str):
        cursor = Cursor.decode(after)
    else:
        raise fail("after", "to be the cursor of a page, or a JobRow", after)
    if cursor.order_by != params.order_by:
        raise ConfigError(
            f"expected after to be a cursor of this list, which is ordered by {params.order_by}, "
            f"got: one of a list ordered by {cursor.order_by} (list both pages with the same options)"
        )
    if params.column is not None and cursor.time is None and not params.nullable:
        raise ConfigError(
            f"expected after to be a cursor of this list, got: job {cursor.id} without {params.column}, by which "
            "the list is ordered (list both pages with the same options)"
        )
    for name, value in (("ids", cursor.id), ("kinds", cursor.kind), ("queues", cursor.queue)):
        wanted: tuple[object, ...] | None = getattr(params, name)
        if wanted is not None and value not in wanted:
            raise ConfigError(
                f"expected after to be a cursor of this list, got: job {cursor.id}, which is none of it by {name} "
                "(list both pages with the same options)"
            )
    return cursor


_NO_TIME = '"0001-01-01T00:00:00Z"'
_ZERO = datetime(1, 1, 1, tzinfo=UTC)
_SHOWN = 100
_TELLING = re.compile(r"[>?~]|[^\x00-\x7e]")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _unbase64(text: str) -> bytes:
    standard = text.rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error


def _parse_time(text: str) -> datetime | None:
    """RFC 3339, cut to microseconds; Go's zero time is None."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"no time: {text!r}")
    moment, fraction, zone = found.groups()
    at = datetime.fromisoformat(f"{moment}.{(fraction or '')[:6]:0<6}{zone}").astimezone(UTC)
    return None if at == _ZERO else at


# -- checks, one per filter


def _collection(name: str, value: object, what: str) -> Collection[Any]:
    if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)):
        raise fail(name, f"to be a list of {what}", value)
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = tuple(_collection(name, value, "texts"))
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise fail(f"{name}[{index}]", "to be a text", text)
        if not is_storable(text):
            raise fail(f"{name}[{index}]", "to be a text that Postgres can store", text)
    return texts


def is_storable(text: str) -> bool:
    """Whether Postgres can have it as text: no NUL, and no half of a surrogate pair, which has no bytes in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _integers(name: str, value: object, high: int) -> tuple[int, ...]:
    numbers = tuple(_collection(name, value, "integers"))
    for index, number in enumerate(numbers):
        integer(f"{name}[{index}]", number, 1, high)
    return numbers


def _states(value: object) -> tuple[JobState, ...]:
    states = []
    for index, state in enumerate(_collection("states", value, "states")):
        try:
            states.append(JobState(state))
        except ValueError as error:
            hint = (
                nearest(state, [known.value for known in JobState])
                if isinstance(state, str)
                else "riverq.JobState has them"
            )
            raise fail(f"states[{index}]", "to be a state of a job", state, hint) from error
    return tuple(states)


def _metadata(value: object) -> str:
    if not isinstance(value, Mapping):
        raise fail("metadata", "to be a dict", value)
    return encode(value, "metadata")


_CHECKS = {
    "ids": lambda value: _integers("ids", value, LARGEST_ID),
    "kinds": lambda value: _texts("kinds", value),
    "priorities": lambda value: _integers("priorities", value, 4),
    "queues": lambda value: _texts("queues", value),
    "states": _states,
    "tags_all": lambda value: _texts("tags_all", value),
    "tags_any": lambda value: _texts("tags_any", value),
    "metadata": _metadata,
}
