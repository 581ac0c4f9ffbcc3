"""What a client can be told to do to one job, or to many: each a function of a connection.

Every verb runs in a transaction of its own, or in that of `session=`: there it is committed, and heard, with everything
else. Nothing of it depends on whether this client works jobs, or on which client does.
"""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Connection

from riverq.client.session import AsyncAnySession, SyncSession
from riverq.client.verb import Verb, check_job_id, refuse_two_phase
from riverq.errors import JobNotFoundError
from riverq.job import JobRow
from riverq.query.job_edit import job_cancel

T = TypeVar("T")


class JobVerbs:
    """The verbs of `Client` for jobs. `session` is a Session, scoped_session or Connection whose transaction they join.

    All of them raise SessionError for a session that cannot be used, SchemaError where River's tables are missing, and
    DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was lost.
    """

    def job_cancel(self, job_id: int, *, session: SyncSession | None = None) -> JobRow:
        """Cancel a job, and return its row.

        A job that waits is `cancelled` at once. A running one is marked, and the client that runs it is told when the
        transaction commits; its worker then decides how it ends. One that has ended already is returned unchanged.

        Raises JobNotFoundError, and ConfigError for what cannot be an id.
        """
        return self._control(session, _job_cancel(job_id))

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


class AsyncJobVerbs:
    """The verbs of `AsyncClient` for jobs. `session` is an AsyncSession, async_scoped_session or AsyncConnection.

    The call joins its transaction. All of them raise SessionError for a session that cannot be used, SchemaError where
    River's tables are missing, and DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was
    lost.
    """

    async def job_cancel(self, job_id: int, *, session: AsyncAnySession | None = None) -> JobRow:
        """Cancel a job, and return its row.

        A job that waits is `cancelled` at once. A running one is marked, and the client that runs it is told when the
        transaction commits; its worker then decides how it ends. One that has ended already is returned unchanged.

        Raises JobNotFoundError, and ConfigError for what cannot be an id.
        """
        return await self._control(session, _job_cancel(job_id))

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


# -- what both do: what can be wrong with the arguments is found when the verb is made, before there is a connection


def _job_cancel(job_id: int) -> Verb[JobRow]:
    check_job_id(job_id)

    def verb(conn: Connection, schema: str) -> JobRow:
        refuse_two_phase(conn)
        row = job_cancel(conn, schema, job_id)
        if row is None:
            raise JobNotFoundError(job_id)
        return row

    return verb
