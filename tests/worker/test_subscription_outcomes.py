"""Which event each outcome gives, with which row: from the report of a run to the event, on a real Postgres."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from riverq.errors import UnavailableError
from riverq.event import Event, EventKind
from riverq.job import JobRow, JobState
from riverq.query.job_read import job_get_by_id_many
from riverq.query.job_set_state import job_set_state_if_running_many
from riverq.service.backoff import Backoff
from riverq.state import SetState, cancelled, completed, discarded, errored, interrupted, snoozed
from riverq.worker import completer as completer_module
from riverq.worker import settlement as settlement_module
from riverq.worker.completer import CompleterConfig
from riverq.worker.context import RunContext
from riverq.worker.subscription import Inbox, Subscriptions
from tests.worker.harness import ERROR, SHORT, House, finished, locked, one, register, report

ALL = frozenset(EventKind)
HOUR = timedelta(hours=1)


def subscribed(house: House, *kinds: EventKind) -> Inbox:
    subscriptions = Subscriptions(house.ctx)
    house.completer.subscribe(subscriptions.settled, subscriptions.wants)
    return subscriptions.open(frozenset(kinds) or ALL, 1000)


def read(inbox: Inbox) -> list[Event]:
    events = []
    while (event := inbox.take()) is not None:
        events.append(event)
    return events


async def stored(house: House, job_id: int) -> JobRow:
    [row] = await house.db.run_single(job_get_by_id_many, [job_id])
    return row


def retried(context: RunContext, *, short: bool = False) -> SetState:
    return errored(context.run, error=ERROR, retry=timedelta(0) if short else HOUR, short=short)


async def test_the_event_of_each_outcome_has_the_row_as_it_was_written(any_house: House) -> None:
    house = any_house
    columns: dict[str, Any] = {"tags": ["a"], "metadata": '{"kept": 1}', "args": '{"a": 1}'}
    ids = house.rows.insert(count=8, **columns, errors=[ERROR], attempt=1, attempted_by=["c0"])
    contexts = await house.claim()
    inbox = subscribed(house)
    await house.start(house.completer)
    runs = [
        (completed(contexts[0].run), EventKind.JOB_COMPLETED),
        (completed(contexts[1].run, metadata='{"output": 1}'), EventKind.JOB_COMPLETED),
        (retried(contexts[2]), EventKind.JOB_FAILED),
        (retried(contexts[3], short=True), EventKind.JOB_FAILED),
        (discarded(contexts[4].run, error=ERROR), EventKind.JOB_FAILED),
        (snoozed(contexts[5].run, attempt=1, wait=HOUR, metadata='{"snoozes":1}'), EventKind.JOB_SNOOZED),
        (interrupted(contexts[6].run, attempt=1), EventKind.JOB_INTERRUPTED),
        (cancelled(contexts[7].run, error=ERROR), EventKind.JOB_CANCELLED),
    ]
    await report(house, *[finished(context, state) for context, (state, _) in zip(contexts, runs, strict=True)])
    events = {event.job.id: event for event in read(inbox) if event.job is not None}
    assert [events[job_id].kind for job_id in ids] == [kind for _, kind in runs]
    for number, job_id in enumerate(ids):
        sent, row = events[job_id].job, await stored(house, job_id)
        assert sent is not None
        mine, theirs = vars(sent) | {"finalized_at": None}, vars(row) | {"finalized_at": None}
        # What is put together differs in nothing but the clock, and in how JSON is spaced.
        for each in (mine, theirs):
            each["encoded_errors"] = [json.loads(text) for text in each["encoded_errors"]]
            each["encoded_args"], each["encoded_metadata"] = sent.args, json.loads(each["encoded_metadata"])
        assert mine == theirs
        assert (sent.finalized_at is None) == (row.finalized_at is None)
        assert number == 0 or sent.finalized_at == row.finalized_at
        assert sent.args == {"a": 1}
        waited = row.attempted_at - contexts[number].row.scheduled_at if row.attempted_at else None
        statistics = events[job_id].statistics
        assert statistics is not None
        assert statistics.queue_wait_duration == waited
        assert statistics.run_duration == timedelta(seconds=1)


async def test_a_retry_that_the_write_turns_into_a_cancellation_is_a_cancellation(any_house: House) -> None:
    house = any_house
    ids = house.rows.insert(count=3)
    contexts = await house.claim()
    inbox = subscribed(house)
    for job_id in ids:
        house.rows.cancel_running(job_id)
    await house.start(house.completer)
    far, near, late = contexts
    states = [retried(far), retried(near, short=True), snoozed(late.run, attempt=0, wait=HOUR, metadata="{}")]
    await report(house, *[finished(context, state) for context, state in zip(contexts, states, strict=True)])
    assert [(event.kind, event.job and event.job.state) for event in read(inbox)] == [
        (EventKind.JOB_CANCELLED, JobState.CANCELLED)
    ] * 3


@pytest.mark.parametrize("plain", [True, False])
async def test_a_run_that_was_lost_gives_no_event(house: House, plain: bool) -> None:
    taken, deleted, rescued, ended = house.rows.insert(count=4)
    contexts = await house.claim()
    inbox = subscribed(house)
    house.rows.steal(taken)
    house.rows.sql("DELETE FROM JOB WHERE id = %(id)s RETURNING id", id=deleted)
    house.rows.sql("UPDATE JOB SET state = 'retryable' WHERE id = %(id)s RETURNING id", id=rescued)
    house.rows.sql("UPDATE JOB SET state = 'completed', finalized_at = now() WHERE id = %(id)s RETURNING id", id=ended)
    await house.start(house.completer)
    settled = await report(house, *[finished(each, None if plain else retried(each)) for each in contexts])
    assert all(each.lost for each in settled)
    assert read(inbox) == []


async def test_a_job_completed_in_its_own_transaction_is_completed_whatever_follows(any_house: House) -> None:
    house = any_house
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    inbox = subscribed(house)
    house.rows.sql(
        "UPDATE JOB SET state = 'completed', finalized_at = now(), metadata = '{\"output\": 3}' WHERE id = %(id)s"
        " RETURNING id",
        id=job_id,
    )
    context.completed_in_session = True
    await house.start(house.completer)
    await report(house, finished(context, retried(context)))
    [event] = read(inbox)
    assert event.kind is EventKind.JOB_COMPLETED
    assert event.job is not None
    assert (event.job.state, event.job.output) == (JobState.COMPLETED, 3)
    assert event.job.finalized_at == house.rows.get(job_id)["finalized_at"]


# -- the slow lane


async def test_a_locked_row_gives_its_event_once_it_is_written(any_house: House) -> None:
    house = any_house
    ids = house.rows.insert(count=2)
    contexts = await house.claim()
    house.completer_config = CompleterConfig(lock_timeout=SHORT, lock_backoff=SHORT)
    inbox = subscribed(house)
    await house.start(house.completer)
    with locked(house.rows, *ids) as other:
        house.completer.report(finished(contexts[0]))
        house.completer.report(finished(contexts[1], retried(contexts[1])))
        for _ in ids:
            await house.completer.slow_tried.wait()
        assert read(inbox) == []
        other.commit()
        for _ in ids:
            await house.settled.wait()
    events = {event.job.id: event.kind for event in read(inbox) if event.job is not None}
    assert events == {ids[0]: EventKind.JOB_COMPLETED, ids[1]: EventKind.JOB_FAILED}


async def test_an_outcome_that_cannot_be_stored_gives_the_event_of_what_was_stored(house: House) -> None:
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    inbox = subscribed(house)
    await house.start(house.completer)
    await report(house, finished(context, completed(context.run, metadata='{"output": "\\u0000"}')))
    [event] = read(inbox)
    row = await stored(house, job_id)
    assert (event.kind, event.job) == (EventKind.JOB_FAILED, row)
    assert row.state is JobState.AVAILABLE
    assert "could not be stored" in row.errors[0].error


# -- the connection dies between statement and answer


@pytest.mark.parametrize("then", ["nothing", "claimed again", "completed by another run"])
async def test_the_event_tells_of_this_run_when_the_answer_to_its_write_was_lost(
    house: House, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The write was committed. By the time of its repetition another run may have the row."""
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    inbox = subscribed(house, EventKind.JOB_FAILED, EventKind.JOB_COMPLETED)
    calls: list[int] = []
    real = job_set_state_if_running_many

    def answer_is_lost(conn: sa.Connection, schema: str, **given: Any) -> list[JobRow]:
        rows = real(conn, schema, **given)
        calls.append(len(rows))
        if len(calls) == 1:
            raise UnavailableError("the connection is gone")
        return rows

    async def others_work(seconds: float) -> None:
        """The pause before the repetition."""
        if then != "nothing":
            house.rows.steal(job_id)
            house.rows.sql("UPDATE JOB SET state = 'running' WHERE id = %(id)s RETURNING id", id=job_id)
        if then == "completed by another run":
            house.rows.sql("UPDATE JOB SET state = 'completed', finalized_at = now() WHERE true RETURNING id")

    monkeypatch.setattr(completer_module, "job_set_state_if_running_many", answer_is_lost)
    monkeypatch.setattr(Backoff, "sleep", others_work)
    await house.start(house.completer)
    await report(house, finished(context, retried(context, short=True)))
    assert calls == [1, 0]
    [event] = read(inbox)
    assert event.kind is EventKind.JOB_FAILED
    assert event.job == await stored(house, job_id)


