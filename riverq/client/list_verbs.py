"""How a client reads jobs: one, a page, or all that match.

Nothing is changed and nobody is told. Each call reads in a short transaction of its own, or in that of `session=` with
what is uncommitted there. An iteration holds nothing between two pages: no connection, no transaction, no cursor of the
server; whoever leaves it early has nothing to close. A connection that dies in between is that of one page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TypeVar, Unpack

from sqlalchemy import Connection

from riverq.client.session import AsyncAnySession, SyncSession
from riverq.client.verb import Verb, check_job_id
from riverq.errors import JobNotFoundError
from riverq.job import JobRow
from riverq.job_list import JobListOptions, JobListParams, JobPage, list_params
from riverq.query.job_list import job_list
from riverq.query.job_read import job_get_by_id

T = TypeVar("T")


class ListVerbs:
    """The reading verbs of `Client`. `session` is a Session, scoped_session or Connection, in which they read.

    All of them raise SessionError for a session that cannot be used, SchemaError where River's tables are missing, and
    DatabaseError.
    """

    def job_get(self, job_id: int, *, session: SyncSession | None = None) -> JobRow:
        """One job, as it stands in the table. Raises JobNotFoundError, and ConfigError for what cannot be an id."""
        return self._control(session, _job_get(job_id))

    def job_list(
        self,
        *,
        limit: int = 100,
        after: str | JobRow | None = None,
        session: SyncSession | None = None,
        **options: Unpack[JobListOptions],
    ) -> JobPage:
        """A page of at most `limit` (1 to 10 000) jobs, by ascending id unless the options say otherwise.

        `after` is the `cursor` of the page before, of a Go client's too, or a job; the other options must be the same.
        Without filters all jobs are listed, in every state. An empty filter is met by no job (see `JobListOptions`).

        Raises ConfigError for options that cannot be, and for an `after` that is no cursor or that of another list.
        """
        return self._control(session, _job_list(list_params(options, limit=limit, after=after)))

    def job_iter(
        self,
        *,
        page_size: int = 1000,
        after: str | JobRow | None = None,
        session: SyncSession | None = None,
        **options: Unpack[JobListOptions],
    ) -> Iterator[JobRow]:
        """All jobs that `job_list` would list, read `page_size` at a time as one iterates, each page as of then.

        No job is left out, and none comes twice, because others come, go or change meanwhile; one whose own time
        changes may come again or be passed over, which does not happen by id. Jobs inserted meanwhile may be met, so
        whoever inserts one for each may go on for ever. Raises as `job_list`, ConfigError at the call.
        """
        return self._iterate(list_params(options, limit=page_size, after=after, limit_name="page_size"), session)

    def _iterate(self, params: JobListParams, session: SyncSession | None) -> Iterator[JobRow]:
        while True:
            page = self._control(session, _job_list(params))
            yield from page
            if not page.has_more:
                return
            params = params.following(page[-1])

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


class AsyncListVerbs:
    """The reading verbs of `AsyncClient`. `session` is an AsyncSession, async_scoped_session or AsyncConnection.

    They read in its transaction. All of them raise SessionError for a session that cannot be used, SchemaError where
    River's tables are missing, and DatabaseError.
    """

    async def job_get(self, job_id: int, *, session: AsyncAnySession | None = None) -> JobRow:
        """One job, as it stands in the table. Raises JobNotFoundError, and ConfigError for what cannot be an id."""
        return await self._control(session, _job_get(job_id))

    async def job_list(
        self,
        *,
        limit: int = 100,
        after: str | JobRow | None = None,
        session: AsyncAnySession | None = None,
        **options: Unpack[JobListOptions],
    ) -> JobPage:
        """A page of at most `limit` (1 to 10 000) jobs, by ascending id unless the options say otherwise.

        `after` is the `cursor` of the page before, of a Go client's too, or a job; the other options must be the same.
        Without filters all jobs are listed, in every state. An empty filter is met by no job (see `JobListOptions`).

        Raises ConfigError for options that cannot be, and for an `after` that is no cursor or that of another list.
        """
        return await self._control(session, _job_list(list_params(options, limit=limit, after=after)))

    def job_iter(
        self,
        *,
        page_size: int = 1000,
        after: str | JobRow | None = None,
        session: AsyncAnySession | None = None,
        **options: Unpack[JobListOptions],
    ) -> AsyncIterator[JobRow]:
        """All jobs that `job_list` would list, read `page_size` at a time as one iterates, each page as of then.

        Not to be awaited: `async for job in client.job_iter(…)`. No job is left out, and none comes twice, because
        others come, go or change meanwhile; one whose own time changes may come again or be passed over, which does not
        happen by id. Jobs inserted meanwhile may be met, so whoever inserts one for each may go on for ever.
        Raises as `job_list`, ConfigError at the call.
        """
        return self._iterate(list_params(options, limit=page_size, after=after, limit_name="page_size"), session)

    async def _iterate(self, params: JobListParams, session: AsyncAnySession | None) -> AsyncIterator[JobRow]:
        while True:
            page = await self._control(session, _job_list(params))
            for job in page:
                yield job
            if not page.has_more:
                return
            params = params.following(page[-1])

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


# -- what both do: what can be wrong with the arguments is found when the verb is made, before there is a connection


def _job_get(job_id: int) -> Verb[JobRow]:
    check_job_id(job_id)

    def verb(conn: Connection, schema: str) -> JobRow:
        row = job_get_by_id(conn, schema, job_id)
        if row is None:
            raise JobNotFoundError(job_id)
        return row

    return verb


def _job_list(params: JobListParams) -> Verb[JobPage]:
    return lambda conn, schema: job_list(conn, schema, params)
