from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.errors import JobRunLostError, UsageError
from riverq.job import JobState
from tests.fix_database import EngineMaker
from tests.worker.harness import House, Raw, errors, one


@pytest.fixture
async def own_engine(make_engine: EngineMaker, style: str) -> Engine | AsyncEngine:
    """The application's engine, fit for the worker's style."""
    return make_engine("psycopg" if style == "def" else "psycopg_async")


def register_completing(
    house: House, engine: Engine | AsyncEngine, *, commit: bool, after: Callable[[Raw], None] = lambda _: None
) -> None:
    if isinstance(engine, Engine):

        @house.workers.work(kind="echo")
        def work(job: Raw) -> None:
            job.record_output("staged")
            with engine.connect() as conn:
                job.complete(session=conn)
                if commit:
                    conn.commit()
            after(job)

    else:

        @house.workers.work(kind="echo")
        async def work_async(job: Raw) -> None:
            job.record_output("staged")
            async with engine.connect() as conn:
                await job.complete(session=conn)
                if commit:
                    await conn.commit()
            after(job)


async def test_completing_in_a_transaction_that_commits(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True)
    [job_id] = house.rows.insert()
    await house.start(house.completer)
    [settled] = await house.run_all()
    row = house.rows.get(job_id)
    assert (row["state"], row["errors"], row["metadata"]) == ("completed", None, {"output": "staged"})
    assert (settled.state, settled.lost) == (JobState.COMPLETED, False)
    assert settled.row is not None
    assert settled.row.output == "staged"


async def test_an_error_after_such_a_commit_changes_nothing(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True, after=lambda _: 1 // 0)  # type: ignore[arg-type]
    row = await one(house)
    assert (row["state"], row["errors"]) == ("completed", None)


async def test_a_transaction_that_does_not_commit_fails_the_attempt(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=False)
    row = await one(house)
    assert (row["state"], errors(row)) == ("available", ["completed in a transaction that did not commit"])
    assert row["metadata"] == {"output": "staged"}


async def test_completing_a_lost_run_raises_and_writes_nothing(house: House, own_engine: Any) -> None:
    register_completing(house, own_engine, commit=True)
    [job_id] = house.rows.insert()
    contexts = await house.claim()
    house.rows.steal(job_id)
    before = house.rows.get(job_id)
    await house.start(house.completer)
    [settled] = await house.run_all(contexts)
    assert isinstance(settled.finished.error, JobRunLostError)
    assert settled.lost
    assert house.rows.get(job_id) == before


async def test_completing_twice_is_told_from_losing_the_run(house: House, make_engine: EngineMaker) -> None:
    engine: Any = make_engine("psycopg")
    told: list[str] = []

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        with engine.connect() as conn:
            job.complete(session=conn)
            try:
                job.complete(session=conn)
            except UsageError as error:
                told.append(str(error))
            conn.commit()

    row = await one(house)
    assert row["state"] == "completed"
    assert "completed by this run before" in told[0]


async def test_metadata_recorded_too_late_is_warned_of(
    house: House, own_engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    register_completing(house, own_engine, commit=True, after=lambda job: job.record_output("late"))
    row = await one(house)
    assert row["metadata"] == {"output": "staged"}
    assert "recorded after job.complete" in caplog.text
