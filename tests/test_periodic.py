from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from riverq.cron import cron
from riverq.errors import ConfigError
from riverq.job_args import RawArgs
from riverq.periodic import PeriodicHandle, PeriodicJob, PeriodicJobs, next_run
from riverq.schedule import Schedule, every, never
from riverq.testing.fake_clock import FakeClock

HOUR = timedelta(hours=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def args() -> RawArgs:
    return RawArgs("k1", {})


def job(job_id: str | None = None, schedule: Schedule | None = None) -> PeriodicJob:
    return PeriodicJob(schedule or every(HOUR), args, id=job_id)


@pytest.fixture
def jobs(held_clock: FakeClock) -> PeriodicJobs:
    return PeriodicJobs(clock=held_clock)


# -- one job


def test_reads_as_it_is_meant() -> None:
    found = PeriodicJob(cron("0 9 * * MON-FRI"), args, id="report", run_on_start=True)
    assert (found.id, found.run_on_start, found.durable) == ("report", True, False)
    assert PeriodicJob(schedule=never(), make_args=args).id is None


@pytest.mark.parametrize("job_id", ["a1", "report.daily", "a:b/c<d>[e]·+-_", "x" * 127])
def test_accepts_rivers_ids(job_id: str) -> None:
    assert job(job_id).id == job_id


@pytest.mark.parametrize("job_id", ["", "a", "x" * 128, "-ab", "a b", "ab\n", "täglich", "a'b", 5, b"ab"])
def test_refuses_ids_that_river_refuses(job_id: object) -> None:
    with pytest.raises(ConfigError, match="expected id to be 2 to 127 letters"):
        job(job_id)  # type: ignore[arg-type]  # on purpose


async def _coroutine() -> None:
    """No make_args."""


@pytest.mark.parametrize(
    ("make_args", "fault"),
    [
        (RawArgs("k1", {}), "to be a function"),
        (None, "to be a function"),
        (_coroutine, "to be a plain def"),
        (lambda at, more: None, "to need no argument, or the run's time only"),
        (lambda *, at: None, "to need no argument, or the run's time only"),
    ],
)
def test_refuses_what_makes_no_args(make_args: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"expected make_args {fault}"):
        PeriodicJob(every(HOUR), make_args)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("make_args", "takes_target"),
    [
        (args, False),
        (lambda at: at, True),
        (lambda at=None: at, False),
        (lambda *more: more, False),
        (partial(lambda name, at: (name, at), "name"), True),
        (dict, False),
    ],
)
def test_knows_whether_the_function_needs_the_time(make_args: Callable[[], object], takes_target: object) -> None:
    assert PeriodicJob(every(HOUR), make_args).takes_target is takes_target


@pytest.mark.parametrize("schedule", [None, HOUR, "@daily", cron])
def test_refuses_what_is_no_schedule(schedule: object) -> None:
    with pytest.raises(ConfigError, match="expected schedule to be a schedule"):
        PeriodicJob(schedule, args)  # type: ignore[arg-type]  # on purpose


def test_refuses_a_durable_job_without_id_and_flags_that_are_none() -> None:
    with pytest.raises(ConfigError, match="a durable periodic job needs an id"):
        PeriodicJob(every(HOUR), args, durable=True)
    with pytest.raises(ConfigError, match="expected run_on_start to be True or False, got: 1"):
        PeriodicJob(every(HOUR), args, run_on_start=1)  # type: ignore[arg-type]  # on purpose


# -- when it runs


