"""Gathers finished attempts and writes them in batches. This docstring is its design.

Before: `worker.executor` reports one `Finished` per run. After: `query.job_set_state` writes it, and `settlement` tells
whoever asked. A run reported here is written, or found to be lost, or named in the log; it is never dropped silently.

**The fast lane.** One writer. Idle, it writes the first report at once. While a statement is under way reports gather,
and the next statement takes them all (at most `batch_size`), so batches grow with the load by themselves and nothing
waits for a timer. Plain successes go through the slim statement that returns only ids, everything else through the full
one that returns rows.

**Who else writes this row, and why that is harmless.** Every statement carries the fence (`riverq.state`): the rescuer,
an operator or another client that took the row makes our statement match nothing. A client that cancels the running job
only sets a mark, which the full statement compares with the mark seen at the claim; a success overrules it, as in
River. The user's transaction that completes the job itself (`job.complete(session=…)`) holds the row's lock until it
ends. Inserts that duplicate its unique key lock it as well.

**Locked rows.** The batch statements skip locked rows instead of waiting. An id that was not returned is read without a
lock and judged as `settlement` describes: not ours any more, or locked. Locked rows go to the `slow_lane`.

**The connection dies between statement and answer.** The statement is repeated, with back-off, for as long as the
completer runs. Had it been committed, the repetition matches nothing; the row's state then tells that it was written.

**Refused values.** Texts are cleaned and metadata is encoded before they come here, so a refusal is rare; a batch that
is refused is halved until the row is found, and that row continues in the slow lane with a substitute outcome.

**Too slow a database.** At `congested_at` waiting reports reporters wait, and with them the slots of their queues,
until fewer than `relieved_at` are left.

**Stopping.** The fast lane is emptied and the slow lane tried once more, for at most `stop_grace`; `leave()` ends even
that. Ids that were not written are logged: their rows stay `running` and the rescuer finds them.

Clocks: columns are stamped by the database, waits are measured by the context's monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from riverq.database import Database
from riverq.errors import UnavailableError
from riverq.query.job_set_state import job_complete_many, job_set_state_if_running_many
from riverq.service.backoff import Backoff
from riverq.service.context import ServiceContext
from riverq.service.service import Service
from riverq.service.testsignal import TestSignal
from riverq.validation import duration, integer
from riverq.worker.outcome import Finished
from riverq.worker.settlement import CompleterStats, Listener, Settlement, Wants, everything, is_refusal
from riverq.worker.slow_lane import SlowLane


@dataclass(frozen=True, kw_only=True)
class CompleterConfig:
    """How finished attempts are written.

    - `batch_size`: the most runs in one statement.
    - `congested_at`, `relieved_at`: how many waiting reports make reporters wait, and how few let them go on.
    - `lock_timeout`: how long the slow lane waits for one locked row per try; `lock_backoff`: the first pause between
      two tries, doubled up to thirty times itself.
    - `stop_grace`: how long `stop` goes on trying to write what is left.
    """

    batch_size: int = 1000
    congested_at: int = 10_000
    relieved_at: int = 5_000
    lock_timeout: timedelta = timedelta(seconds=1)
    lock_backoff: timedelta = timedelta(seconds=1)
    stop_grace: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        integer("batch_size", self.batch_size, 1, 10_000)
        integer("congested_at", self.congested_at, 1)
        integer("relieved_at", self.relieved_at, 1, self.congested_at)
        duration("lock_timeout", self.lock_timeout, timedelta(milliseconds=1))
        duration("lock_backoff", self.lock_backoff, timedelta(milliseconds=1))
        duration("stop_grace", self.stop_grace)


class Completer(Service):
    """`db` writes the batches; `slow_db` is a view of the same database with one connection of its own."""

    def __init__(
        self, ctx: ServiceContext, db: Database, slow_db: Database, config: CompleterConfig | None = None
    ) -> None:
        super().__init__(ctx)
        self._db = db
        self._config = config or CompleterConfig()
        self._settlement = Settlement(ctx)
        self._slow = SlowLane(
            ctx,
            slow_db,
            self._settlement,
            lock_timeout=self._config.lock_timeout,
            first_backoff=self._config.lock_backoff,
        )
        self._waiting: deque[Finished] = deque()
        self._writing: Sequence[Finished] = ()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._stop = asyncio.Event()
        self._leave = asyncio.Event()
        self.slow_tried: TestSignal[int] = self._slow.tried

    @property
    def stats(self) -> CompleterStats:
        """Counters since the completer was made."""
        return self._settlement.stats

    @property
    def waiting(self) -> int:
        """How many reports are not written yet, those of the slow lane left out."""
        return len(self._waiting) + len(self._writing)

    @property
    def unwritten(self) -> list[int]:
        """The ids of the jobs that have ended here and not yet in the database."""
        return [each.context.claimed.id for each in (*self._writing, *self._waiting)] + self._slow.job_ids

    def subscribe(self, on_settled: Listener, wants: Wants = everything) -> Callable[[], None]:
        """Have `on_settled` called in the loop for every settled run; see `Settlement.subscribe`."""
        return self._settlement.subscribe(on_settled, wants)

    def report(self, finished: Finished) -> bool:
        """Take a finished run. False asks the caller to `await room()` before it takes on more work."""
        self._waiting.append(finished)
        self._wake.set()
        if len(self._waiting) >= self._config.congested_at:
            self._room.clear()
        return self._room.is_set()

    async def room(self) -> None:
        """Wait while the database is behind; returns at once while the completer does not run."""
        if self.is_running:
            await self._room.wait()

    def leave(self) -> None:
        """End the grace of a stop under way: what is not written by now stays `running`, and is logged."""
        self._leave.set()

    async def prepare(self) -> None:
        """A completer that was stopped may start again, with whatever was reported meanwhile."""
        self._stop.clear()
        self._leave.clear()

    def request_stop(self, task: asyncio.Task[None]) -> None:
        """Write what is left, then end."""
        self._stop.set()

    async def run(self) -> None:
        """Both lanes, until stopped."""
        lanes = [
            asyncio.create_task(self._fast_lane(), name="riverq.Completer.fast"),
            asyncio.create_task(self._slow.run(), name="riverq.Completer.slow"),
        ]
        try:
            await self._stop.wait()
            self._wake.set()
            await self._flushed(lanes)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            self._room.set()
            self._log_left()

    async def _flushed(self, lanes: list[asyncio.Task[None]]) -> None:
        """Wait for both lanes to be empty, at most for the grace, or until told to leave."""
        ends = [
            asyncio.create_task(self._finish(lanes)),
            asyncio.create_task(self.ctx.clock.sleep(self._config.stop_grace.total_seconds())),
            asyncio.create_task(self._leave.wait()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _finish(self, lanes: list[asyncio.Task[None]]) -> None:
        fast, slow = lanes
        await asyncio.wait([fast])  # it may still add to the slow lane
        self._slow.finish()
        await asyncio.wait([slow])

    def _log_left(self) -> None:
        left = self.unwritten
        if left:
            self.ctx.log.warning(
                "%s: Left jobs running, to be rescued, whose outcome was not written in time (num_jobs=%d, job_id=%s)",
                self.name,
                len(left),
                left[:100],
            )

    # -- the fast lane

    async def _fast_lane(self) -> None:
        backoff = Backoff(self.ctx, first=0.1, cap=5)
        while self._waiting or not self._stop.is_set():
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            self._writing = self._take()
            try:
                await self._write(self._writing, backoff)
            except Exception:  # a defect here must not strand the jobs of everybody
                self.ctx.log.exception("%s: Failed to write a batch, trying again", self.name)
                self._waiting.extendleft(reversed(self._writing))
                self._writing = ()
                await backoff.sleep()
            else:
                self._writing = ()
            if len(self._waiting) < self._config.relieved_at:
                self._room.set()

    def _take(self) -> list[Finished]:
        """The next batch. Ids are distinct: two runs of one job (the first of them lost) go one after the other."""
        batch: dict[int, Finished] = {}
        while self._waiting and len(batch) < self._config.batch_size:
            job_id = self._waiting[0].context.claimed.id
            if job_id in batch:
                break
            batch[job_id] = self._waiting.popleft()
        return list(batch.values())

    async def _write(self, batch: Sequence[Finished], backoff: Backoff) -> None:
        plain = [each for each in batch if each.state.is_plain_success]
        await self._write_group(plain, backoff)
        if len(plain) < len(batch):
            await self._write_group([each for each in batch if not each.state.is_plain_success], backoff)

    async def _write_group(self, group: list[Finished], backoff: Backoff) -> None:
        """Write runs of one kind; where the database refuses the group, halve it until the guilty ones are alone."""
        if not group:
            return
        missing, uncertain = None, False
        while True:
            try:
                if missing is None:
                    missing = await self._statement(group)
                for locked in await self._missing(missing, uncertain=uncertain):
                    self._slow.add(locked, uncertain=uncertain)
                backoff.reset()
                return
            except Exception as error:  # noqa: BLE001  # sorted into what to repeat and what to take apart
                if is_refusal(error):
                    await self._refused(group if missing is None else missing, error, backoff)
                    return
                uncertain = uncertain or (missing is None and isinstance(error, UnavailableError))
                self.ctx.log.warning(
                    "%s: Failed to write, trying again (num_jobs=%d, error=%s)", self.name, len(group), error
                )
            await backoff.sleep()

    async def _statement(self, group: list[Finished]) -> list[Finished]:
        """One statement; returns those whose ids did not come back."""
        client_id = self.ctx.client_id
        if group[0].state.is_plain_success:
            runs = [each.context.run for each in group]
            ids = set(await self._db.run_single(job_complete_many, client_id=client_id, runs=runs))
            written = [each for each in group if each.context.claimed.id in ids] if len(ids) < len(group) else group
            self._settlement.completed(written)
            return [] if written is group else [each for each in group if each.context.claimed.id not in ids]
        states = [each.state for each in group]
        returned = await self._db.run_single(job_set_state_if_running_many, client_id=client_id, states=states)
        rows = {row.id: row for row in returned}
        for each in group:
            row = rows.get(each.context.claimed.id)
            if row is not None:
                self._settlement.written(each, row)
        return [each for each in group if each.context.claimed.id not in rows]

    async def _missing(self, missing: list[Finished], *, uncertain: bool) -> list[Finished]:
        if not missing:
            return []
        return await self._settlement.judge(self._db, missing, uncertain=uncertain)

    async def _refused(self, group: list[Finished], error: Exception, backoff: Backoff) -> None:
        if len(group) == 1:
            self._slow.refuse(group[0], error)
            return
        middle = len(group) // 2
        await self._write_group(group[:middle], backoff)
        await self._write_group(group[middle:], backoff)
