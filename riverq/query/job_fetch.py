"""The claim: available → running, as many as there are free slots.

Before: `worker.producer` counts its free slots. After: `worker.executor` runs each claimed row, and ends it through
`job_set_state` under the fence that the claim returns (id, attempted_at, client id).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from riverq.job import JobRow, JobState
from riverq.query.array import integer_array, text_array
from riverq.query.rows import array_json, as_hex, as_text, errors_json, mask_states, texts
from riverq.query.statement import (
    TIMESTAMP,
    array_param,
    at_us,
    catalog,
    from_us,
    input_rows,
    integer_param,
    later,
    microseconds,
    now_param,
    stamp,
    text_param,
    us_of,
)
from riverq.query.tables import Tables, statement
from riverq.state import Run

_LARGEST_SMALLINT = 32767

_FAR_US = 8_000_000_000_000_000
"""In the year 2223."""


class ClaimedRow(NamedTuple):
    """What the client cannot know of a row that it claimed; `claimed_job` adds what it can.

    Times are microseconds since 1970, JSON is text. `tags`, `errors` and `attempted_by` are JSON arrays of texts
    (`riverq.query.rows.texts` reads them) and None on nearly all rows: without tags, without errors, and on the first
    attempt. `unique_key` is in hexadecimal, `unique_states` a text such as `11110101`. `cancel_mark` is for `Run`.
    """

    id: int
    args: str
    kind: str
    attempt: int
    max_attempts: int
    attempted_at_us: int
    created_at_us: int
    scheduled_at_us: int
    priority: int
    metadata: str
    tags: str | None
    errors: str | None
    attempted_by: str | None
    unique_key: str | None
    unique_states: str | None
    cancel_mark: str | None


def job_get_available(  # noqa: PLR0913  # what a claim depends on, each by name
    conn: sa.Connection,
    schema: str,
    *,
    client_id: str,
    queue: str,
    limit: int,
    kinds: Sequence[str] | None = None,
    attempted_by_max: int = 100,
    now: datetime | None = None,
) -> list[ClaimedRow]:
    """Claim up to `limit` due jobs of `queue`, in the order of priority, scheduled_at, id.

    Rows that are locked are passed over, and with `kinds` those of other kinds, which are read and neither locked nor
    changed. `attempted_by` keeps its newest `attempted_by_max` entries.
    """
    given = {
        "client_id": client_id,
        "queue": queue,
        "limit": limit,
        "attempted_by_kept": attempted_by_max - 1,
        "now": stamp(now),
    }
    if kinds is None:
        result = _claim.execute(conn, schema, **given)
    else:
        result = _claim_known.execute(conn, schema, kinds=text_array(kinds), **given)
    return _claimed(result)


class Claimant(NamedTuple):
    """Who claimed: the client's id, which of its incarnations, and for how long a silent client may yet live."""

    client_id: str
    incarnation: str
    grace: timedelta


class ClaimGap(NamedTuple):
    """When a claim was made that nobody has the answer of.

    After the rows claimed at `after_us`, before those claimed at `before_us` (None: none yet), and between so long ago
    and so long ago.
    """

    after_us: int
    before_us: int | None
    from_ago: timedelta
    to_ago: timedelta


def job_lost(  # noqa: PLR0913  # who, when and where, each by name
    conn: sa.Connection,
    schema: str,
    claimant: Claimant,
    gap: ClaimGap,
    *,
    queue: str,
    limit: int,
    now: datetime | None = None,
) -> list[Run]:
    """Up to `limit` runs in `queue` that the claimant claimed in the gap, and that run since. Nothing is changed.

    Jobs with a cancel mark are left out: the one that the claim saw is not known. Nothing is found where another
    incarnation of the same client id was alive at the time, whose runs they may be. Needs riverq's own tables.
    """
    found: Sequence[Any] = _lost.rows(
        conn,
        schema,
        client_id=claimant.client_id,
        incarnation=claimant.incarnation,
        grace=microseconds(claimant.grace),
        queue=queue,
        after=gap.after_us,
        before=_FAR_US if gap.before_us is None else gap.before_us,
        from_ago=microseconds(gap.from_ago),
        to_ago=microseconds(gap.to_ago),
        limit=limit,
        now=stamp(now),
    )
    return [Run(row[0], row[1]) for row in found]


def job_claim_again(
    conn: sa.Connection, schema: str, *, client_id: str, runs: Sequence[Run], now: datetime | None = None
) -> list[ClaimedRow]:
    """Claim the jobs of these runs of this client once more: `attempted_at` is new, the attempt is the same.

    A run that is over or was claimed again, a job that is locked, and one with a cancel mark are passed over. So the
    statement may reach the database late, and does nothing then that its caller does not know of.
    """
    result = _claim_again.execute(
        conn,
        schema,
        client_id=client_id,
        id=integer_array([run.job_id for run in runs]),
        us=integer_array([run.attempted_at_us for run in runs]),
        now=stamp(now),
    )
    return _claimed(result)


def _claimed(result: sa.CursorResult[Any]) -> list[ClaimedRow]:
    """RETURNING comes in the order of the join, not of the claim."""
    claimed = [ClaimedRow._make(row) for row in result]
    claimed.sort(key=lambda row: (row.priority, row.scheduled_at_us, row.id))
    return claimed


