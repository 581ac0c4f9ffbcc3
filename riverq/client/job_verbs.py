"""What a client can be told to do to one job, or to many, and what it tells of their number.

Every verb runs in a transaction of its own, or in that of `session=`: there it is committed, and heard, with everything
else. Nothing of it depends on whether this client works jobs, or on which client does.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, TypeVar, Unpack

from riverq.client import job_changes
from riverq.client.job_changes import NOT_GIVEN, JobDeleteFilters
from riverq.client.session import AsyncAnySession, SyncSession
from riverq.client.verb import Verb
from riverq.job import JobRow, JobState
from riverq.query.job_count import JobCounts

if TYPE_CHECKING:
    from riverq.client.core import Core

T = TypeVar("T")


class JobVerbs:
    """The verbs of `Client` for jobs. `session` is a Session, scoped_session or Connection whose transaction they join.

    All of them raise SessionError for a session that cannot be used, SchemaError where River's tables are missing, and
    DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was lost. Whatever else they raise,
    the transaction of `session` is as it was before the call, and goes on.
    """

    _core: Core

    def job_cancel(self, job_id: int, *, session: SyncSession | None = None) -> JobRow:
        """Cancel a job, and return its row.

        A job that waits is `cancelled` at once. A running one is marked, and the client that runs it is told when the
        transaction commits; its worker then decides how it ends. One that has ended already is returned unchanged.

        Raises JobNotFoundError, and ConfigError for what cannot be an id.
        """
        return self._control(session, job_changes.cancel(job_id))

    def job_retry(self, job_id: int, *, session: SyncSession | None = None) -> JobRow:
        """Make a job available now, whatever became of it, and return its row; workers hear of it at the commit.

        A running job, and one that is available and due, are returned unchanged. Errors and attempts stay; a job that
        has used up its attempts gets one more.

        Raises JobNotFoundError, ConfigError for what cannot be an id, JobConflictError where another job has taken its
        unique key, and UsageError after 32 767 attempts, beyond which the row cannot count.
        """
        return self._control(session, job_changes.retry(job_id))

    def job_delete(self, job_id: int, *, session: SyncSession | None = None) -> JobRow:
        """Delete a job, and return the row that it had.

        Raises JobNotFoundError, JobRunningError for a running one, and ConfigError for what cannot be an id.
        """
        return self._control(session, job_changes.delete(job_id))

    def job_delete_many(
        self,
        *,
        limit: int = 100,
        unfiltered: bool = False,
        session: SyncSession | None = None,
        **filters: Unpack[JobDeleteFilters],
    ) -> list[JobRow]:
        """Delete up to `limit` (1 to 10 000) jobs, those with the lowest ids first, and return the rows that they had.

        `ids`, `kinds`, `priorities`, `queues` and `states`: a job must match each that is given; an empty list matches
        no job. Without any of them `unfiltered=True` must say that this is meant (River: `UnsafeAll`). Running jobs
        are never deleted. Jobs whose rows somebody has locked are left out, without waiting.

        Raises ConfigError for filters and limits that cannot be, for none without `unfiltered`, and for both.
        """
        return self._control(session, job_changes.delete_many(filters, limit=limit, unfiltered=unfiltered))

    def job_update(self, job_id: int, *, output: object = NOT_GIVEN, session: SyncSession | None = None) -> JobRow:
        """Store `output` as the job's output at once, in whatever state the job is, and return its row.

        Without `output`, called by the worker of this very job through `job.client`: stores what
        `job.record_output` was given so far, so that others can see it before the attempt ends. Called elsewhere, or
        before anything was recorded, it only reads the row, and locks it until the transaction ends.

        Raises JobNotFoundError, ConfigError for what is not JSON or larger than 32 MiB, and JobRunLostError in a worker
        whose recorded output is no longer the job's, because another run has begun since.
        """
        return self._control(session, job_changes.update(job_id, output, self._core.client_id))

    def job_count_by_state(self, *, session: SyncSession | None = None) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there. Reads an entry of an index for each job."""
        return self._control(session, job_changes.count_by_state())

    def job_count_by_queue(
        self, names: Collection[str] | None = None, *, session: SyncSession | None = None
    ) -> dict[str, JobCounts]:
        """How many jobs of each queue are `available` and how many are `running`, by name.

        Of the queues in `names`, each once, zeros included. Without names, of every queue that has a row or such a job.
        Raises ConfigError for what cannot be names.
        """
        return self._control(session, job_changes.count_by_queue(names))

    def job_count_by_kind(
        self, kinds: Collection[str] | None = None, *, session: SyncSession | None = None
    ) -> dict[str, dict[JobState, int]]:
        """How many jobs of each kind are in each state, by kind; every state is there.

        Of `kinds`, each once, zeros included; without them, of every kind that has a job. Reads every job of these
        kinds, which takes its time in a large table. Raises ConfigError for what cannot be kinds.
        """
        return self._control(session, job_changes.count_by_kind(kinds))

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


