"""Runs one claimed job: decode, middleware, worker, outcome, report. One task per job, which is this module's `run`.

Before: `worker.producer` claimed the row and made the task. After: `worker.completer` writes the outcome. What the
outcome is, `worker.outcome` decides, and where the attempt failed `worker.error_handling` asks the application first.

A worker that is `async def` runs in that task (`run_loop`), one that is `def` on a daemon thread while the task waits
(`run_thread`). Middleware is outside the timeout, as in River: an `async def` one runs in the loop; the `def` ones next
to a `def` worker run in its thread. Where there is none, none of this costs anything.

A job that is told to end before it begins does not begin. Whatever goes wrong in here ends as an outcome: a run that
was claimed is reported, with one exception: a thread that is still at work when the loop itself ends.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from math import inf
from typing import Any

from riverq.hook import (
    AsyncWorkMiddleware,
    Middleware,
    WorkMiddleware,
    chain_work_async,
    chain_work_sync,
    work_middleware,
)
from riverq.job import Job
from riverq.query.job_fetch import ClaimedRow
from riverq.registry import RegisteredWorker, Workers
from riverq.retry_policy import DefaultRetryPolicy, RetryPolicy
from riverq.service.context import ServiceContext
from riverq.state import Reason, SetState
from riverq.stuck import StuckHandler
from riverq.threads import DaemonThreads
from riverq.worker.cancellation import is_ctrl_c
from riverq.worker.completer import Completer
from riverq.worker.context import RunContext, Surroundings, enter_job
from riverq.worker.error_handling import ErrorHandler, ErrorHandling
from riverq.worker.outcome import Failure, Finished, Policies, Retry, UnknownKindError, clean, fail, judge, unstorable
from riverq.worker.run_loop import call_cancellable, run_in_loop
from riverq.worker.run_thread import run_in_thread
from riverq.worker.stuck import StuckWatch

LOGGED_ERROR = 2000
"""Characters of a job's error that are logged; the row holds more."""


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig:
    """How jobs are run.

    - `error_handler`: is asked about attempts that failed, see `worker.error_handling`.
    - `job_stuck_threshold`, `job_stuck_handler`: see `worker.stuck`.
    - `job_timeout`: for workers that do not say; None is no limit.
    - `middleware`: around every job, the first outermost; those without `work` are passed over.
    - `retry_policy`: for workers that do not say.
    """

    error_handler: ErrorHandler | None = None
    job_stuck_handler: StuckHandler | None = None
    job_stuck_threshold: timedelta = timedelta(seconds=10)
    job_timeout: timedelta | None = timedelta(seconds=60)
    middleware: Sequence[Middleware] = ()
    retry_policy: RetryPolicy = field(default_factory=DefaultRetryPolicy)


@dataclass(slots=True)
class _Attempt:
    """What is known of an attempt; filled in as it goes."""

    context: RunContext
    job: Job[Any] | None = None
    worker: RegisteredWorker | None = None
    thread_exit: BaseException | None = None
    """What a thread raised that would end the process if it had been raised in the loop."""


