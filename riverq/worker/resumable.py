"""Resumable jobs: which steps of an attempt run, which are skipped, and what the row keeps for the next attempt.

Two keys of the row's metadata say how far a job has come, for every language alike: `river:resumable_step` is the last
step that is done (S), `river:resumable_cursor` an object from a step's name to its cursor. `Steps` reads them when the
worker begins and knows everything afterwards; `worker.step_runner` calls the bodies and tells it how they ended.

An attempt begins in one of three states:

- nothing stored: every step runs;
- S stored: steps are skipped up to and including S, unless S is a cursor step that has a cursor: that one goes on;
- cursors only, S was never reached: every step runs, and the attempt must reach the cursors' steps. Until it has, no
  step is stored as done: it would hide from the next attempt that a cursor is waiting in front of it.

It ends with one write, in the statement that writes its outcome: left off (error, snooze, cancellation, interruption,
timeout), or cleared (success). JSON merging cannot remove keys, so cleared means null, which River reads as absent.

Between the two, `save_step` writes in a transaction of the worker's. From then on the row says either what it said
before or what was saved, and which of the two is the transaction's affair. Where it was certainly rolled back, all is
as if nothing had been saved. Where it was not, and the step then fails, nothing is stored at the end except a cursor
that was set later: whatever else this attempt knows could only set the row back.

Nothing here is asked of the database. One thread or task at a time works on a job's steps; those who try to run two at
once are told so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]  # what the decoder itself uses
from typing import TYPE_CHECKING, NoReturn

from riverq.codec import encode
from riverq.errors import ConfigError, UsageError
from riverq.query.job_step import Fate, TransactionWatch

if TYPE_CHECKING:
    from sqlalchemy import Connection

STEP_KEY = "river:resumable_step"
CURSOR_KEY = "river:resumable_cursor"
RESUMABLE = "river:resumable"
"""Metadata without this text has nothing to resume, and need not be decoded."""


class StepError(UsageError):
    """The steps of a job do not fit each other, or what an earlier attempt left."""


class _Saves:
    """What was saved in transactions within one step, and whether the row can still be as it was before."""

    __slots__ = ("_before", "_is_pending", "_moves", "_watch", "may_have_moved", "set_since")

    def __init__(self, watch: TransactionWatch | None = None) -> None:
        self._watch = watch
        self._is_pending = False  # whether the last save's transaction is still to be judged
        self._before: str | None = None  # the step's cursor before that save
        self._moves = False
        self.may_have_moved = False
        self.set_since = False
        """Whether the cursor was set after the last save."""

    def next_step(self) -> _Saves:
        """For the next step; it listens to the same connection if it saves there, too."""
        return _Saves(self._watch)

    @property
    def is_open(self) -> bool:
        """Whether the transaction of the last save has not ended."""
        return self._is_pending and self._watch is not None and self._watch.fate is Fate.OPEN

    def add(self, conn: Connection, before: str | None, *, moves: bool) -> None:
        """One more write on `conn`; the cursor was `before`. Judge what came earlier, unless `continues(conn)`.

        `moves`: it changed how far the job has come, so that this attempt may know less than the row.
        """
        if not self.continues(conn):
            self._before, self._moves = before, False
            if self._watch is not None and self._watch.conn is conn:
                self._watch.reopen()
            else:
                self.close()
                self._watch = TransactionWatch(conn)
        self._moves = self._moves or moves
        self._is_pending, self.set_since = True, False

    def continues(self, conn: Connection) -> bool:
        """Whether a save on `conn` shares the transaction of the last one."""
        return self.is_open and self._watch is not None and self._watch.conn is conn

    def judge(self, cursor: str | None) -> str | None:
        """The step's cursor as it is after the last save's transaction; `cursor` is the one last set or saved."""
        if not self._is_pending:
            return cursor
        self._is_pending = False
        if self._watch is None or self._watch.fate is not Fate.ROLLED_BACK:
            self.may_have_moved = self.may_have_moved or self._moves
            return cursor
        return cursor if self.set_since else self._before

    def close(self) -> None:
        """Listen no more."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None


