"""What may be given as `session=`, and how one gets a connection from it.

Nothing here commits, sets a timeout, changes isolation or cancels a statement: the transaction is the application's.
Each kind of session that a client cannot use gets an error that names what to pass instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from riverq.errors import SessionError

T = TypeVar("T")

SyncSession = Session | scoped_session[Any] | Connection
AsyncAnySession = AsyncSession | async_scoped_session[Any] | AsyncConnection

SYNC_KINDS = (Session, scoped_session, Connection)
ASYNC_KINDS = (AsyncSession, async_scoped_session, AsyncConnection)

_UNBOUND = (
    "the session does not know which engine to use here (it has several binds, or none): "
    "pass its connection instead, session=session.connection(bind_arguments={'bind': engine})"
)


def sync_connection(session: SyncSession) -> Connection:
    """The connection of a sync session. Raises SessionError for anything else."""
    if isinstance(session, Connection):
        return _postgres(session)
    if isinstance(session, (Session, scoped_session)):
        try:
            return _postgres(session.connection())
        except UnboundExecutionError as error:
            raise SessionError(_UNBOUND) from error
    if isinstance(session, ASYNC_KINDS):
        raise SessionError(
            f"a {type(session).__name__} needs the async client (use AsyncClient, or pass a sync Session)"
        )
    raise _wrong_kind(session, "a Session, scoped_session or Connection")


async def run_in_session(session: AsyncAnySession, fn: Callable[[Connection], T]) -> T:
    """Call `fn` with the connection of an async session. Raises SessionError for anything else."""
    if isinstance(session, (AsyncSession, async_scoped_session)):
        try:
            conn = await session.connection()
        except UnboundExecutionError as error:
            raise SessionError(_UNBOUND.replace("session=session", "session=await session")) from error
    elif isinstance(session, AsyncConnection):
        conn = session
    elif isinstance(session, SYNC_KINDS):
        raise SessionError(f"a {type(session).__name__} needs the sync client (use Client, or pass an AsyncSession)")
    else:
        raise _wrong_kind(session, "an AsyncSession, async_scoped_session or AsyncConnection")
    return await conn.run_sync(lambda sync_conn: fn(_postgres(sync_conn)))


def complete_in(session: SyncSession | AsyncAnySession, fn: Callable[[Connection], T]) -> T | Awaitable[T]:
    """Call `fn` with the session's connection: its result, or for an async session an awaitable of it."""
    if isinstance(session, ASYNC_KINDS):
        return run_in_session(session, fn)
    return fn(sync_connection(session))


def _postgres(conn: Connection) -> Connection:
    if conn.dialect.name != "postgresql":
        raise SessionError(
            f"the session is on {conn.dialect.name}, but River's tables are on Postgres (use a session there)"
        )
    return conn


def _wrong_kind(session: object, wanted: str) -> SessionError:
    if isinstance(session, (Engine, AsyncEngine)):
        return SessionError(
            f"session= got an engine: {session!r} (leave it out to insert in a transaction of riverq's own)"
        )
    return SessionError(f"expected session to be {wanted}, got: {session!r}")
