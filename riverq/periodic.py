"""Jobs that the leader inserts by a schedule: what is registered, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from riverq.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeriodicJob:
    """A job to insert whenever `schedule` says.

    - `make_args` is called for each run and returns args, an `InsertItem`, or None to skip that run.
    - `id`: a stable name, needed to remove the job by name and for `durable`.
    - `run_on_start`: insert one whenever a client of this fleet begins to lead, too.
    - `durable`: keep the next run in the database, so that runs missed while nobody led are caught up.
    """

    schedule: Schedule
    make_args: Callable[[], object]
    id: str | None = None
    run_on_start: bool = False
    durable: bool = False
