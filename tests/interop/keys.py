"""riverq's side of a generated case: the row-to-be, as the client prepares it, without a database."""

from __future__ import annotations

from typing import Any, cast

import riverq
from riverq.insert_opts import ClientDefaults, InsertParams, resolve
from riverq.job import JobState
from riverq.job_args import spec_of
from tests.interop.cases import Case, Unique
from tests.interop.shapes import build


def job_args(case: Case) -> Any:
    """The args object of a case: an instance of the twin class, or raw args."""
    return build(case.shape, case.values) if case.shape else riverq.RawArgs(case.kind, case.values)


def unique_opts(unique: Unique) -> riverq.UniqueOpts:
    """The same options in riverq's words; states that are none are left to riverq to refuse."""
    return riverq.UniqueOpts(
        by_args=unique.by_args,
        by_period=unique.by_period,
        by_queue=unique.by_queue,
        by_state=cast("tuple[JobState, ...] | None", unique.by_state),
        exclude_kind=unique.exclude_kind,
    )


def prepare(case: Case) -> InsertParams:
    """What riverq would write for `case`, at the moment that the case names."""
    args = job_args(case)
    options: dict[str, Any] = {"unique_opts": unique_opts(case.unique), "queue": case.queue}
    if case.scheduled_at is not None:
        options["scheduled_at"] = case.scheduled_at
    return resolve(spec_of(args), args, options, defaults=ClientDefaults(max_attempts=25), now=case.now)