class Steps:
    """How far one attempt has come. Raises StepError for what cannot be, and remembers the first error."""

    __slots__ = (
        "_after",
        "_awaited",
        "_completed",
        "_cursors",
        "_done",
        "_is_over",
        "_last",
        "_met",
        "_runs",
        "_saved_any",
        "_saves",
        "_seen",
        "_step",
        "_stored",
        "_stored_cursors",
        "error",
        "saving",
    )

    def __init__(self, metadata: str) -> None:
        found = read_members(metadata) if RESUMABLE in metadata else {}
        self._stored = [key for key in (STEP_KEY, CURSOR_KEY) if found.get(key, "null") != "null"]
        self._stored_cursors = _read_cursors(found.get(CURSOR_KEY, "null"))
        self._after = _read_step(found.get(STEP_KEY, "null"))
        self._met = self._after is None
        self._awaited = set(self._stored_cursors) if self._met else set()
        self._cursors = dict(self._stored_cursors)
        self._last = self._after
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._step = ""  # the last that was begun
        self._runs = False  # whether it is under way
        self._completed = False
        self._is_over = False
        self._saves = _Saves()
        self._saved_any = False
        self.error: BaseException | None = None
        """What the first step that failed failed with; no step runs afterwards."""
        self.saving = 0
        """How many saves were begun and not awaited to their end."""

    # -- a step's way

    def begin(self, name: str, *, has_cursor: bool) -> bool:
        """Whether the step is to run now; then `finished` or `failed` must follow."""
        if not isinstance(name, str) or not name:
            raise ConfigError(f"expected a step's name to be a text that is not empty, got: {name!r}")
        encode(name, "step name")
        if self._is_over or self._completed:
            raise StepError(f'river: resumable step "{name}" was begun after the job had ended')
        if self.error is not None:
            return False
        if self._runs:
            self._refuse(
                f'river: resumable steps cannot be nested: "{name}" was begun while "{self._step}" was under way '
                "(await each step of an async def worker before the next)"
            )
        if name in self._seen:
            self._refuse(f'river: duplicate resumable step name "{name}"')
        self._seen.add(name)
        if not self._met:
            self._met = name == self._after
            if not (self._met and has_cursor and name in self._cursors):
                return False
        elif name in self._awaited:
            if not has_cursor:
                self._refuse(f'river: resumable cursor step "{name}" requires a cursor step (job.cursor_step)')
            self._awaited.discard(name)
        self._step, self._runs, self._saves = name, True, self._saves.next_step()
        return True

    def finished(self) -> None:
        """The body returned."""
        self._runs = False
        if self.error is not None:
            return  # a step within it was refused, and the body went on
        if self.saving:
            self._refuse(f'river: resumable step "{self._step}" was saved without waiting (await what saves it)')
        if self._saves.is_open:
            self._refuse(
                f'river: resumable step "{self._step}" was saved in a transaction that is still open '
                "(commit it before the step's body returns)"
            )
        if self._completed:
            return  # this step is done if the job is, and then nothing is left to resume
        self._last = self._step
        self._done.add(self._step)
        self._saves = self._saves.next_step()

    def failed(self, error: BaseException) -> None:
        """The body raised."""
        self._runs = False
        if self.error is None:
            self.error = error

    def _refuse(self, message: str) -> NoReturn:
        error = StepError(message)
        if self.error is None:
            self.error = error
        raise error

    # -- cursors, encoded

    def cursor(self, name: str) -> str | None:
        """A step's cursor; None where it has none."""
        return self._cursors.get(name)

    def set_cursor(self, name: str, encoded: str) -> None:
        """The step that is under way has come so far."""
        self.under_way(name)
        self._cursors[name] = encoded
        self._saves.set_since = True

    def under_way(self, name: str | None = None) -> str:
        """The step that is under way. Raises StepError where there is none, or another one than `name`."""
        if not self._runs or name not in (None, self._step):
            which = "no step" if name is None else f'step "{name}" not'
            raise StepError(f"river: {which} under way (set and save cursors, and save steps, in the step's own body)")
        return self._step

    # -- saving in a transaction of the worker's

    def to_save(self, name: str | None = None, cursor: str | None = None) -> str:
        """The metadata by which the step that is under way counts as done, or as come to its cursor."""
        name = self.under_way(name)
        if self._awaited:
            raise StepError(f'river: resumable checkpoint cannot precede saved cursor step "{min(self._awaited)}"')
        cursors = self._open_cursors()
        if cursor is not None:
            cursors[name] = cursor
        return f'{{"{STEP_KEY}":{encode(name)},"{CURSOR_KEY}":{_object(cursors)}}}'

    def saved(self, conn: Connection, cursor: str | None = None) -> None:
        """`to_save` was written on `conn`."""
        self._written(conn, moves=True)
        self._saved_any = True
        if cursor is not None:
            self._cursors[self._step] = cursor

    def completed(self, conn: Connection) -> None:
        """The job was completed on `conn`, perhaps in a step. What is left off is left as if that is rolled back."""
        self._completed = True
        if self._runs:
            self._written(conn, moves=False)

    def _written(self, conn: Connection, *, moves: bool) -> None:
        if not self._saves.continues(conn):
            self._judge()
        self._saves.add(conn, self._cursors.get(self._step), moves=moves)

    def _judge(self) -> None:
        cursor = self._saves.judge(self._cursors.get(self._step))
        if cursor is not None:
            self._cursors[self._step] = cursor
        else:
            self._cursors.pop(self._step, None)

    # -- the attempt's end: members of the row's metadata, encoded

    def verdict(self) -> BaseException | None:
        """The error of an attempt whose worker returned; None where its steps are in order."""
        if self.error is not None:
            return self.error
        if self._runs:
            return StepError(f'river: resumable step "{self._step}" was begun and never ended (await it)')
        if not self._met:
            return StepError(f'river: resumable step "{self._after}" not found in Worker')
        if self._awaited:
            return StepError(f'river: resumable cursor step "{min(self._awaited)}" not found in Worker')
        return None

    def cleared(self) -> dict[str, str]:
        """For success: the keys that the row may hold become null."""
        return dict.fromkeys((STEP_KEY, CURSOR_KEY) if self._saved_any else self._stored, "null")

    def left_off(self) -> dict[str, str]:
        """For everything else: what the next attempt needs to know, as far as the row does not say it."""
        self._judge()
        moved, waits = self._saves.may_have_moved, bool(self._awaited)
        if moved and not self._saves.set_since:
            return {}
        members: dict[str, str] = {}
        if not (moved or waits) and self._last is not None and (self._last != self._after or self._saved_any):
            members[STEP_KEY] = encode(self._last)
        cursors = self._cursors if waits else self._open_cursors()
        if cursors != self._stored_cursors or self._saved_any:
            members[CURSOR_KEY] = _object(cursors)
        return members

    def close(self) -> None:
        """The job has ended: no step begins any more, and nothing is listened to."""
        self._is_over = True
        self._saves.close()

    def _open_cursors(self) -> dict[str, str]:
        return {name: cursor for name, cursor in self._cursors.items() if name not in self._done}


