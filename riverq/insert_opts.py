"""Insert options, their precedence, and the row-to-be that they resolve to.

Precedence is River's, option by option: what the call says, then what the args class says, then the client's defaults.
Tags are not merged, unique options are taken whole, metadata and pending come from the call only. Everything that can
be wrong is found here, before a statement is sent, because a statement that fails would cost the caller's transaction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from riverq.codec import encode
from riverq.errors import ConfigError
from riverq.job import JobState
from riverq.unique import UniqueOpts, unique_key
from riverq.validation import duration, fail, integer, known_options

if TYPE_CHECKING:
    from riverq.job_args import ArgsSpec

DEFAULT_QUEUE = "default"
MAX_ATTEMPTS = 32_767
MAX_KIND_LENGTH = 127
MAX_QUEUE_LENGTH = 64
MAX_TAG_BYTES = 255

# RE2's \w is ASCII; written so that no input makes Python's engine backtrack.
_KIND = re.compile(r"\w[\w\-\[\]<>/.·:+]+", re.ASCII)
_QUEUE = re.compile(r"[a-z0-9]+(?:[_|\-][a-z0-9]+)*")
_TAG = re.compile(r"\w[\w\-]+\w", re.ASCII)


class DefaultOptions(TypedDict, total=False):
    """The options that an args class may carry; see `InsertOptions`."""

    delay: timedelta | None
    max_attempts: int | None
    priority: int | None
    queue: str | None
    tags: Sequence[str] | None
    unique_opts: UniqueOpts | None


class InsertOptions(DefaultOptions, total=False):
    """The options of one insert. None means not given.

    - `delay`: run this long after the insert, by the database's clock. Not with `scheduled_at`.
    - `max_attempts`: 1 to 32 767; the client's `max_attempts` (25) by default.
    - `metadata`: a JSON object to store beside the args; `{}` by default.
    - `pending`: park the job; it is not worked until other code moves it on.
    - `priority`: 1 (first, the default) to 4.
    - `queue`: lower case letters and digits, joined by `_`, `-` or `|`, at most 64; `default` by default.
    - `scheduled_at`: an aware datetime to run at; a job with one starts as `scheduled`, even if it is past.
    - `tags`: texts of at least three letters, digits, `_` and `-`; an empty list beats the class's tags.
    - `unique_opts`: what makes this job the same as another.
    """

    metadata: Mapping[str, Any] | None
    pending: bool | None
    scheduled_at: datetime | None


DEFAULT_NAMES = frozenset(DefaultOptions.__annotations__)
OPTION_NAMES = frozenset(DEFAULT_NAMES | InsertOptions.__annotations__.keys())


@dataclass(frozen=True, slots=True, kw_only=True)
class InsertParams:
    """One job about to be inserted, everything resolved and validated.

    At most one of `scheduled_at` and `scheduled_in` is set; `scheduled_in` is written as the statement's own time plus
    that long, and with neither it is the statement's time. `unique_states` is the mask of
    docs/internals/unique-keys.md, 0 where the job is not unique. `args` is what the caller gave, for middleware to look
    at. The key is computed before middleware: middleware that changes `encoded_args` does not change it.
    """

    kind: str
    encoded_args: str
    max_attempts: int = 25
    metadata: str = "{}"
    priority: int = 1
    queue: str = DEFAULT_QUEUE
    scheduled_at: datetime | None = None
    scheduled_in: timedelta | None = None
    state: JobState = JobState.AVAILABLE
    tags: tuple[str, ...] = ()
    unique_key: bytes | None = None
    unique_states: int = 0
    args: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ClientDefaults:
    """What the client's configuration says where nothing else does.

    `period_basis` is the time that `by_period` looks at: `"scheduled_time"`, or `"insert_time"` for fleets with Go
    River before 0.48, which ignores when the job is scheduled for.
    """

    max_attempts: int = 25
    period_basis: Literal["scheduled_time", "insert_time"] = "scheduled_time"


class InsertItem:
    """Args with options of their own, for `insert_many`. Raises ConfigError for options that cannot be."""

    __slots__ = ("args", "options")

    def __init__(self, args: object, **options: Unpack[InsertOptions]) -> None:
        check_options(options)
        self.args = args
        self.options = options

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"InsertItem({self.args!r}{options})"


def resolve(
    spec: ArgsSpec, args: object, options: Mapping[str, object], *, defaults: ClientDefaults, now: datetime
) -> InsertParams:
    """The row that inserting `args` with `options` makes. `now` is the client's clock, for `by_period` only.

    Raises ConfigError, and ArgsEncodeError for args or metadata that have no form in JSON.
    """
    encoded_args = spec.encode(args)
    chosen = _merge(spec.defaults, options)
    queue = chosen.get("queue") or DEFAULT_QUEUE
    scheduled_at, delay = chosen.get("scheduled_at"), chosen.get("delay") or None
    state = JobState.AVAILABLE if scheduled_at is None and delay is None else JobState.SCHEDULED
    metadata = chosen.get("metadata")
    key, mask = None, 0
    unique = chosen.get("unique_opts")
    if unique is not None and not unique.is_empty:
        at = now if defaults.period_basis == "insert_time" else scheduled_at or now + (delay or timedelta(0))
        key = unique_key(unique, kind=spec.kind, encoded_args=encoded_args, paths=spec.unique_paths, at=at, queue=queue)
        mask = unique.mask
    return InsertParams(
        kind=spec.kind,
        encoded_args=encoded_args,
        max_attempts=chosen.get("max_attempts") or defaults.max_attempts,
        metadata=encode(metadata, "metadata") if metadata else "{}",
        priority=chosen.get("priority") or 1,
        queue=queue,
        scheduled_at=scheduled_at,
        scheduled_in=delay,
        state=JobState.PENDING if chosen.get("pending") else state,
        tags=tuple(chosen.get("tags") or ()),
        unique_key=key,
        unique_states=mask,
        args=args,
    )


def _merge(class_options: DefaultOptions, options: Mapping[str, object]) -> InsertOptions:
    """The call's options over the class's; the latter were checked when the class was made."""
    if not options:
        return cast("InsertOptions", class_options)
    check_options(options)
    given = {name: value for name, value in options.items() if value is not None}
    merged = {name: value for name, value in class_options.items() if value is not None} | given
    if "scheduled_at" in given:
        merged.pop("delay", None)
    explicit, of_class = given.get("unique_opts"), class_options.get("unique_opts")
    if isinstance(explicit, UniqueOpts) and explicit.is_empty and of_class is not None:
        merged["unique_opts"] = of_class
    return cast("InsertOptions", merged)


# -- checks, one per option


def check_options(options: Mapping[str, object], known: frozenset[str] = OPTION_NAMES) -> None:
    """Refuses options that do not exist, with the nearest that does, and values that cannot be. Raises ConfigError."""
    known_options("insert option", options, known)
    for name, value in options.items():
        if value is not None:
            _CHECKS[name](value)
    if options.get("delay") is not None and options.get("scheduled_at") is not None:
        raise ConfigError("expected delay or scheduled_at, got both (delay counts from the insert)")


def check_kind(kind: object) -> None:
    """What the table accepts as a kind: a text of 1 to 127 characters."""
    if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_KIND_LENGTH or "\0" in kind:
        raise fail("kind", f"to be a text of 1 to {MAX_KIND_LENGTH} characters", kind)
    _check_text("kind", kind)


def check_worker_kind(kind: str) -> None:
    """What River accepts as the kind of a worker: at least two characters, of a narrow alphabet."""
    check_kind(kind)
    if not _KIND.fullmatch(kind):
        raise fail(
            "kind",
            "to be at least two letters, digits, underscores and -[]<>/.·:+, the first a letter, digit or underscore",
            kind,
            "Workers(skip_kind_validation=True) lets it pass",
        )


def check_queue_name(queue: object) -> None:
    """Raises ConfigError for a name that River refuses."""
    if not isinstance(queue, str) or len(queue) > MAX_QUEUE_LENGTH or not _QUEUE.fullmatch(queue):
        raise fail(
            "queue",
            f"to be at most {MAX_QUEUE_LENGTH} lower case letters and digits, joined by single _, - or |",
            queue,
        )


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise fail(name, "to be Unicode text", text, f"lone surrogate at index {error.start}") from error


def _check_tags(tags: object) -> None:
    if not isinstance(tags, (list, tuple)):
        raise fail("tags", "to be a list of texts", tags)
    for index, tag in enumerate(tags):
        if not isinstance(tag, str) or not _TAG.fullmatch(tag) or len(tag) > MAX_TAG_BYTES:
            raise fail(
                f"tags[{index}]",
                f"to be 3 to {MAX_TAG_BYTES} letters, digits, underscores and inner dashes",
                tag,
            )


def _check_scheduled_at(at: object) -> None:
    if not isinstance(at, datetime):
        raise fail("scheduled_at", "to be a datetime", at, "for a time from now use delay=")
    if at.utcoffset() is None:
        raise fail("scheduled_at", "to be aware of its zone", at, "datetime.now(UTC), at.astimezone(); or delay=")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, Mapping):
        raise fail("metadata", "to be a dict", metadata)


def _check_pending(pending: object) -> None:
    if not isinstance(pending, bool):
        raise fail("pending", "to be True or False", pending)


def _check_unique_opts(unique: object) -> None:
    if not isinstance(unique, UniqueOpts):
        raise fail("unique_opts", "to be a riverq.UniqueOpts", unique)


_CHECKS = {
    "delay": lambda value: duration("delay", value),
    "max_attempts": lambda value: integer("max_attempts", value, 1, MAX_ATTEMPTS),
    "metadata": _check_metadata,
    "pending": _check_pending,
    "priority": lambda value: integer("priority", value, 1, 4),
    "queue": check_queue_name,
    "scheduled_at": _check_scheduled_at,
    "tags": _check_tags,
    "unique_opts": _check_unique_opts,
}