class AsyncJobVerbs:
    """The verbs of `AsyncClient` for jobs. `session` is an AsyncSession, async_scoped_session or AsyncConnection.

    The call joins its transaction. All of them raise SessionError for a session that cannot be used, SchemaError where
    River's tables are missing, and DatabaseError; MayBeCommittedError where the answer to a COMMIT of riverq's own was
    lost. Whatever else they raise, the transaction of `session` is as it was before the call, and goes on.
    """

    _core: Core

    async def job_cancel(self, job_id: int, *, session: AsyncAnySession | None = None) -> JobRow:
        """Cancel a job, and return its row.

        A job that waits is `cancelled` at once. A running one is marked, and the client that runs it is told when the
        transaction commits; its worker then decides how it ends. One that has ended already is returned unchanged.

        Raises JobNotFoundError, and ConfigError for what cannot be an id.
        """
        return await self._control(session, job_changes.cancel(job_id))

    async def job_retry(self, job_id: int, *, session: AsyncAnySession | None = None) -> JobRow:
        """Make a job available now, whatever became of it, and return its row; workers hear of it at the commit.

        A running job, and one that is available and due, are returned unchanged. Errors and attempts stay; a job that
        has used up its attempts gets one more.

        Raises JobNotFoundError, ConfigError for what cannot be an id, JobConflictError where another job has taken its
        unique key, and UsageError after 32 767 attempts, beyond which the row cannot count.
        """
        return await self._control(session, job_changes.retry(job_id))

    async def job_delete(self, job_id: int, *, session: AsyncAnySession | None = None) -> JobRow:
        """Delete a job, and return the row that it had.

        Raises JobNotFoundError, JobRunningError for a running one, and ConfigError for what cannot be an id.
        """
        return await self._control(session, job_changes.delete(job_id))

    async def job_delete_many(
        self,
        *,
        limit: int = 100,
        unfiltered: bool = False,
        session: AsyncAnySession | None = None,
        **filters: Unpack[JobDeleteFilters],
    ) -> list[JobRow]:
        """Delete up to `limit` (1 to 10 000) jobs, those with the lowest ids first, and return the rows that they had.

        `ids`, `kinds`, `priorities`, `queues` and `states`: a job must match each that is given; an empty list matches
        no job. Without any of them `unfiltered=True` must say that this is meant (River: `UnsafeAll`). Running jobs
        are never deleted. Jobs whose rows somebody has locked are left out, without waiting.

        Raises ConfigError for filters and limits that cannot be, for none without `unfiltered`, and for both.
        """
        return await self._control(session, job_changes.delete_many(filters, limit=limit, unfiltered=unfiltered))

    async def job_update(
        self, job_id: int, *, output: object = NOT_GIVEN, session: AsyncAnySession | None = None
    ) -> JobRow:
        """Store `output` as the job's output at once, in whatever state the job is, and return its row.

        Without `output`, called by the worker of this very job through `job.async_client`: stores what
        `job.record_output` was given so far, so that others can see it before the attempt ends. Called elsewhere, or
        before anything was recorded, it only reads the row, and locks it until the transaction ends.

        Raises JobNotFoundError, ConfigError for what is not JSON or larger than 32 MiB, and JobRunLostError in a worker
        whose recorded output is no longer the job's, because another run has begun since.
        """
        return await self._control(session, job_changes.update(job_id, output, self._core.client_id))

    async def job_count_by_state(self, *, session: AsyncAnySession | None = None) -> dict[JobState, int]:
        """How many jobs are in each state; every state is there. Reads an entry of an index for each job."""
        return await self._control(session, job_changes.count_by_state())

    async def job_count_by_queue(
        self, names: Collection[str] | None = None, *, session: AsyncAnySession | None = None
    ) -> dict[str, JobCounts]:
        """How many jobs of each queue are `available` and how many are `running`, by name.

        Of the queues in `names`, each once, zeros included. Without names, of every queue that has a row or such a job.
        Raises ConfigError for what cannot be names.
        """
        return await self._control(session, job_changes.count_by_queue(names))

    async def job_count_by_kind(
        self, kinds: Collection[str] | None = None, *, session: AsyncAnySession | None = None
    ) -> dict[str, dict[JobState, int]]:
        """How many jobs of each kind are in each state, by kind; every state is there.

        Of `kinds`, each once, zeros included; without them, of every kind that has a job. Reads every job of these
        kinds, which takes its time in a large table. Raises ConfigError for what cannot be kinds.
        """
        return await self._control(session, job_changes.count_by_kind(kinds))

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        raise NotImplementedError