def claimed_job(row: ClaimedRow, *, queue: str, client_id: str) -> JobRow:
    """The whole row of a claimed job."""
    return JobRow(
        id=row.id,
        kind=row.kind,
        state=JobState.RUNNING,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        priority=row.priority,
        queue=queue,
        created_at=from_us(row.created_at_us),
        scheduled_at=from_us(row.scheduled_at_us),
        attempted_at=from_us(row.attempted_at_us),
        attempted_by=texts(row.attempted_by) or (client_id,),
        tags=texts(row.tags),
        unique_key=None if row.unique_key is None else bytes.fromhex(row.unique_key),
        unique_states=mask_states(row.unique_states),
        encoded_args=row.args,
        encoded_metadata=row.metadata,
        encoded_errors=texts(row.errors),
    )


@statement
def _claim(t: Tables) -> sa.Executable:
    return _claiming(t)


@statement
def _claim_known(t: Tables) -> sa.Executable:
    """Jobs of some kinds only. A statement of its own: the plain claim pays nothing for it, however it is planned."""
    kinds = sa.select(catalog.unnest(array_param("kinds", sa.Text())))
    # A CASE, because a plain condition lets the planner leave the fetching index for the one on `kind`, read every job
    # of these kinds that was ever finished, and sort; it also keeps the sub-select from becoming a join. It is hashed
    # once per claim, so the rows passed over cost the same for one kind as for a thousand.
    return _claiming(t, sa.case((t.job.c.kind.in_(kinds), sa.true()), else_=sa.false()))


def _claiming(t: Tables, *conditions: sa.ColumnElement[bool]) -> sa.Executable:
    job = t.job.c
    # A CTE, and of ids only: as a sub-select the planner may run it again for every row and claim more than the limit,
    # and wide rows would be carried through the sort.
    locked = (
        sa.select(job.id)
        .where(
            job.state == t.state(JobState.AVAILABLE),
            job.queue == text_param("queue"),
            job.scheduled_at <= now_param(),
            *conditions,
        )
        .order_by(job.priority, job.scheduled_at, job.id)
        .limit(integer_param("limit"))
        .with_for_update(skip_locked=True)
        .cte("locked")
    )
    # One smallint at its end must not fail every claim of its queue.
    attempt = sa.func.least(job.attempt + sa.literal_column("1"), sa.literal_column(str(_LARGEST_SMALLINT)))
    return (
        sa.update(t.job)
        .values(
            state=t.state(JobState.RUNNING),
            attempt=attempt,
            attempted_at=now_param(),
            attempted_by=_attempted_by(t),
        )
        .where(job.id == locked.c.id)
        .returning(*_claimed_columns(t))
    )


def _claimed_columns(t: Tables) -> list[sa.ColumnElement[Any]]:
    """Those of `ClaimedRow`."""
    job = t.job.c
    return [
        job.id,
        as_text(job.args),
        job.kind,
        job.attempt,
        job.max_attempts,
        us_of(job.attempted_at),
        us_of(job.created_at),
        us_of(job.scheduled_at),
        job.priority,
        as_text(job.metadata),
        sa.case((catalog.cardinality(job.tags) > sa.literal_column("0"), array_json(job.tags))),
        errors_json(t),
        sa.case((job.attempt > sa.literal_column("1"), array_json(job.attempted_by))),
        as_hex(job.unique_key),
        as_text(job.unique_states),
        t.cancel_mark(),
    ]


@statement
def _lost(t: Tables) -> sa.Executable:
    job, client = t.job.c, t.client.c
    after, oldest = at_us(integer_param("after")), now_param() - later(integer_param("from_ago"))
    twin = sa.exists().where(
        client.client_id == text_param("client_id"),
        client.incarnation != sa.cast(text_param("incarnation"), sa.Uuid()),
        client.seen_at >= sa.func.greatest(after, oldest, type_=TIMESTAMP) - later(integer_param("grace")),
    )
    # A CASE, as in the fence: only the state and the queue are for an index, the fetching one.
    claimed = sa.and_(
        job.attempted_at > after,
        job.attempted_at < at_us(integer_param("before")),
        job.attempted_at >= oldest,
        job.attempted_at <= now_param() - later(integer_param("to_ago")),
        job.attempted_by[catalog.cardinality(job.attempted_by)] == text_param("client_id"),
        t.cancel_mark().is_(sa.null()),
    )
    return (
        sa.select(job.id, us_of(job.attempted_at))
        .where(
            job.state == t.state(JobState.RUNNING),
            job.queue == text_param("queue"),
            sa.case((claimed, sa.true()), else_=sa.false()),
            sa.not_(twin),
        )
        .order_by(job.priority, job.scheduled_at, job.id)
        .limit(integer_param("limit"))
    )


@statement
def _claim_again(t: Tables) -> sa.Executable:
    given = input_rows("given", id=sa.BigInteger(), us=sa.BigInteger())
    locked = (
        sa.select(t.job.c.id)
        .select_from(given.join(t.job, t.job.c.id == given.c.id))
        .where(t.is_run(given.c.us, text_param("client_id")), t.cancel_mark().is_(sa.null()))
        .with_for_update(skip_locked=True, of=t.job)
        .cte("locked")
    )
    return (
        sa.update(t.job)
        .values(attempted_at=now_param())
        .where(t.job.c.id == locked.c.id)
        .returning(*_claimed_columns(t))
    )


def _attempted_by(t: Tables) -> sa.ColumnElement[list[str]]:
    """This client appended to the newest of those before; most rows have none."""
    before = t.job.c.attempted_by
    kept = integer_param("attempted_by_kept")
    count = catalog.cardinality(before)
    newest = before[sa.cast(count - kept + sa.literal_column("1"), sa.Integer()) : count]
    cut = sa.case((count > kept, newest), else_=before)
    return catalog.array_append(cut, text_param("client_id"))
