"""Unique jobs: from options and encoded args to the bytes of `unique_key` and the bits of `unique_states`.

The key is a SHA-256 over a text that every River client must build alike: `&kind=`, `&args=`, `&period=`, `&queue=`, in
that order, without escapes. docs/internals/unique-keys.md has the rules with their reasons.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from riverq.errors import ConfigError
from riverq.fields import Mark, fields_of, shape_of, without_none
from riverq.gojson import encode_string, members
from riverq.job import JobState
from riverq.validation import duration, fail

unique: Final = Mark("unique")
"""The field takes part in the unique key: `Annotated[str, riverq.unique]` is Go's tag `river:"unique"`.

With no field marked, all args do.
"""

Path = tuple[str, ...]

MASK: Final[Mapping[JobState, int]] = {
    JobState.AVAILABLE: 1 << 0,
    JobState.CANCELLED: 1 << 1,
    JobState.COMPLETED: 1 << 2,
    JobState.DISCARDED: 1 << 3,
    JobState.PENDING: 1 << 4,
    JobState.RETRYABLE: 1 << 5,
    JobState.RUNNING: 1 << 6,
    JobState.SCHEDULED: 1 << 7,
}
"""The bit of each state in `unique_states`. Printed as bit(8) the highest comes first: scheduled ... available."""

DEFAULT_STATES: Final = frozenset(JobState) - {JobState.CANCELLED, JobState.DISCARDED}
"""A job holds its key in these states when `by_state` does not say otherwise."""

REQUIRED_STATES: Final = frozenset({JobState.AVAILABLE, JobState.PENDING, JobState.RUNNING, JobState.SCHEDULED})
"""Every `by_state` must have these: without them a job could be inserted twice before it ran once."""

log = logging.getLogger("riverq")

_ZERO_TIME = datetime(1, 1, 1, tzinfo=UTC)
_PLAIN_KEY = re.compile(r"[ !#-\[\]-\x7f]*")


@dataclass(frozen=True, kw_only=True)
class UniqueOpts:
    """What makes two jobs the same job. Nothing set means not unique.

    - `by_args`: same args: the fields marked `riverq.unique`, or all of them where none is marked.
    - `by_period`: same window of this length (at least one second), counted from the year 1 in UTC, by the time the job
      is scheduled for.
    - `by_queue`: same queue.
    - `by_state`: in which states a job keeps others out; by default all but cancelled and discarded. Must contain
      available, pending, running and scheduled.
    - `exclude_kind`: whatever the kind; needs `by_args`, `by_period` or `by_queue`.

    Raises ConfigError where these do not hold.
    """

    by_args: bool = False
    by_period: timedelta | None = None
    by_queue: bool = False
    by_state: Iterable[JobState] | None = None
    exclude_kind: bool = False

    def __post_init__(self) -> None:
        for name in ("by_args", "by_queue", "exclude_kind"):
            if not isinstance(getattr(self, name), bool):
                raise fail(name, "to be True or False", getattr(self, name))
        if self.by_period is not None:
            duration("by_period", self.by_period, timedelta(seconds=1))
        if self.by_state is not None:
            object.__setattr__(self, "by_state", _checked_states(self.by_state))
        if self.exclude_kind and not (self.by_args or self.by_period or self.by_queue):
            raise ConfigError(
                "exclude_kind alone would make all jobs one (add by_args, by_period or by_queue to UniqueOpts)"
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing makes the job unique."""
        return not (self.by_args or self.by_period or self.by_queue or self.by_state)

    @property
    def states(self) -> frozenset[JobState]:
        """The states that hold the key."""
        return DEFAULT_STATES if self.by_state is None else frozenset(self.by_state)

    @property
    def mask(self) -> int:
        """The states as the integer value of `unique_states`."""
        return state_mask(self.states)


def state_mask(states: Iterable[JobState]) -> int:
    """The bits of `states`."""
    return sum(MASK[state] for state in frozenset(states))


def states_of_mask(mask: int) -> frozenset[JobState]:
    """The states whose bits are set."""
    return frozenset(state for state, bit in MASK.items() if mask & bit)


def unique_key(
    opts: UniqueOpts, *, kind: str, encoded_args: str, paths: Sequence[Path], at: datetime, queue: str
) -> bytes:
    """The 32 bytes of `unique_key`. Arguments as for `unique_text`."""
    text = unique_text(opts, kind=kind, encoded_args=encoded_args, paths=paths, at=at, queue=queue)
    return hashlib.sha256(text.encode()).digest()


