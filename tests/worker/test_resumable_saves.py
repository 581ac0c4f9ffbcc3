"""Steps saved in the worker's own transaction: with what the transaction wrote, and not without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq import StepCursor
from riverq.errors import JobRunLostError
from tests.fix_database import EngineMaker
from tests.worker.harness import House, Raw
from tests.worker.steps import CURSOR, STEP, failure, kept

Flow = Callable[["Saving"], Any]


class Saving:
    """One attempt of a worker that saves in transactions; the same words for `def` and `async def`."""

    def __init__(self, job: Raw, engine: Any, ran: list[Any]) -> None:
        self.job, self.engine, self.ran = job, engine, ran

    async def step(self, name: str, *, save: bool = False, commit: bool = True, error: str = "") -> None:
        """A step that may save itself, and may fail then."""
        if isinstance(self.engine, AsyncEngine):
            await self.job.step(name, self._body_async, name, save, commit, error)
        else:
            self.job.step(name, self._body, name, save, commit, error)

    async def cursor_step(self, name: str, *moves: Any, error: str = "") -> None:
        """A step that sets or saves cursors: `("set", 1)`, `("save", 2)`, `("commit", 3)`, `("rollback", 4)`."""
        if isinstance(self.engine, AsyncEngine):
            await self.job.cursor_step(name, self._cursor_body_async, name, moves, error)
        else:
            self.job.cursor_step(name, self._cursor_body, name, moves, error)

    def _end(self, error: str) -> None:
        if error:
            raise ValueError(error)

    def _body(self, name: str, save: bool, commit: bool, error: str) -> None:
        self.ran.append(name)
        if save:
            with self.engine.connect() as conn:
                self.job.save_step(conn)
                (conn.commit if commit else conn.rollback)()
        self._end(error)

    async def _body_async(self, name: str, save: bool, commit: bool, error: str) -> None:
        self.ran.append(name)
        if save:
            async with self.engine.connect() as conn:
                await self.job.save_step(conn)
                await (conn.commit if commit else conn.rollback)()
        self._end(error)

    def _cursor_body(self, cursor: StepCursor, name: str, moves: Any, error: str) -> None:
        self.ran.append((name, cursor.value))
        with self.engine.connect() as conn:
            for how, value in moves:
                if how == "set":
                    cursor.set(value)
                else:
                    cursor.save(value, session=conn)
                    if how != "save":
                        getattr(conn, how)()
        self._end(error)

    async def _cursor_body_async(self, cursor: StepCursor, name: str, moves: Any, error: str) -> None:
        self.ran.append((name, cursor.value))
        async with self.engine.connect() as conn:
            for how, value in moves:
                if how == "set":
                    cursor.set(value)
                else:
                    await cursor.save(value, session=conn)
                    if how != "save":
                        await getattr(conn, how)()
        self._end(error)


class Place:
    """A house whose jobs run one flow after the other."""

    def __init__(self, house: House, engine: Any) -> None:
        self.house, self.engine, self.ran = house, engine, list[Any]()
        if isinstance(engine, Engine):

            @house.workers.work(kind="echo")
            def work(job: Raw) -> None:
                drive(self.flow(Saving(job, engine, self.ran)))

        else:

            @house.workers.work(kind="echo")
            async def work_async(job: Raw) -> None:
                await self.flow(Saving(job, engine, self.ran))

    async def run(self, *flows: Flow, metadata: str = "{}") -> dict[str, Any]:
        """One job, one attempt a flow; the row afterwards."""
        if not self.house.completer.is_running:
            await self.house.start(self.house.completer)
        [self.job_id] = self.house.rows.insert(metadata=metadata)
        for self.flow in flows:
            self.ran.clear()
            self.house.rows.sql(
                "UPDATE JOB SET state = 'available', scheduled_at = now(), finalized_at = NULL "
                "WHERE id = %(id)s RETURNING id",
                id=self.job_id,
            )
            await self.house.run_all()
        return self.house.rows.get(self.job_id)

    def row(self) -> dict[str, Any]:
        return self.house.rows.get(self.job_id)


def drive(flow: Any) -> None:
    """Run a flow that never waits."""
    with pytest.raises(StopIteration):
        flow.send(None)


@pytest.fixture
def place(house: House, make_engine: EngineMaker, style: str) -> Place:
    return Place(house, make_engine("psycopg" if style == "def" else "psycopg_async"))


# -- steps


async def test_a_step_is_saved_with_its_transaction(place: Place) -> None:
    seen: list[Any] = []

    async def flow(job: Saving) -> None:
        await job.step("a", save=True)
        seen.append(kept(place.row()))
        await job.step("b", error="boom")

    row = await place.run(flow)
    assert seen == [{STEP: "a", CURSOR: None}]
    assert (row["state"], kept(row)) == ("available", {STEP: "a", CURSOR: None})


async def test_and_stays_saved_though_it_fails_afterwards(place: Place) -> None:
    async def fails(job: Saving) -> None:
        await job.step("a", save=True, error="boom")

    async def goes_on(job: Saving) -> None:
        await job.step("a")
        await job.step("b")

    row = await place.run(fails)
    assert (failure(row), kept(row)) == ("boom", {STEP: "a", CURSOR: None})
    row = await place.run(fails, goes_on)
    assert (place.ran, row["state"], kept(row)) == (["b"], "completed", {STEP: None, CURSOR: None})


async def test_a_rollback_takes_it_back_and_only_it(place: Place) -> None:
    async def fails(job: Saving) -> None:
        await job.step("z")
        await job.step("a", save=True, commit=False, error="boom")

    row = await place.run(fails)
    assert kept(row) == {STEP: "z", CURSOR: None}


async def test_a_step_that_returns_is_done_though_it_was_rolled_back_within(place: Place) -> None:
    async def flow(job: Saving) -> None:
        await job.step("a", save=True, commit=False)
        await job.step("b", error="boom")

    assert kept(await place.run(flow)) == {STEP: "a", CURSOR: None}


async def test_a_save_never_sets_the_row_back(place: Place) -> None:
    """Its transaction may be committed or not: then the row alone knows."""

    async def flow(job: Saving) -> None:
        await job.step("z")
        await job.step("a", save=True, error="boom")

    assert kept(await place.run(flow)) == {STEP: "a", CURSOR: None}


async def test_saving_clears_nothing_for_those_who_read_it_later(place: Place) -> None:
    async def flow(job: Saving) -> None:
        await job.step("a", save=True)

    row = await place.run(flow)
    assert (row["state"], kept(row)) == ("completed", {STEP: None, CURSOR: None})


async def test_no_step_is_saved_in_front_of_a_cursor_that_waits(place: Place) -> None:
    async def flow(job: Saving) -> None:
        await job.step("x", save=True)

    row = await place.run(flow, metadata=f'{{"{CURSOR}": {{"a": 1}}}}')
    assert failure(row) == 'river: resumable checkpoint cannot precede saved cursor step "a"'
    assert kept(row) == {CURSOR: {"a": 1}}


# -- cursors

FAILS = "boom"


@pytest.mark.parametrize(
    ("moves", "left"),
    [
        ([("commit", 4)], {STEP: "a", CURSOR: {"a": 4}}),
        ([("commit", 4), ("commit", 5)], {STEP: "a", CURSOR: {"a": 5}}),
        ([("rollback", 4)], {STEP: "z", CURSOR: None}),
        ([("set", 3), ("rollback", 4)], {STEP: "z", CURSOR: {"a": 3}}),
        ([("set", 3), ("rollback", 4), ("rollback", 5)], {STEP: "z", CURSOR: {"a": 3}}),
        ([("save", 4), ("rollback", 5)], {STEP: "z", CURSOR: None}),
        ([("save", 4), ("commit", 5)], {STEP: "a", CURSOR: {"a": 5}}),
        ([("commit", 4), ("rollback", 5)], {STEP: "a", CURSOR: {"a": 4}}),
        ([("rollback", 5), ("commit", 4)], {STEP: "a", CURSOR: {"a": 4}}),
        ([("commit", 4), ("set", 6)], {STEP: "a", CURSOR: {"a": 6}}),
        ([("rollback", 4), ("set", 6)], {STEP: "z", CURSOR: {"a": 6}}),
        ([("commit", 4), ("rollback", 5), ("set", 6)], {STEP: "a", CURSOR: {"a": 6}}),
    ],
)
async def test_the_last_cursor_that_holds_is_kept(place: Place, moves: Any, left: dict[str, Any]) -> None:
    async def flow(job: Saving) -> None:
        await job.step("z")
        await job.cursor_step("a", *moves, error=FAILS)

    async def again(job: Saving) -> None:
        await job.step("z")
        await job.cursor_step("a")

    row = await place.run(flow)
    assert kept(row) == left
    await place.run(flow, again)
    assert place.ran == [("a", (left[CURSOR] or {}).get("a"))]


async def test_a_saved_cursor_goes_when_its_step_is_done(place: Place) -> None:
    async def flow(job: Saving) -> None:
        await job.cursor_step("a", ("commit", 4))
        await job.step("b", error="boom")

    assert kept(await place.run(flow)) == {STEP: "a", CURSOR: None}


# -- the run and the row


async def test_a_run_that_was_lost_saves_nothing_and_its_transaction_hears_of_it(place: Place) -> None:
    raised: list[BaseException] = []

    async def flow(job: Saving) -> None:
        await job.step("a")
        place.house.rows.steal(place.job_id)
        try:
            await job.step("b", save=True)
        except JobRunLostError as error:
            raised.append(error)
            raise

    row = await place.run(flow)
    assert len(raised) == 1
    assert (row["state"], row["attempted_by"][-1], row["metadata"], row["errors"]) == ("running", "thief", {}, None)


async def test_a_client_that_died_in_the_middle_of_a_step_left_what_it_saved(place: Place) -> None:
    """Killed after the commit: nothing else of that run is ever written."""

    async def dies(job: Saving) -> None:
        await job.step("z")
        await job.cursor_step("a", ("commit", 40))
        place.house.rows.sql("UPDATE JOB SET state = 'available', attempted_by = '{}' RETURNING id")

    async def goes_on(job: Saving) -> None:
        await job.step("z")
        await job.cursor_step("a", error="boom")

    row = await place.run(dies)
    assert kept(row) == {STEP: "a", CURSOR: {"a": 40}}
    place.house.rows.sql("UPDATE JOB SET scheduled_at = now() RETURNING id")
    place.ran.clear()
    place.flow = goes_on
    await place.house.run_all()
    assert (place.ran, failure(place.row())) == ([("a", 40)], "boom")
