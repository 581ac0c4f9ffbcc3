"""Steps and the transactions that end within or around them: completed, left open, committed at once or in vain."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from riverq import StepCursor
from tests.fix_database import EngineMaker
from tests.worker.harness import House, Raw, errors
from tests.worker.steps import CURSOR, STEP, failure, kept


@pytest.fixture
def engine(make_engine: EngineMaker) -> Engine:
    engine = make_engine("psycopg")
    assert isinstance(engine, Engine)
    return engine


async def complete(house: House, engine: Engine, *, commit: bool, inside: bool) -> dict[str, Any]:
    """A job with a cursor stored completes itself, in its last step or after it."""

    def finish(job: Raw) -> None:
        with engine.connect() as conn:
            job.complete(session=conn)
            if commit:
                conn.commit()

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        job.step("a", lambda: None)
        job.step("last", finish, job) if inside else finish(job)

    [job_id] = house.rows.insert(metadata=f'{{"{CURSOR}": null, "{STEP}": "a", "x": 1}}')
    await house.start(house.completer)
    await house.run_all()
    return house.rows.get(job_id)


@pytest.mark.parametrize("inside", [True, False])
async def test_completing_clears_in_the_same_transaction(house: House, engine: Engine, inside: bool) -> None:
    row = await complete(house, engine, commit=True, inside=inside)
    assert (row["state"], row["metadata"]) == ("completed", {"x": 1, STEP: None, CURSOR: None})


@pytest.mark.parametrize("inside", [True, False])
async def test_and_if_that_is_rolled_back_the_last_step_is_not_done(house: House, engine: Engine, inside: bool) -> None:
    row = await complete(house, engine, commit=False, inside=inside)
    assert errors(row) == ["completed in a transaction that did not commit"]
    assert kept(row) == {STEP: "a", CURSOR: None}


async def test_a_job_one_of_whose_steps_failed_is_not_completed(house: House, engine: Engine) -> None:
    def fail() -> None:
        raise ValueError("boom")

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        with pytest.raises(ValueError, match="boom"):
            job.step("a", fail)
        with engine.begin() as conn, pytest.raises(RuntimeError, match="a step of this job has failed"):
            job.complete(session=conn)

    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert (row["state"], failure(row)) == ("available", "boom")


@pytest.mark.parametrize("save", ["a save", "a completion"])
async def test_a_transaction_left_open_is_told_of(house: House, engine: Engine, save: str) -> None:
    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        with engine.begin() as conn:
            job.step("z", lambda: None)
            job.step("a", job.save_step if save == "a save" else job.complete, conn)

    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert row["state"] == "available"
    assert "in a transaction that is still open (commit it before the step's body returns)" in failure(row)
    assert kept(row).get(STEP) in (None, "z")


async def test_saving_in_autocommit_counts_at_once(house: House, engine: Engine) -> None:
    def body(job: Raw) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            job.save_step(conn)
            conn.rollback()
        raise ValueError("boom")

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        job.step("z", lambda: None)
        job.step("a", body, job)

    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    assert kept(house.rows.get(job_id)) == {STEP: "a", CURSOR: None}


async def test_a_cursor_whose_commit_failed_is_not_kept(house: House, engine: Engine) -> None:
    """SQLAlchemy tells of commits before they are tried: then nobody here knows, and only the row counts."""

    def body(cursor: StepCursor) -> None:
        with engine.connect() as conn:
            conn.exec_driver_sql("CREATE TEMP TABLE t (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            conn.exec_driver_sql("INSERT INTO t VALUES (1), (1)")
            cursor.save(4, session=conn)
            conn.commit()

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        job.cursor_step("a", body)

    [job_id] = house.rows.insert()
    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert "IntegrityError" in errors(row)[0]
    assert kept(row) == {}