def unique_text(
    opts: UniqueOpts, *, kind: str, encoded_args: str, paths: Sequence[Path], at: datetime, queue: str
) -> str:
    """The text that is hashed, for comparing with other clients.

    `encoded_args` is what is stored, `paths` the marked fields (empty for all), `at` the aware time that the period is
    looked up for.
    """
    parts: list[str] = []
    if not opts.exclude_kind:
        parts.append(f"&kind={kind}")
    if opts.by_args:
        parts.append(f"&args={_selected(encoded_args, paths) if paths else _sorted(encoded_args)}")
    if opts.by_period is not None:
        parts.append(f"&period={_lower_bound(at, opts.by_period)}")
    if opts.by_queue:
        parts.append(f"&queue={queue}")
    return "".join(parts)


def unique_paths(cls: type) -> tuple[Path, ...]:
    """The marked fields of `cls` as paths of JSON names, sorted as the key needs them."""
    return tuple(sorted(_marked(cls, (), set()), key=".".join))


def _checked_states(given: Iterable[JobState]) -> frozenset[JobState]:
    try:
        states = frozenset(JobState(state) for state in given)
    except (TypeError, ValueError) as error:
        raise fail("by_state", "to hold job states", given, ", ".join(JobState)) from error
    missing = REQUIRED_STATES - states
    if missing:
        raise fail(
            "by_state",
            "to contain available, pending, running and scheduled",
            sorted(states),
            f"missing: {', '.join(sorted(missing))}",
        )
    return states


def _lower_bound(at: datetime, period: timedelta) -> str:
    """The start of `at`'s period. Periods are counted from the year 1, Go's zero time, not from 1970."""
    utc = at.astimezone(UTC)
    start = utc - (utc - _ZERO_TIME) % period
    return f"{start.replace(microsecond=0, tzinfo=None).isoformat()}Z"


def _sorted(encoded_args: str) -> str:
    """All args: only the top level is sorted, values stay as they are; of a key given twice the first counts."""
    first: dict[str, str] = {}
    for key, value in members(encoded_args):
        first.setdefault(key, value)
    return _object((key, first[key]) for key in sorted(first))


def _selected(encoded_args: str, paths: Sequence[Path]) -> str:
    """The marked args, nested as they were. None present is the empty text, not `{}`."""
    chosen: dict[str, Any] = {}
    for path in paths:
        value: str | None = encoded_args
        for name in path:
            value = next((found for key, found in members(value) if key == name), None) if value else None
        if value is not None:
            into = chosen
            for name in path[:-1]:
                into = into.setdefault(name, {})
            into[path[-1]] = value
    return _nested(chosen) if chosen else ""


def _nested(chosen: dict[str, Any]) -> str:
    return _object((key, value if isinstance(value, str) else _nested(value)) for key, value in chosen.items())


def _object(pairs: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{_key(key)}:{value}" for key, value in pairs) + "}"


def _key(key: str) -> str:
    """Plain ASCII keys are written as they are, `<` included; others with Go's escapes."""
    return f'"{key}"' if _PLAIN_KEY.fullmatch(key) else encode_string(key)


def _marked(cls: type, above: Path, seen: set[type]) -> Iterator[Path]:
    """Marked fields of `cls` and of the classes its fields hold, whether or not those fields are marked themselves.

    A marked field whose class has marks of its own contributes only those. A class is looked into once in the whole
    walk, by its first field, as in River: of a later field of the same class only the field's own mark counts.
    """
    seen.add(cls)
    for field in fields_of(cls):
        inner, marks, _ = without_none(field.annotation)
        is_marked = unique in field.marks or unique in marks
        path = (*above, field.wire_name)
        below: list[Path] = []
        if shape_of(inner) is not None:
            if inner not in seen:
                below = list(_marked(inner, path, seen))
            elif not is_marked and _has_marks(inner):
                log.warning(
                    "%s: Leaving field %s out of unique keys, as every River client does: the marks of %s count only "
                    "where it is first met (mark the field itself, or give it a class of its own)",
                    cls.__qualname__,
                    field.attribute,
                    inner.__qualname__,
                )
        if below:
            yield from below
        elif is_marked:
            yield path


def _has_marks(cls: type) -> bool:
    return any(unique in (*field.marks, *without_none(field.annotation)[1]) for field in fields_of(cls))
