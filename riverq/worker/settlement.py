"""What is known about a run after the attempt to write its end, and who is told.

A run is settled when its row shows what was decided, or when the row turns out not to be this run's any more. Either
way nothing is left to do for it here. Both lanes of the completer settle through this one place.

How an id that a statement did not return is judged (the row is read without a lock):

- the row is still running under our fence: somebody holds it locked. Not settled; it belongs in the slow lane;
- the run was completed in the user's transaction, and the row is completed: settled, as that;
- an earlier try of the same statement lost its connection before the answer came, and the row is where that statement
  wanted it (or has moved on from there): settled. The statement is fenced, so doing it twice changes nothing;
- anything else: rescued, deleted, or ended elsewhere. Settled and counted as lost; nothing of ours was written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from riverq.database import Database
from riverq.errors import DatabaseError, RiverqError, UnavailableError
from riverq.job import JobRow, JobState
from riverq.query.job_read import RunStatus, job_get_by_id_many, job_run_status
from riverq.service.context import ServiceContext
from riverq.worker.outcome import Finished

REFUSED_CLASSES = frozenset({"21", "22", "23", "54", "P0"})
"""SQLSTATE classes that blame what was to be written: cardinality, data, integrity, limits, a trigger's RAISE."""


def is_refusal(error: Exception) -> bool:
    """Whether trying the same again is useless: the database, or the adapter, refuses the values themselves."""
    if isinstance(error, DatabaseError):
        if isinstance(error, UnavailableError):
            return False
        return error.sqlstate is None or error.sqlstate[:2] in REFUSED_CLASSES
    return not isinstance(error, RiverqError)


@dataclass(slots=True)
class CompleterStats:
    """Counters since the completer was made. `slow` is how many runs are in the slow lane now."""

    written: int = 0
    lost: int = 0
    slow: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A run that needs no more writing.

    `state` is what the row shows, None where the job was deleted. `lost` says that another run, a rescue or a deletion
    came first and that nothing of this run was written.
    """

    finished: Finished
    state: JobState | None
    lost: bool
    at: datetime
    persisted: JobRow | None = None

    @property
    def row(self) -> JobRow | None:
        """The row after the write. A plain success is put together from the claimed row; None for a deleted job."""
        if self.persisted is not None or self.state is None or self.lost:
            return self.persisted
        finalized_at = self.at if self.state.is_final else None
        return dataclasses.replace(self.finished.context.row, state=self.state, finalized_at=finalized_at)


Listener = Callable[[Settled], None]
Wants = Callable[[JobState | None], bool]


def everything(_state: JobState | None) -> bool:
    """Whoever does not say what it wants."""
    return True


class Settlement:
    """Tells `on_settled`, counts, and judges ids that were not returned."""

    def __init__(self, ctx: ServiceContext) -> None:
        self._ctx = ctx
        self._listeners: list[tuple[Listener, Wants]] = []
        self.stats = CompleterStats()

    def subscribe(self, on_settled: Listener, wants: Wants = everything) -> Callable[[], None]:
        """Have `on_settled` called in the loop for every settled run; it must not block. Returns how to end that.

        `wants(state)` is asked, once for a batch of successes, whether runs matter now that ended in that state, or
        whose row is in it (None: deleted). What nobody wants is neither put together nor read.
        """
        entry = (on_settled, wants)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry)

    def completed(self, finished: Sequence[Finished]) -> None:
        """These plain successes are persisted."""
        self.stats.written += len(finished)
        listeners = self._who_wants(JobState.COMPLETED)
        if listeners:
            now = self._ctx.clock.now()
            for each in finished:
                self._tell(listeners, Settled(finished=each, state=JobState.COMPLETED, lost=False, at=now))

    def written(self, finished: Finished, row: JobRow) -> None:
        """The run's end is persisted as `row`."""
        self.stats.written += 1
        if row.state is JobState.AVAILABLE:
            self._wake(finished)
        listeners = self._who_wants(row.state)
        if listeners:
            now = self._ctx.clock.now()
            self._tell(listeners, Settled(finished=finished, state=row.state, lost=False, at=now, persisted=row))

    async def judge(self, db: Database, missing: Sequence[Finished], *, uncertain: bool) -> list[Finished]:
        """Settle what is not ours any more; returns those still running as ours. Raises what the database raises."""
        runs = [each.context.run for each in missing]
        statuses = await db.run_single(job_run_status, client_id=self._ctx.client_id, runs=runs)
        ours = [each for each in missing if _is_mine(statuses, each)]
        others = [each for each in missing if not _is_mine(statuses, each)]
        states = {job_id: status.state for job_id, status in statuses.items()}
        wanted = [
            job_id
            for each in others
            if (job_id := each.context.claimed.id) in states and self._who_wants(states[job_id], each.state.state)
        ]
        rows: dict[int, JobRow] = {}
        if wanted:
            rows = {row.id: row for row in await db.run_single(job_get_by_id_many, wanted)}
        for each in others:
            self._settle_other(each, states.get(each.context.claimed.id), rows, uncertain=uncertain)
        return ours

    def _settle_other(
        self, finished: Finished, state: JobState | None, rows: dict[int, JobRow], *, uncertain: bool
    ) -> None:
        lost = not _was_written(finished, state, uncertain=uncertain)
        if lost:
            self.stats.lost += 1
            self._ctx.log.warning("job %s: Dropped the outcome of a run that was lost", finished.context.claimed.id)
        else:
            self.stats.written += 1
            if state is JobState.AVAILABLE:
                self._wake(finished)
        row = rows.get(finished.context.claimed.id)
        now = self._ctx.clock.now()
        settled = Settled(finished=finished, state=state, lost=lost, at=now, persisted=row)
        self._tell(self._who_wants(state, finished.state.state), settled)

    def _wake(self, finished: Finished) -> None:
        """No NOTIFY goes out for a short wait; whoever wrote the row looks again when it is due."""
        wake, state = finished.context.wake, finished.state
        if wake is None:
            return
        if state.scheduled_in is not None:
            wake(state.scheduled_in)
        elif state.scheduled_at is not None:
            wake(state.scheduled_at - self._ctx.clock.now())

    def _who_wants(self, *states: JobState | None) -> list[Listener]:
        return [listener for listener, wants in self._listeners if any(map(wants, states))]

    def _tell(self, listeners: Sequence[Listener], settled: Settled) -> None:
        for listener in listeners:
            try:
                listener(settled)
            except Exception:
                self._ctx.log.exception("Completer: Failed to tell a subscriber")


def _is_mine(statuses: dict[int, RunStatus], finished: Finished) -> bool:
    status = statuses.get(finished.context.claimed.id)
    return status is not None and status.is_mine


def _was_written(finished: Finished, state: JobState | None, *, uncertain: bool) -> bool:
    if finished.context.completed_in_session and state is JobState.COMPLETED:
        return True
    if not uncertain or state is None:
        return False
    target = finished.state.state
    return state is target or not target.is_final
