"""What a client can be told to do to queues and the leader: each a function of a connection.

Every verb runs in a transaction of its own, or in that of `session=`: there it is committed, and heard, with everything
else. Nothing of it depends on whether this client works jobs, or on which client does.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from riverq.client.session import AsyncAnySession, SyncSession
from riverq.client.verb import Verb, refuse_two_phase
from riverq.codec import encode
from riverq.errors import QueueNotFoundError, SchemaError, UsageError
from riverq.job_list import is_storable
from riverq.notification import Topic
from riverq.query.notify import has_notify, notify_many
from riverq.query.queue import ALL, queue_get, queue_list, queue_pause, queue_resume, queue_update
from riverq.query.schema import table_exists
from riverq.queue import Queue
from riverq.stats import ClientStats
from riverq.validation import duration, fail, integer

if TYPE_CHECKING:
    from riverq.client.lifecycle import Runtime

T = TypeVar("T")

LARGEST_LIST = 10_000
MOMENT = timedelta(milliseconds=1)

REQUEST_RESIGN = '{"action":"request_resign","leader_id":""}'
"""Byte for byte what Go River sends. An empty id means whoever leads."""


class ControlVerbs:
    """The verbs of `Client`. `session` is a Session, scoped_session or Connection whose transaction the call joins.

    All of them raise SessionError for a session that cannot be used, SchemaError where River's tables are missing, and
    DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was lost.
    """

    _runtime: Runtime | None

    def queue_get(self, name: str, *, session: SyncSession | None = None) -> Queue:
        """One queue, as it stands in the tables. Raises QueueNotFoundError where no client has worked it."""
        return self._control(session, _queue_get(name))

    def queue_list(self, limit: int = 100, *, session: SyncSession | None = None) -> list[Queue]:
        """The first `limit` (1 to 10 000) queues by name. Raises ConfigError for another limit."""
        return self._control(session, _queue_list(limit))

    def queue_pause(
        self, name: str, until: datetime | timedelta | None = None, *, session: SyncSession | None = None
    ) -> None:
        """Let no client begin a job of this queue, or of any with `"*"`; running jobs go on.

        With `until`, an aware datetime or a timedelta from now by the database's clock, a riverq client resumes the
        queue then. The last call decides: without `until` a pause lasts, even if it had an end before.

        Raises QueueNotFoundError for a named queue that does not exist, ConfigError for an `until` that cannot be, and
        SchemaError for `until` in a database without riverq's own tables.
        """
        self._control(session, _queue_pause(name, until))

    def queue_resume(self, name: str, *, session: SyncSession | None = None) -> None:
        """End the pause of a queue, or of all with `"*"`; a queue that is not paused is left alone.

        Raises QueueNotFoundError for a named queue that does not exist.
        """
        self._control(session, _queue_resume(name))

    def queue_update(
        self, name: str, *, metadata: Mapping[str, Any] | None = None, session: SyncSession | None = None
    ) -> Queue:
        """Replace a queue's metadata as a whole, tell the clients, and return the queue.

        Without `metadata` only `updated_at` changes, and nobody is told. Raises QueueNotFoundError, and ConfigError for
        metadata that cannot be encoded or does not fit a notification (8 000 bytes).
        """
        return self._control(session, _queue_update(name, metadata))

    def request_resign(self, *, session: SyncSession | None = None) -> None:
        """Ask whoever leads to resign when the transaction commits; then all clients, it too, bid anew.

        A leader that only polls does not hear of it. Raises UsageError where the server has no LISTEN/NOTIFY.
        """
        self._control(session, _request_resign)

    def stats(self) -> ClientStats:
        """How this client fares, as of now. Raises UsageError while it is not running."""
        return _stats(self._runtime)

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


class AsyncControlVerbs:
    """The verbs of `AsyncClient`. `session` is an AsyncSession, async_scoped_session or AsyncConnection.

    The call joins its transaction. All of them raise SessionError for a session that cannot be used, SchemaError where
    River's tables are missing, and DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was
    lost.
    """

    _runtime: Runtime | None

    async def queue_get(self, name: str, *, session: AsyncAnySession | None = None) -> Queue:
        """One queue, as it stands in the tables. Raises QueueNotFoundError where no client has worked it."""
        return await self._control(session, _queue_get(name))

    async def queue_list(self, limit: int = 100, *, session: AsyncAnySession | None = None) -> list[Queue]:
        """The first `limit` (1 to 10 000) queues by name. Raises ConfigError for another limit."""
        return await self._control(session, _queue_list(limit))

    async def queue_pause(
        self, name: str, until: datetime | timedelta | None = None, *, session: AsyncAnySession | None = None
    ) -> None:
        """Let no client begin a job of this queue, or of any with `"*"`; running jobs go on.

        With `until`, an aware datetime or a timedelta from now by the database's clock, a riverq client resumes the
        queue then. The last call decides: without `until` a pause lasts, even if it had an end before.

        Raises QueueNotFoundError for a named queue that does not exist, ConfigError for an `until` that cannot be, and
        SchemaError for `until` in a database without riverq's own tables.
        """
        await self._control(session, _queue_pause(name, until))

    async def queue_resume(self, name: str, *, session: AsyncAnySession | None = None) -> None:
        """End the pause of a queue, or of all with `"*"`; a queue that is not paused is left alone.

        Raises QueueNotFoundError for a named queue that does not exist.
        """
        await self._control(session, _queue_resume(name))

    async def queue_update(
        self, name: str, *, metadata: Mapping[str, Any] | None = None, session: AsyncAnySession | None = None
    ) -> Queue:
        """Replace a queue's metadata as a whole, tell the clients, and return the queue.

        Without `metadata` only `updated_at` changes, and nobody is told. Raises QueueNotFoundError, and ConfigError for
        metadata that cannot be encoded or does not fit a notification (8 000 bytes).
        """
        return await self._control(session, _queue_update(name, metadata))

    async def request_resign(self, *, session: AsyncAnySession | None = None) -> None:
        """Ask whoever leads to resign when the transaction commits; then all clients, it too, bid anew.

        A leader that only polls does not hear of it. Raises UsageError where the server has no LISTEN/NOTIFY.
        """
        await self._control(session, _request_resign)

    def stats(self) -> ClientStats:
        """How this client fares, as of now. Raises UsageError while it is not running."""
        return _stats(self._runtime)

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


# -- what both do: what can be wrong with the arguments is found when the verb is made, before there is a connection


def _queue_get(name: str) -> Verb[Queue]:
    _check_name(name)
    return lambda conn, schema: _found(queue_get(conn, schema, name), name)


def _queue_list(limit: int) -> Verb[list[Queue]]:
    integer("limit", limit, 1, LARGEST_LIST)
    return lambda conn, schema: queue_list(conn, schema, limit=limit)


def _queue_pause(name: str, until: datetime | timedelta | None) -> Verb[None]:
    _check_name(name)
    _check_until(until)

    def verb(conn: Connection, schema: str) -> None:
        refuse_two_phase(conn)
        own_tables = table_exists(conn, schema, "riverq_queue")
        if until is not None and not own_tables:
            raise SchemaError(
                f"a pause with an end needs riverq's own tables, which schema {schema!r} lacks "
                "(run: riverq migrate-up, or pause without until)"
            )
        if not queue_pause(conn, schema, name, until=until, own_tables=own_tables):
            raise QueueNotFoundError(name)

    return verb


def _queue_resume(name: str) -> Verb[None]:
    _check_name(name)

    def verb(conn: Connection, schema: str) -> None:
        refuse_two_phase(conn)
        if not queue_resume(conn, schema, name, own_tables=table_exists(conn, schema, "riverq_queue")):
            raise QueueNotFoundError(name)

    return verb


def _queue_update(name: str, metadata: Mapping[str, Any] | None) -> Verb[Queue]:
    _check_name(name)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise fail("metadata", "to be a dict", metadata)
    encoded = None if metadata is None else encode(metadata, "metadata")

    def verb(conn: Connection, schema: str) -> Queue:
        if encoded is not None:
            refuse_two_phase(conn)
        return _found(queue_update(conn, schema, name, encoded), name)

    return verb


def _request_resign(conn: Connection, schema: str) -> None:
    if not has_notify(conn):
        raise UsageError("this server has no LISTEN/NOTIFY, so no leader hears it (stop the client that leads)")
    refuse_two_phase(conn)
    notify_many(conn, schema, Topic.LEADERSHIP, [REQUEST_RESIGN])


def _stats(runtime: Runtime | None) -> ClientStats:
    if runtime is None:
        raise UsageError("a client that is not running has no figures (start it first)")
    return runtime.stats()


def _found(queue: Queue | None, name: str) -> Queue:
    if queue is None:
        raise QueueNotFoundError(name)
    return queue


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or not is_storable(name):
        raise fail("name", f"to be the name of a queue, or {ALL!r} for all where that makes sense", name)


def _check_until(until: object) -> None:
    if isinstance(until, timedelta):
        duration("until", until, MOMENT)
    elif isinstance(until, datetime):
        if until.utcoffset() is None:
            raise fail("until", "to be aware of its zone", until, "datetime.now(UTC) + …, or a timedelta from now")
    elif until is not None:
        raise fail("until", "to be a datetime or a timedelta", until)
