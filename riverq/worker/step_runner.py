"""Calls the bodies of a job's steps: `job.step`, `job.cursor_step` and `job.save_step` end here.

Before: `riverq.job.Job` hands over what the worker said. After: `worker.resumable` keeps the books. A body is called at
once; what an `async def` body returns is awaited by the worker, and a step that is not awaited to its end fails the
attempt: it stays under way, which the next step, or the end of the attempt, finds out.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from riverq.codec import encode
from riverq.errors import ConfigError
from riverq.job import StepCursor
from riverq.worker.resumable import StepError, Steps

if TYPE_CHECKING:
    from sqlalchemy import Connection

CURSOR_LIMIT = 32 * 1024 * 1024
"""Bytes of JSON that one cursor may have."""

SaveIn = Callable[[Any, str, "Callable[[Connection], None]"], Any]
"""`save_in(session, metadata, saved)` merges in the session's transaction, and then calls `saved(connection)`."""


class StepRunner:
    """Runs the steps of one attempt. Implements `riverq.job.JobSteps`.

    In an `async def` worker (`is_async`) every call gives something to await, also where there is nothing to do: what
    was not awaited when a step was skipped would otherwise be a mistake only in the attempts that run it.
    """

    def __init__(self, steps: Steps, save_in: SaveIn, *, is_async: bool) -> None:
        self.steps = steps
        self._save_in = save_in
        self._is_async = is_async

    def step(self, name: str, body: Callable[[], object]) -> Any:
        """Run a step, or skip it."""
        return self._run(name, body, has_cursor=False)

    def cursor_step(self, name: str, body: Callable[[StepCursor], object]) -> Any:
        """Run a step that goes on from its cursor, or skip it."""
        return self._run(name, partial(body, Cursor(self, name)), has_cursor=True)

    def save(self, session: Any, name: str | None = None, cursor: str | None = None) -> Any:
        """Save the step that is under way in the caller's transaction."""
        steps = self.steps
        written = self._save_in(session, steps.to_save(name, cursor), lambda conn: steps.saved(conn, cursor))
        if not inspect.isawaitable(written):
            return None
        steps.saving += 1
        return self._saved_later(written)

    async def _saved_later(self, written: Awaitable[None]) -> None:
        try:
            await written
        finally:
            self.steps.saving -= 1

    def _run(self, name: str, body: Callable[[], object], *, has_cursor: bool) -> Any:
        if self.steps.begin(name, has_cursor=has_cursor):
            try:
                result = body()
                if inspect.isawaitable(result):
                    if self._is_async:
                        return self._finished_later(result)
                    _refuse_awaitable(name, result)
            except BaseException as error:
                self.steps.failed(error)
                raise
            self.steps.finished()
        return _NOTHING if self._is_async else None

    async def _finished_later(self, result: Awaitable[object]) -> None:
        try:
            await result
        except BaseException as error:
            self.steps.failed(error)
            raise
        self.steps.finished()


class Cursor:
    """One step's cursor. Implements `riverq.job.StepCursor`."""

    __slots__ = ("_name", "_runner")

    def __init__(self, runner: StepRunner, name: str) -> None:
        self._runner = runner
        self._name = name

    @property
    def value(self) -> Any:
        """The cursor, decoded; None where there is none yet."""
        encoded = self._runner.steps.cursor(self._name)
        try:
            return None if encoded is None else json.loads(encoded)
        except (ValueError, RecursionError) as error:
            raise StepError(f'river: cannot read the resumable cursor of step "{self._name}": {error}') from error

    def set(self, value: object) -> None:
        """Come so far."""
        self._runner.steps.set_cursor(self._name, _encode_cursor(value))

    def save(self, value: object, *, session: Any) -> Any:
        """Come so far, in the caller's transaction."""
        return self._runner.save(session, self._name, _encode_cursor(value))


class _Nothing(Coroutine[Any, Any, None]):
    """A coroutine that has nothing to do, and is not missed where nobody awaits it."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield

    def send(self, _value: object) -> NoReturn:
        raise StopIteration

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> NoReturn:
        raise (val if val is not None else typ).with_traceback(tb)

    def close(self) -> None:
        pass


_NOTHING = _Nothing()


def _refuse_awaitable(name: str, result: object) -> NoReturn:
    if inspect.iscoroutine(result):
        result.close()
    raise StepError(
        f'river: resumable step "{name}" is async def, and its worker is not (declare the worker async def)'
    )


def _encode_cursor(value: object) -> str:
    encoded = encode(value, "cursor")
    size = len(encoded) if encoded.isascii() else len(encoded.encode())
    if size > CURSOR_LIMIT:
        raise ConfigError(f"expected a cursor to be at most {CURSOR_LIMIT} bytes of JSON, got: {size}")
    return encoded
