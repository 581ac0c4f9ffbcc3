"""A schema of one's own: made with River's tables in it, and dropped whatever happens.

It is made in one transaction, so it is there whole or not at all, and carries a mark. It is dropped only by its mark,
which covers what cannot be known otherwise: an interrupt, or a lost answer, while it is being made.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from riverq import migrate
from riverq.bench.plan import Phase, Progress
from riverq.clock import SystemClock
from riverq.database import Database
from riverq.errors import ConfigError, DatabaseError, RiverqError, UnavailableError
from riverq.migrate.run import LOCK_KEY
from riverq.query.measure import lock_wait, missing_grant, schema_create, schema_drop, schema_mark

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

EXISTS = ("42P06", "23505")
"""The second is said where another one makes it at the same moment."""

NOT_ALLOWED = "42501"
DROP_PAUSES = (0.2, 1.0, 3.0)
"""Seconds to wait before dropping is tried again where the server was not available."""


class Fate(enum.Enum):
    """What is known of the schema."""

    NOTHING = "nothing was made"
    UNSURE = 'schema {schema!r} may be left behind (if its comment is {mark!r}: DROP SCHEMA "{schema}" CASCADE)'
    DROPPED = "schema {schema!r} is dropped"
    ABSENT = "schema {schema!r} is not there"
    NOT_OURS = "schema {schema!r} is left: its comment is not {mark!r}"


FATES = {True: Fate.DROPPED, False: Fate.NOT_OURS, None: Fate.ABSENT}
"""By what dropping says."""


@dataclass
class Place:
    """The schema of one run: its name, its comment, and what is known of it so far."""

    schema: str
    mark: str
    fate: Fate = Fate.NOTHING

    @property
    def sentence(self) -> str:
        """What is known, in words."""
        return self.fate.value.format(schema=self.schema, mark=self.mark)


@asynccontextmanager
async def own_schema(db: Database, place: Place, progress: Progress) -> AsyncIterator[None]:
    """Make `db.schema` with River's tables; drop it at the end.

    Raises ConfigError where it exists already, DatabaseError where it may not be made, and RiverqError, with the
    statement that remains to be run, where it cannot be dropped. `place` tells at any time what is known.
    """
    progress.begin(Phase.PREPARE)
    failure: BaseException | None = None
    is_made = False
    try:
        place.fate = Fate.UNSURE
        await _make(db, place)
        is_made = True
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        if place.fate is Fate.UNSURE:
            try:
                progress.begin(Phase.DROP)
            finally:
                await _drop(db, place, is_made=is_made, failure=failure)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; where this task is cancelled meanwhile, only when it has ended."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001  # it is raised below, by the task itself
            break
    if cancelled is not None and not task.cancelled() and task.exception() is None:
        raise cancelled
    return task.result()


async def _make(db: Database, place: Place) -> None:
    try:
        await to_its_end(db.run(_create, place.mark))
    except UnavailableError:  # it may be there, or come about yet
        raise
    except DatabaseError as error:
        place.fate = Fate.NOTHING
        raise await _refusal(db, error) from error


def _create(conn: Connection, schema: str, mark: str) -> None:
    schema_create(conn, schema, mark)
    migrate.up(conn, schema=schema)


async def _refusal(db: Database, error: DatabaseError) -> RiverqError:
    grant = await db.run(missing_grant) if error.sqlstate == NOT_ALLOWED else None
    if grant is not None:
        return DatabaseError(
            f"the bench cannot make its schema {db.schema!r}: {error} (it needs a role that may: {grant})",
            error.sqlstate,
        )
    if error.sqlstate not in EXISTS:
        return error
    mark = await db.run(schema_mark)
    ours = "another riverq bench is at work in it, or was killed and left it: then " if _is_mark(mark) else ""
    return ConfigError(
        f"schema {db.schema!r} exists already, and the bench only works in one that it makes and drops itself "
        f"({ours}name another with --schema, or leave --schema out)"
    )


def _is_mark(text: str | None) -> bool:
    return text is not None and text.startswith("made by riverq bench ")


async def _drop(db: Database, place: Place, *, is_made: bool, failure: BaseException | None) -> None:
    try:
        await to_its_end(_drop_patiently(db, place, is_made=is_made))
    except RiverqError as error:
        first = f"{failure}; and " if isinstance(failure, Exception) else ""
        raise RiverqError(f"{first}the schema cannot be dropped: {error}; {place.sentence}") from (failure or error)


async def _drop_patiently(db: Database, place: Place, *, is_made: bool) -> None:
    clock = SystemClock()
    for pause in DROP_PAUSES:
        try:
            await _drop_once(db, place, is_made=is_made)
            return
        except UnavailableError:
            await clock.sleep(pause)
    await _drop_once(db, place, is_made=is_made)


async def _drop_once(db: Database, place: Place, *, is_made: bool) -> None:
    """Who makes it holds the migrations' lock until its COMMIT is done, whose answer may have been lost."""
    if not is_made:
        await db.run(lock_wait, LOCK_KEY)
    place.fate = FATES[await db.run(schema_drop, place.mark)]
