"""riverq's side of a generated case: the row-to-be, as the client prepares it, without a database."""

from __future__ import annotations

from riverq.insert_opts import ClientDefaults, InsertParams, resolve
from riverq.job_args import spec_of
from tests.interop.cases import Case


def prepare(case: Case) -> InsertParams:
    """What riverq would write for `case`, at the moment that the case names."""
    args = case.job_args()
    options = {"unique": case.unique.for_riverq(), "queue": case.queue}
    if case.scheduled_at is not None:
        options["scheduled_at"] = case.scheduled_at
    defaults = ClientDefaults(max_attempts=25, period_basis="scheduled_time")
    return resolve(spec_of(args), args, options, defaults=defaults, now=case.now)