class Executor:
    """Shared by all queues of a client. `threads` are for `def` workers, as many as jobs may run at once.

    `stuck` watches over the jobs that run on past their timeout; the producers let it look.
    """

    def __init__(
        self,
        ctx: ServiceContext,
        workers: Workers,
        completer: Completer,
        threads: DaemonThreads,
        around: Surroundings,
        config: ExecutorConfig,
    ) -> None:
        self._ctx = ctx
        self._workers = workers
        self._completer = completer
        self._threads = threads
        self._around = around
        self._config = config
        self._middleware = work_middleware(config.middleware)
        self._errors = ErrorHandling(ctx, threads, config.error_handler)
        self.stuck = StuckWatch(ctx, threads, config.job_stuck_threshold, config.job_stuck_handler)

    @property
    def kinds(self) -> list[str]:
        """The kinds that have a worker now, aliases included."""
        return self._workers.kinds()

    def context(self, row: ClaimedRow, queue: str) -> RunContext:
        """The context of a row just claimed from `queue`."""
        return RunContext(row, queue, self._around)

    async def run(self, context: RunContext) -> None:
        """Run the job and report what became of it. Raises only what ends the process or the loop."""
        enter_job(self._around.client_id, context)
        attempt = _Attempt(context)
        started = self._ctx.clock.monotonic()
        error: BaseException | None
        if context.cancelled.is_set():
            error = asyncio.CancelledError("told to end before it began")
        else:
            error = await self._ended(attempt)
            context.due_at = inf
            error = context.ended(error)
        ended = self._ctx.clock.monotonic()
        if context.thread_runs:
            self._ctx.log.warning(
                "job %s: Left its thread at work, its row stays running and will be rescued (kind=%s)",
                context.claimed.id,
                context.claimed.kind,
            )
            return
        state = await self._outcome(attempt, error)
        if not self._completer.report(Finished(context, state, started, ended, error)):
            await self._completer.room()

    # -- running

    async def _ended(self, attempt: _Attempt) -> BaseException | None:
        """What the job raised, or None. Nobody pressed a key in a thread, so what a thread raised is only the job's."""
        try:
            return await call_cancellable(partial(self._work, attempt), attempt.context.cancelled)
        except KeyboardInterrupt as error:
            if error is not attempt.thread_exit:
                raise
            return error

    async def _work(self, attempt: _Attempt) -> None:
        context = attempt.context
        worker = self._workers.get(context.claimed.kind)
        if worker is None:
            raise UnknownKindError(context.claimed.kind)
        context.is_async = worker.is_async
        job = Job(worker.spec.decode(context.claimed.args), context)
        attempt.job, attempt.worker = job, worker  # not before: its policy is not asked about args it never saw
        context.timeout = worker.timeout_for(job, self._config.job_timeout)
        middleware = self._middleware
        if worker.middleware:
            middleware = [*work_middleware(worker.middleware), *middleware]
        if worker.is_async:
            inside = partial(self._work_in_loop, worker.func, context)
        else:
            first = _first_for_thread(middleware)
            call = chain_work_sync(middleware[first:], partial(_call_def, worker.func))
            inside = partial(self._work_in_thread, call, attempt)
            middleware = middleware[:first]
        await (chain_work_async(middleware, inside) if middleware else inside)(job)

    async def _work_in_loop(
        self, func: Callable[[Job[Any]], Awaitable[None]], context: RunContext, job: Job[Any]
    ) -> None:
        context.worker_begins(self._ctx.clock.monotonic())
        await run_in_loop(partial(func, job), context.cancelled, context.timeout)

    async def _work_in_thread(self, call: Callable[[Job[Any]], None], attempt: _Attempt, job: Job[Any]) -> None:
        def work() -> None:
            try:
                call(job)
            except KeyboardInterrupt as error:
                attempt.thread_exit = error
                raise

        context = attempt.context
        context.worker_begins(self._ctx.clock.monotonic())
        await run_in_thread(self._threads, work, context, context.timeout)

    # -- the outcome

    async def _outcome(self, attempt: _Attempt, error: BaseException | None) -> SetState:
        context = attempt.context
        try:
            verdict = judge(context, error, timeout=context.timeout)
            state = verdict if isinstance(verdict, SetState) else await self._failed(attempt, verdict)
        except BaseException as defect:
            if is_ctrl_c(defect) or isinstance(defect, GeneratorExit):
                raise
            self._ctx.log.exception("job %s: Failed to decide what became of it", context.claimed.id)
            return unstorable(context, defect, self._ctx.rng)[0]
        failed = isinstance(verdict, Failure) or state.reason is Reason.DISCARDED
        if failed and state.error is not None and not context.completed_in_session:
            self._ctx.log.warning(
                "job %s: Attempt failed, to become %s (kind=%s, queue=%s, attempt=%d, error=%s)",
                context.claimed.id,
                state.state,
                context.claimed.kind,
                context.queue,
                context.claimed.attempt,
                clean(str(json.loads(state.error)["error"]), LOGGED_ERROR),
            )
        return state

    async def _failed(self, attempt: _Attempt, failure: Failure) -> SetState:
        cancel = failure.is_told and await self._errors.wants_cancel(attempt.context, failure)
        policies = Policies(
            worker=partial(_ask_worker, attempt), client=self._client_policy(attempt), rng=self._ctx.rng, now=self._now
        )
        return fail(attempt.context, failure, cancel=cancel, policies=policies)

    def _client_policy(self, attempt: _Attempt) -> RetryPolicy:
        own = None if attempt.worker is None else attempt.worker.retry_policy
        return own or self._config.retry_policy

    def _now(self) -> datetime:
        return self._ctx.clock.now()


def _ask_worker(attempt: _Attempt, error: BaseException) -> Retry | None:
    if attempt.worker is None or attempt.job is None or attempt.worker.next_retry is None:
        return None
    return attempt.worker.next_retry(attempt.job, error)


def _call_def(func: Callable[[Job[Any]], Any], job: Job[Any]) -> None:
    result = func(job)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(f"{func!r} returned an awaitable, which nobody would await (declare the worker async def)")


def _first_for_thread(middleware: Sequence[WorkMiddleware | AsyncWorkMiddleware]) -> int:
    """Where the `def` middleware next to the worker begins; that runs in the worker's thread, too."""
    first = len(middleware)
    while first and not inspect.iscoroutinefunction(middleware[first - 1].work):
        first -= 1
    return first
