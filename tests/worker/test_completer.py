from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import DatabaseError, UnavailableError
from riverq.job import JobState
from riverq.query.job_set_state import job_complete_many
from riverq.state import SetState, cancelled, completed, errored, interrupted, snoozed
from riverq.worker import completer as completer_module
from riverq.worker.completer import CompleterConfig
from riverq.worker.context import RunContext
from riverq.worker.settlement import Settled, is_refusal
from tests.service.stress import stress_start_stop
from tests.worker.harness import ERROR, House, finished, report, run_sql, until


def test_defaults() -> None:
    config = CompleterConfig()
    assert (config.batch_size, config.congested_at, config.relieved_at) == (1000, 10_000, 5_000)
    with pytest.raises(ValueError, match=r"expected relieved_at to be an integer from 1 to 10, got: 11"):
        CompleterConfig(congested_at=10, relieved_at=11)


async def test_start_stop_stress(house: House) -> None:
    await stress_start_stop(house.completer, tasks=5, rounds=10)


async def test_every_outcome_reaches_its_columns_on_every_adapter(any_house: House) -> None:
    house, rows = any_house, any_house.rows
    ids = rows.insert(count=6, metadata='{"kept": 1}', args='{"a": 1}')
    before = {job_id: rows.get(job_id) for job_id in ids}
    plain, output, failed, snooze, cancel, stopped = await house.claim()
    running = {job_id: rows.get(job_id) for job_id in ids}
    await house.start(house.completer)
    settled = await report(
        house,
        finished(plain),
        finished(output, completed(output.run, metadata='{"output": "ü"}')),
        finished(failed, errored(failed.run, error=ERROR, retry=timedelta(hours=1), short=False)),
        finished(snooze, snoozed(snooze.run, attempt=0, wait=timedelta(seconds=1), metadata='{"snoozes":1}')),
        finished(cancel, cancelled(cancel.run, error=ERROR)),
        finished(stopped, interrupted(stopped.run, attempt=0)),
    )
    by_id = {each.finished.context.claimed.id: each for each in settled}
    assert not any(each.lost for each in settled)
    unchanged = (
        "args",
        "kind",
        "max_attempts",
        "priority",
        "queue",
        "tags",
        "created_at",
        "attempted_at",
        "attempted_by",
    )
    for context in (plain, output, failed, snooze, cancel, stopped):
        now = rows.get(context.claimed.id)
        for column in unchanged:
            assert now[column] == running[context.claimed.id][column], column
        assert now["attempted_by"] == ["c1"]
        row = by_id[context.claimed.id].row
        assert row is not None
        assert row.state == now["state"] == by_id[context.claimed.id].state

    def columns(context: RunContext) -> tuple[Any, ...]:
        now = rows.get(context.claimed.id)
        delay = now["scheduled_at"] - before[context.claimed.id]["scheduled_at"]
        return now["state"], now["attempt"], now["finalized_at"] is not None, now["metadata"], now["errors"], delay

    kept = {"kept": 1}
    error = json.loads(ERROR)
    unmoved = timedelta(0)
    assert columns(plain) == ("completed", 1, True, kept, None, unmoved)
    assert columns(output) == ("completed", 1, True, {"kept": 1, "output": "ü"}, None, unmoved)
    assert columns(cancel) == ("cancelled", 1, True, kept, [error], unmoved)
    assert columns(failed)[:5] == ("retryable", 1, False, kept, [error])
    assert timedelta(hours=1) <= columns(failed)[5] < timedelta(hours=1, minutes=1)
    assert columns(snooze)[:5] == ("available", 0, False, {"kept": 1, "snoozes": 1}, None)
    assert timedelta(seconds=1) <= columns(snooze)[5] < timedelta(minutes=1)
    assert columns(stopped)[:5] == ("available", 0, False, kept, None)
    assert house.completer.stats.written == 6