class Answering:
    """A schedule of somebody's own."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[datetime] = []

    def next(self, after: datetime, /) -> datetime | None:
        self.asked.append(after)
        return self.answer  # type: ignore[return-value]  # on purpose


def test_schedules_are_asked_and_compared_in_utc() -> None:
    zone = datetime.fromisoformat("2026-01-01T05:00:00+05:00").tzinfo
    schedule = Answering(datetime(2026, 1, 1, 6, tzinfo=zone))
    found = next_run(job(schedule=schedule), NOW.astimezone(zone))
    assert (found, found.tzinfo if found else None) == (NOW + HOUR, UTC)
    assert schedule.asked[0].tzinfo is UTC


@pytest.mark.parametrize("answer", [NOW, NOW - HOUR, (NOW + HOUR).replace(tzinfo=None), "soon"])
def test_answers_that_are_no_later_time_are_refused(answer: object) -> None:
    with pytest.raises(ConfigError, match="expected the next run of"):
        next_run(job(schedule=Answering(answer)), NOW)


# -- the registry


def test_adds_and_lists_in_order_with_the_next_runs(jobs: PeriodicJobs) -> None:
    first, second = jobs.add_many([job("first"), job(schedule=never())])
    third = jobs.add(job("third", Answering(NOW)))
    assert [(each.handle, each.id, each.next_run_at) for each in jobs.list()] == [
        (first, "first", NOW + HOUR),
        (second, None, None),
        (third, "third", None),
    ]
    assert jobs.next_run_times() == [(first.job, NOW + HOUR), (second.job, None), (third.job, None)]
    assert jobs.next_run_times(NOW + HOUR)[0] == (first.job, NOW + 2 * HOUR)
    assert len(jobs) == 3


def test_an_id_is_taken_once(jobs: PeriodicJobs) -> None:
    jobs.add(job("first"))
    with pytest.raises(ConfigError, match="periodic job id 'first' is taken"):
        jobs.add(job("first"))
    with pytest.raises(ConfigError, match="periodic job id 'first' is taken"):
        PeriodicJobs([job("first"), job("first")])


@pytest.mark.parametrize("bad", ["first", "new", object()])
def test_adding_many_is_all_or_nothing(jobs: PeriodicJobs, bad: object) -> None:
    jobs.add(job("first"))
    with pytest.raises(ConfigError):
        jobs.add_many([job("new"), job(bad) if isinstance(bad, str) else bad])  # type: ignore[list-item]  # on purpose
    assert [each.id for each in jobs.list()] == ["first"]
    jobs.add(job("new"))


def test_a_job_may_be_added_twice_without_an_id(jobs: PeriodicJobs) -> None:
    twice = job()
    first, second = jobs.add(twice), jobs.add(twice)
    assert jobs.remove(first)
    assert [each.handle for each in jobs.list()] == [second]


def test_what_is_removed_frees_its_id(jobs: PeriodicJobs) -> None:
    handle, second, third = jobs.add_many([job("first"), job("second"), job("third")])
    assert jobs.remove(handle)
    assert not jobs.remove(handle)
    assert not jobs.remove_by_id("first")
    jobs.add(job("first"))
    assert not jobs.remove(handle)  # the new one is another
    assert jobs.remove_by_id("first")
    assert jobs.remove_many([second, third, second, handle]) == 2
    assert len(jobs) == 0


def test_clearing_leaves_no_stale_ids(jobs: PeriodicJobs) -> None:
    jobs.add_many([job("first"), job("second")])
    jobs.clear()
    assert jobs.list() == []
    jobs.add_many([job("second"), job("first")])


def test_handles_of_another_client_are_not_ours(jobs: PeriodicJobs) -> None:
    jobs.add(job("first"))
    assert not jobs.remove(PeriodicJobs([job("first")]).handles()[0])


def test_a_client_that_may_not_lead_takes_none() -> None:
    jobs = PeriodicJobs(may_lead=False)
    with pytest.raises(ConfigError, match="periodic jobs need a client that may lead"):
        jobs.add(job())
    assert jobs.add_many([]) == []


def test_subscribers_hear_of_every_change_until_they_leave(jobs: PeriodicJobs) -> None:
    heard: list[int] = []

    def on_change() -> None:
        heard.append(len(jobs))  # the lock is free

    jobs.subscribe(on_change)
    handle = jobs.add(job("first"))
    jobs.remove(handle)
    jobs.add(job("first"))
    jobs.remove_by_id("first")
    jobs.clear()
    assert heard == [1, 0, 1, 0, 0]
    jobs.unsubscribe(on_change)
    jobs.add(job())
    assert len(heard) == 5


def test_the_leaders_plan_is_shown_while_it_leads(jobs: PeriodicJobs) -> None:
    handle = jobs.add(job("first"))
    heard: list[None] = []

    def on_change() -> None:
        heard.append(None)

    jobs.subscribe(on_change)
    jobs.plan(handle, NOW + 5 * HOUR)
    assert [each.next_run_at for each in jobs.list()] == [NOW + 5 * HOUR]
    jobs.plan(PeriodicHandle(handle.job), NOW)  # removed meanwhile
    assert len(jobs.list()) == 1
    jobs.unsubscribe(on_change)
    assert [each.next_run_at for each in jobs.list()] == [NOW + HOUR]


def test_threads_may_add_and_remove_at_once(jobs: PeriodicJobs) -> None:
    refused: list[ConfigError] = []

    def hammer() -> None:
        for _ in range(300):
            try:
                handle = jobs.add(job("same"))
            except ConfigError as error:
                refused.append(error)
            else:
                jobs.list()
                assert jobs.remove(handle)

    threads = [threading.Thread(target=hammer) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) == 0
    jobs.add(job("same"))