# -- JSON, of which only what is needed is decoded: another language's cursors keep every digit


def read_members(text: str) -> dict[str, str]:
    """Keys and still encoded values of a JSON object; nothing for other JSON. Raises StepError for what is no JSON."""
    if not text.startswith("{"):
        return {}
    try:
        return dict(_members(text))
    except (ValueError, IndexError, RecursionError) as error:
        raise StepError(f"river: cannot read how far the job has come: {error}") from error


_SPACE = re.compile(r"[ \t\r\n]*")
_LENIENT = json.JSONDecoder(parse_int=str, parse_float=str)


def _members(text: str) -> Iterator[tuple[str, str]]:
    at = _skip_space(text, 1)
    while text[at] == '"':
        key, at = scanstring(text, at + 1)
        begin = _skip_space(text, _skip_space(text, at) + 1)
        _, end = _LENIENT.raw_decode(text, begin)
        yield key, text[begin:end]
        at = _skip_space(text, end)
        at = _skip_space(text, at + 1) if text[at] == "," else at


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _read_step(encoded: str) -> str | None:
    """What is no text counts for nothing, in River too."""
    name: str | None = json.loads(encoded) if encoded.startswith('"') else None
    return name or None


def _read_cursors(encoded: str) -> dict[str, str]:
    if encoded.startswith("["):
        raise StepError(f"river: expected the resumable cursors to be a JSON object, got: {encoded[:80]}")
    return read_members(encoded)


def _object(cursors: dict[str, str]) -> str:
    members = [f"{encode(name)}:{cursor}" for name, cursor in cursors.items()]
    return "{" + ",".join(members) + "}" if members else "null"