async def test_reports_that_come_during_a_write_go_together(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.rows.insert(count=30)
    contexts = await house.claim()
    batches: list[int] = []
    real = job_complete_many

    def counting(conn: sa.Connection, schema: str, **given: Any) -> list[int]:
        batches.append(len(given["runs"]))
        return real(conn, schema, **given)

    monkeypatch.setattr(completer_module, "job_complete_many", counting)
    house.completer_config = CompleterConfig(batch_size=20)
    await house.start(house.completer)
    house.completer.report(finished(contexts[0]))
    await until(lambda: batches)  # the first is on its way
    await report(house, *[finished(context) for context in contexts[1:]])
    await house.settled.wait()
    assert batches == [1, 20, 9]


async def test_a_run_that_was_rescued_and_fetched_again_is_not_touched(house: House) -> None:
    kinds: tuple[Callable[[RunContext], SetState], ...] = (
        lambda context: completed(context.run),
        lambda context: completed(context.run, metadata='{"late": true}'),
        lambda context: errored(context.run, error=ERROR, retry=timedelta(0), short=True),
    )
    for state_of in kinds:
        [job_id] = house.rows.insert()
        [context] = await house.claim()
        house.rows.steal(job_id)
        before = house.rows.get(job_id)
        if not house.completer.is_running:
            await house.start(house.completer)
        [settled] = await report(house, finished(context, state_of(context)))
        assert (settled.lost, settled.state) == (True, JobState.RUNNING)
        assert house.rows.get(job_id) == before
    assert (house.completer.stats.lost, house.completer.stats.written) == (3, 0)


async def test_a_deleted_job_is_lost(house: House) -> None:
    [job_id] = house.rows.insert()
    contexts = await house.claim()
    house.rows.sql("DELETE FROM JOB WHERE id = %(id)s RETURNING id", id=job_id)
    await house.start(house.completer)
    [settled] = await report(house, finished(contexts[0]))
    assert (settled.lost, settled.state, settled.row) == (True, None, None)


async def test_one_job_with_two_runs_in_the_same_batch(house: House) -> None:
    [job_id] = house.rows.insert()
    [first] = await house.claim()
    house.rows.sql("UPDATE JOB SET state = 'available' WHERE id = %(id)s RETURNING id", id=job_id)
    [second] = await house.claim()
    house.completer.report(finished(first, cancelled(first.run, error=ERROR)))
    house.completer.report(finished(second, cancelled(second.run, error=ERROR)))
    await house.start(house.completer)
    settled = [await house.settled.wait() for _ in range(2)]
    assert [each.lost for each in settled] == [True, False]
    assert house.rows.get(job_id)["state"] == "cancelled"


async def test_the_cancel_mark_seen_at_the_claim_does_not_count(house: House) -> None:
    mark = "2026-01-01T00:00:00Z"
    [marked] = house.rows.insert(metadata=json.dumps({"cancel_attempted_at": mark}))
    [fresh] = house.rows.insert()
    old, new = await house.claim()
    house.rows.cancel_running(fresh)
    await house.start(house.completer)
    settled = await report(
        house,
        finished(old, errored(old.run, error=ERROR, retry=timedelta(0), short=True)),
        finished(new, errored(new.run, error=ERROR, retry=timedelta(0), short=True)),
    )
    assert {each.finished.context.claimed.id: each.state for each in settled} == {
        marked: JobState.AVAILABLE,
        fresh: JobState.CANCELLED,
    }
    assert house.rows.get(fresh)["finalized_at"] is not None


async def test_reporters_wait_while_the_database_is_behind(house: House) -> None:
    ids = house.rows.insert(count=6)
    contexts = await house.claim()
    house.completer_config = CompleterConfig(batch_size=1, congested_at=4, relieved_at=2)
    completer = house.completer
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        await house.start(completer)
        answers = [completer.report(finished(context)) for context in contexts[:3]]
        assert answers == [True, True, True]
        assert not completer.report(finished(contexts[3]))
        waiting = asyncio.create_task(completer.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        other.commit()
    await waiting
    assert completer.waiting < 4
    assert completer.report(finished(contexts[4]))
    for _ in range(5):
        await house.settled.wait()
    assert house.rows.get(ids[5])["state"] == "running"


async def test_reporters_do_not_wait_for_a_completer_that_has_ended(house: House) -> None:
    house.completer_config = CompleterConfig(congested_at=1, relieved_at=1)
    house.rows.insert()
    [context] = await house.claim()
    assert not house.completer.report(finished(context))
    await asyncio.wait_for(house.completer.room(), 10)


async def test_a_connection_that_ends_between_statement_and_answer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write was committed, the answer is lost; the repetition finds nothing to do, and the run is not lost."""
    ids = house.rows.insert(count=3)
    contexts = await house.claim()
    real = job_complete_many
    calls: list[int] = []

    def answer_is_lost(conn: sa.Connection, schema: str, **given: Any) -> list[int]:
        found = real(conn, schema, **given)
        calls.append(len(found))
        if len(calls) == 1:
            raise UnavailableError("the connection is gone")
        return found

    monkeypatch.setattr(completer_module, "job_complete_many", answer_is_lost)
    await house.start(house.completer)
    settled = await report(house, *[finished(context) for context in contexts])
    assert calls == [3, 0]
    assert [each.lost for each in settled] == [False] * 3
    assert {each.finished.context.claimed.id for each in settled} == set(ids)
    assert house.completer.stats.written == 3


async def test_terminated_backends_lose_nothing(house: House) -> None:
    """Every connection is cut while a batch waits for a lock on the table."""
    house.rows.insert(count=20)
    contexts = await house.claim()
    await house.start(house.completer)
    with house.rows.other() as other:
        run_sql(other, house.rows.schema, "LOCK TABLE JOB IN ACCESS EXCLUSIVE MODE")
        for context in contexts:
            house.completer.report(finished(context))
        await until(
            lambda: house.rows.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
            )
        )
        other.commit()
    settled = [await house.settled.wait() for _ in contexts]
    assert house.rows.states() == {"completed": 20}
    assert not any(each.lost for each in settled)


async def test_stop_writes_what_was_reported(house: House) -> None:
    house.rows.insert(count=100)
    contexts = await house.claim()
    await house.start(house.completer)
    for context in contexts:
        house.completer.report(finished(context))
    await house.completer.stop()
    assert house.rows.states() == {"completed": 100}


async def test_a_subscriber_that_fails_harms_nobody(house: House, caplog: pytest.LogCaptureFixture) -> None:
    def fail(settled: Settled) -> None:
        raise RuntimeError("subscriber")

    house.rows.insert()
    [context] = await house.claim()
    house.completer.subscribe(fail)
    await house.start(house.completer)
    await report(house, finished(context, replace(completed(context.run), metadata="{}")))
    assert house.rows.states() == {"completed": 1}
    assert "Failed to tell a subscriber" in caplog.text


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (DatabaseError("x", "22P05"), True),
        (DatabaseError("x", "23505"), True),
        (DatabaseError("x", None), True),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "x"), True),
        (UnavailableError("x"), False),
        (DatabaseError("x", "55P03"), False),
        (DatabaseError("x", "40P01"), False),
        (DatabaseError("x", "25006"), False),
        (DatabaseError("x", "57014"), False),
    ],
)
def test_what_is_repeated_and_what_is_taken_apart(error: Exception, refusal: bool) -> None:
    assert is_refusal(error) is refusal
