"""A schema of one's own: made with River's tables in it, and dropped whatever happens.

It is made in one transaction, so it is there whole or not at all, and carries a mark. It is dropped only by its mark,
which covers what cannot be known otherwise: an interrupt, or a lost answer, while it is being made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from riverq import migrate
from riverq.bench.plan import Phase, Progress
from riverq.clock import SystemClock
from riverq.database import Database
from riverq.errors import ConfigError, DatabaseError, RiverqError, UnavailableError
from riverq.query.measure import schema_create, schema_drop, schema_mark

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")

EXISTS = "42P06"
NOT_ALLOWED = "42501"
DROP_PAUSES = (0.2, 1.0, 3.0)
"""Seconds to wait before dropping is tried again where the server was not available."""


@asynccontextmanager
async def own_schema(db: Database, mark: str, progress: Progress) -> AsyncIterator[None]:
    """Make `db.schema` with River's tables; drop it at the end.

    Raises ConfigError where it exists already, DatabaseError where it may not be made, and RiverqError, with the
    statement that remains to be run, where it cannot be dropped.
    """
    progress.begin(Phase.PREPARE)
    try:
        await to_its_end(db.run(_make, mark))
    except UnavailableError:
        await _drop(db, mark)
        raise
    except DatabaseError as error:
        raise await _refusal(db, error) from error
    except asyncio.CancelledError:
        await _drop(db, mark)
        raise
    try:
        yield
    finally:
        progress.begin(Phase.DROP)
        await _drop(db, mark)


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


def _make(conn: Connection, schema: str, mark: str) -> None:
    schema_create(conn, schema, mark)
    migrate.up(conn, schema=schema)


async def _refusal(db: Database, error: DatabaseError) -> RiverqError:
    name = db.schema
    if error.sqlstate == NOT_ALLOWED:
        url = db.engine.url
        return DatabaseError(
            f"the bench cannot make its schema {name!r}: {error} (it needs a role that may: "
            f'GRANT CREATE ON DATABASE "{url.database}" TO "{url.username}")',
            error.sqlstate,
        )
    if error.sqlstate != EXISTS:
        return error
    mark = await db.run(schema_mark)
    ours = "another riverq bench is at work in it, or was killed and left it: then " if _is_mark(mark) else ""
    return ConfigError(
        f"schema {name!r} exists already, and the bench only works in one that it makes and drops itself "
        f"({ours}name another with --schema, or leave --schema out)"
    )


def _is_mark(text: str | None) -> bool:
    return text is not None and text.startswith("made by riverq bench ")


async def _drop(db: Database, mark: str) -> None:
    try:
        await to_its_end(_drop_patiently(db, mark))
    except RiverqError as error:
        raise RiverqError(
            f"schema {db.schema!r} may be left behind, because it could not be dropped: {error} "
            f'(run: DROP SCHEMA "{db.schema}" CASCADE)'
        ) from error


async def _drop_patiently(db: Database, mark: str) -> None:
    clock = SystemClock()
    for pause in DROP_PAUSES:
        try:
            await db.run(schema_drop, mark)
            return
        except UnavailableError:
            await clock.sleep(pause)
    await db.run(schema_drop, mark)
