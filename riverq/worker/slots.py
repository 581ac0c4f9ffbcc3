"""The running jobs of one queue, and how many more of them may run.

The producer asks `free` before each claim, takes a slot for each claimed row and gives it back when the job's task has
ended. A stuck job may bring a slot of its own (`worker.stuck`), which goes when that job ends.

`runs` is by id, and knows only the newest run of each job: one that was rescued may be claimed again by this same
client while its first worker still runs. Both hold a slot; the older one is told that it is lost.
"""

from __future__ import annotations

import asyncio

from riverq.worker.cancellation import CancelReason
from riverq.worker.context import RunContext


class Slots:
    """At most `max_workers` jobs, which may be changed at any time, and those that were added for stuck ones."""

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self.tasks: dict[asyncio.Task[None], RunContext] = {}
        self.runs: dict[int, RunContext] = {}
        self._added: set[RunContext] = set()

    @property
    def free(self) -> int:
        """How many jobs may be claimed now; negative where the limit was lowered below what runs."""
        return self.max_workers + len(self._added) - len(self.tasks)

    @property
    def running(self) -> list[RunContext]:
        """The jobs that run."""
        return list(self.tasks.values())

    def register(self, context: RunContext) -> None:
        """From now on the id stands for this run."""
        older = self.runs.get(context.run.job_id)
        if older is not None:
            older.cancelled.set(CancelReason.LOST)
        self.runs[context.run.job_id] = context

    def begin(self, task: asyncio.Task[None], context: RunContext) -> None:
        """The task runs a registered job."""
        self.tasks[task] = context

    def end(self, task: asyncio.Task[None]) -> RunContext:
        """The task has ended; its slot is free, and one that was added for it is gone."""
        context = self.tasks.pop(task)
        self._added.discard(context)
        if self.runs.get(context.run.job_id) is context:
            del self.runs[context.run.job_id]
        return context

    def add_for(self, context: RunContext) -> None:
        """One slot more, for as long as this job runs."""
        self._added.add(context)