# -- what it costs


async def test_success_stays_on_the_slim_statement_for_its_subscribers(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("not for a plain success")

    for module, name in (
        (completer_module, "job_set_state_if_running_many"),
        (settlement_module, "job_get_by_id_many"),
        (settlement_module, "job_run_status"),
    ):
        monkeypatch.setattr(module, name, refuse)
    inbox = subscribed(house)
    house.rows.insert(count=20)
    contexts = await house.claim()
    await house.start(house.completer)
    await report(house, *map(finished, contexts))
    assert [event.kind for event in read(inbox)] == [EventKind.JOB_COMPLETED] * 20


@pytest.mark.parametrize("listener", ["nobody", "to failures", "one that left"])
async def test_completions_that_nobody_listens_to_are_not_even_told(
    house: House, monkeypatch: pytest.MonkeyPatch, listener: str
) -> None:
    subscriptions = Subscriptions(house.ctx)
    completer = completer_module.Completer(house.ctx, house.db, house.db.limited(1))
    completer.subscribe(subscriptions.settled, subscriptions.wants)
    if listener == "to failures":
        subscriptions.open(ALL - {EventKind.JOB_COMPLETED}, 10)
    if listener == "one that left":
        subscriptions.drop(subscriptions.open(ALL, 10))
    told: list[object] = []
    monkeypatch.setattr(settlement_module, "Settled", lambda **given: told.append(given))
    house.rows.insert(count=20)
    contexts = await house.claim()
    for context in contexts:
        completer.report(finished(context))
    await house.start(completer)
    await completer.stop()
    assert house.rows.states() == {"completed": 20}
    assert told == []


async def test_the_row_of_a_lost_run_is_not_read_for_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("nobody listens")

    monkeypatch.setattr(settlement_module, "job_get_by_id_many", refuse)
    subscriptions = Subscriptions(house.ctx)
    completer = completer_module.Completer(house.ctx, house.db, house.db.limited(1))
    completer.subscribe(subscriptions.settled, subscriptions.wants)
    [job_id] = house.rows.insert()
    [context] = await house.claim()
    house.rows.steal(job_id)
    completer.report(finished(context))
    await house.start(completer)
    await completer.stop()
    assert completer.stats.lost == 1


async def test_a_worker_is_not_held_up_by_a_subscriber_who_reads_nothing(house: House) -> None:
    inbox = subscribed(house)
    small = subscribed(house, EventKind.JOB_COMPLETED)
    small._size = 1
    register(house, "async def", lambda job: None)
    for _ in range(3):
        assert (await one(house))["state"] == "completed"
    assert len(read(inbox)) == 3
    assert [event.lost for event in read(small)] == [0, 2]
