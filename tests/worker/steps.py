"""Workers whose steps a test writes down, attempt by attempt; `def` or `async def`, the same steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from riverq import StepCursor
from tests.worker.harness import House, Raw, errors

STEP, CURSOR = "river:resumable_step", "river:resumable_cursor"

Act = Callable[[Raw, StepCursor | None], None]


@dataclass
class Op:
    """A step, a cursor step, or code between them (no name); `act` is what it does."""

    name: str | None
    act: Act
    has_cursor: bool = False


def nothing(_job: Raw, _cursor: StepCursor | None) -> None:
    pass


def step(name: str, act: Act = nothing) -> Op:
    return Op(name, act)


def cursor_step(name: str, act: Act = nothing) -> Op:
    return Op(name, act, has_cursor=True)


def code(act: Act) -> Op:
    return Op(None, act)


def raising(error: BaseException) -> Act:
    def act(_job: Raw, _cursor: StepCursor | None) -> None:
        raise error

    return act


def setting(value: object, then: Act = nothing) -> Act:
    def act(job: Raw, cursor: StepCursor | None) -> None:
        assert cursor is not None
        cursor.set(value)
        then(job, cursor)

    return act


BOOM = raising(ValueError("boom"))


@dataclass
class Steps:
    """Runs `attempts` one after the other on one job; `ran` are the bodies that ran, with their cursors."""

    house: House
    style: str
    ran: list[Any] = field(default_factory=list)

    async def run(self, *attempts: list[Op], metadata: str = "{}") -> dict[str, Any]:
        """The row after the last attempt. `ran` is what that one ran."""
        if not self.house.workers.kinds():
            self._register()
        if not self.house.completer.is_running:
            await self.house.start(self.house.completer)
        [self.job_id] = self.house.rows.insert(metadata=metadata)
        return await self.go_on(*attempts)

    async def go_on(self, *attempts: list[Op]) -> dict[str, Any]:
        """More attempts on the same job, however it ended."""
        for self.ops in attempts:
            self.ran.clear()
            self.house.rows.sql(
                "UPDATE JOB SET state = 'available', scheduled_at = now(), finalized_at = NULL WHERE id = %(id)s "
                "RETURNING id",
                id=self.job_id,
            )
            await self.house.run_all()
        return self.house.rows.get(self.job_id)

    def _register(self) -> None:
        def work(job: Raw) -> None:
            for op in self.ops:
                if op.name is None:
                    op.act(job, None)
                elif op.has_cursor:
                    job.cursor_step(op.name, self._cursor_body, op, job)
                else:
                    job.step(op.name, self._body, op, job)

        async def work_async(job: Raw) -> None:
            for op in self.ops:
                if op.name is None:
                    op.act(job, None)
                elif op.has_cursor:
                    await job.cursor_step(op.name, self._async_cursor_body, op, job)
                else:
                    await job.step(op.name, self._async_body, op, job)

        if self.style == "def":
            self.house.workers.work(kind="echo")(work)
        else:
            self.house.workers.work(kind="echo")(work_async)

    def _body(self, op: Op, job: Raw) -> None:
        self.ran.append(op.name)
        op.act(job, None)

    def _cursor_body(self, cursor: StepCursor, op: Op, job: Raw) -> None:
        self.ran.append((op.name, cursor.value))
        op.act(job, cursor)

    async def _async_body(self, op: Op, job: Raw) -> None:
        self._body(op, job)

    async def _async_cursor_body(self, cursor: StepCursor, op: Op, job: Raw) -> None:
        self._cursor_body(cursor, op, job)


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """What the row keeps of its steps."""
    return {key: value for key, value in row["metadata"].items() if key in (STEP, CURSOR)}


def failure(row: dict[str, Any]) -> str:
    """The last error, without the name of its class."""
    return errors(row)[-1].removeprefix("StepError: ").removeprefix("ValueError: ")
