"""What can be done to jobs, as functions of a connection; `riverq.client.job_verbs` has them on both clients.

What can be wrong with the arguments is found when the function is made, before there is a connection.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, TypedDict, final

from sqlalchemy import Connection

from riverq.client.verb import Verb, check_job_id, refuse_two_phase
from riverq.codec import encode
from riverq.errors import ConfigError, JobNotFoundError
from riverq.job import JobRow, JobState
from riverq.job_list import is_storable, list_params
from riverq.query import job_count as counting
from riverq.query import job_delete as deleting
from riverq.query.job_edit import job_cancel
from riverq.query.job_retry import job_retry
from riverq.query.job_update import job_update, job_update_by_run
from riverq.validation import fail, known_options
from riverq.worker.context import METADATA_LIMIT, OUTPUT_KEY, running_job


class JobDeleteFilters(TypedDict, total=False):
    """Which jobs to delete: those that match every filter that is given. None is not given.

    An empty collection matches no job; it is never taken for "no filter".
    """

    ids: Collection[int] | None
    kinds: Collection[str] | None
    priorities: Collection[int] | None
    queues: Collection[str] | None
    states: Collection[JobState | str] | None


@final
class NotGiven:
    """The default of an argument for which None is a value."""

    def __repr__(self) -> str:
        return "<not given>"


NOT_GIVEN: Final = NotGiven()


def cancel(job_id: int) -> Verb[JobRow]:
    """See `Client.job_cancel`."""
    check_job_id(job_id)

    def verb(conn: Connection, schema: str) -> JobRow:
        refuse_two_phase(conn)
        return _found(job_cancel(conn, schema, job_id), job_id)

    return verb


def retry(job_id: int) -> Verb[JobRow]:
    """See `Client.job_retry`."""
    check_job_id(job_id)

    def verb(conn: Connection, schema: str) -> JobRow:
        refuse_two_phase(conn)
        return _found(job_retry(conn, schema, job_id), job_id)

    return verb


def delete(job_id: int) -> Verb[JobRow]:
    """See `Client.job_delete`."""
    check_job_id(job_id)
    return lambda conn, schema: _found(deleting.job_delete(conn, schema, job_id), job_id)


def delete_many(filters: Mapping[str, Any], *, limit: int, unfiltered: bool) -> Verb[list[JobRow]]:
    """See `Client.job_delete_many`."""
    known_options("filter", filters, JobDeleteFilters.__annotations__)
    checked = list_params(filters, limit=limit, after=None)
    which = deleting.DeleteFilter(**{name: getattr(checked, name) for name in JobDeleteFilters.__annotations__})
    if not isinstance(unfiltered, bool):
        raise fail("unfiltered", "to be True or False", unfiltered)
    if not unfiltered and not which.given():
        raise ConfigError("expected a filter, got: none (with unfiltered=True any job that does not run is deleted)")
    if unfiltered and which.given():
        raise ConfigError(f"expected no filter beside unfiltered=True, got: {', '.join(which.given())} (leave one out)")
    return lambda conn, schema: deleting.job_delete_many(conn, schema, which, limit=limit)


def update(job_id: int, output: object, client_id: str) -> Verb[JobRow]:
    """See `Client.job_update`. To be made where the call is: what a worker has recorded is known there only."""
    check_job_id(job_id)
    if output is not NOT_GIVEN:
        metadata = _encoded_output(output)
        return lambda conn, schema: _found(job_update(conn, schema, job_id, metadata=metadata), job_id)
    mine = running_job(client_id, job_id)
    recorded = None if mine is None else mine.recorded_output()
    if mine is None or recorded is None:
        return lambda conn, schema: _found(job_update(conn, schema, job_id), job_id)
    metadata, run = f'{{"{OUTPUT_KEY}":{recorded}}}', mine.run
    return lambda conn, schema: _found(
        job_update_by_run(conn, schema, client_id=client_id, run=run, metadata=metadata), job_id
    )


def count_by_state() -> Verb[dict[JobState, int]]:
    """See `Client.job_count_by_state`."""
    return counting.job_count_by_state


def count_by_queue(names: Collection[str] | None) -> Verb[dict[str, counting.JobCounts]]:
    """See `Client.job_count_by_queue`."""
    _check_texts("names", names)
    return lambda conn, schema: counting.job_count_by_queue(conn, schema, names)


def count_by_kind(kinds: Collection[str] | None) -> Verb[dict[str, dict[JobState, int]]]:
    """See `Client.job_count_by_kind`."""
    _check_texts("kinds", kinds)
    return lambda conn, schema: counting.job_count_by_kind(conn, schema, kinds)


def _found(row: JobRow | None, job_id: int) -> JobRow:
    if row is None:
        raise JobNotFoundError(job_id)
    return row


def _encoded_output(output: object) -> str:
    """The output as `job.record_output` would store it, and within its limit."""
    encoded = encode({OUTPUT_KEY: output}, "metadata")
    size = len(encoded.encode()) - len("{}")
    if size > METADATA_LIMIT:
        raise ConfigError(f"expected output to be at most {METADATA_LIMIT} bytes of JSON, got: {size}")
    return encoded


def _check_texts(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Collection) or isinstance(value, (str, bytes, Mapping)):
        raise fail(name, "to be a list of texts", value)
    for each in value:
        if not isinstance(each, str) or not is_storable(each):
            raise fail(name, "to be a list of texts that Postgres can store", each)
