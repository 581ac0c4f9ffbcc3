from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from riverq.errors import UsageError
from riverq.job import Job, JobRow, JobState
from riverq.maintenance.job_rescuer import UNWINDING, StuckJobError, StuckJobRules, Verdict
from riverq.query.job_rescue import Rescue, RunFence, StuckRow
from riverq.registry import Worker, Workers
from riverq.service import ServiceContext
from tests.maintenance.rescuing import HOUR, Fixed, Mail, PatientWorker, make_rules, workers

RUN = RunFence(1, 1, "client")
AT = datetime(2026, 11, 21, tzinfo=UTC)
DISCARDED = Verdict(rescue=Rescue(RUN, JobState.DISCARDED))
CANCELLED = Verdict(rescue=Rescue(RUN, JobState.CANCELLED))


def stuck(
    kind: str = "mail",
    args: Any = None,
    *,
    span: timedelta = 2 * HOUR,
    attempt: int = 1,
    is_marked: bool = False,
    was_rescued: bool = False,
) -> StuckRow:
    row = JobRow(
        id=1,
        kind=kind,
        state=JobState.RUNNING,
        attempt=attempt,
        max_attempts=3,
        priority=1,
        queue="default",
        created_at=AT,
        scheduled_at=AT,
        encoded_args=json.dumps({} if args is None else args),
        encoded_errors=("{}",) * (attempt - 1),
    )
    return StuckRow(RUN, row, span, is_marked, was_rescued)


def again(wait: timedelta, **marks: bool) -> Verdict:
    return Verdict(rescue=Rescue(RUN, JobState.RETRYABLE, scheduled_in=wait), **marks)


@pytest.fixture
def patient() -> PatientWorker:
    return PatientWorker()


@pytest.fixture
def policy() -> Fixed:
    return Fixed(timedelta(minutes=7))


@pytest.fixture
def rules(held_ctx: ServiceContext, patient: PatientWorker, policy: Fixed) -> StuckJobRules:
    return make_rules(held_ctx, workers(patient), policy=policy)


# -- past the horizon


def test_a_stuck_job_is_tried_again_by_the_clients_policy(rules: StuckJobRules, policy: Fixed) -> None:
    row = stuck(attempt=2)
    assert rules.past_horizon(row) == again(timedelta(minutes=7))
    assert policy.asked == [row.job]


@pytest.mark.parametrize("attempt", [3, 4])
def test_without_attempts_left_it_is_discarded(rules: StuckJobRules, policy: Fixed, attempt: int) -> None:
    assert rules.past_horizon(stuck(attempt=attempt)) == rules.orphaned(stuck(attempt=attempt)) == DISCARDED
    assert policy.asked == []


@pytest.mark.parametrize("kind", ["mail", "endless", "nobody's"])
def test_a_cancel_mark_comes_before_everything(rules: StuckJobRules, kind: str) -> None:
    row = stuck(kind, is_marked=True, attempt=3, was_rescued=True)
    assert rules.past_horizon(row) == rules.orphaned(row) == CANCELLED


def test_jobs_without_a_timeout_are_left_for_ever(
    rules: StuckJobRules, patient: PatientWorker, held_ctx: ServiceContext
) -> None:
    long = timedelta(days=900)
    assert rules.past_horizon(stuck("endless", span=long)) == Verdict()
    assert rules.past_horizon(stuck("patient", {"hours": -1}, span=long)) == Verdict()
    inherited = make_rules(held_ctx, job_timeout=None)
    assert inherited.past_horizon(stuck("mail", span=long)) == Verdict()


@pytest.mark.parametrize(("hours", "is_left"), [(1, False), (2, True), (3, True)])
def test_a_timeout_longer_than_the_horizon_is_waited_for(rules: StuckJobRules, hours: int, is_left: bool) -> None:
    verdict = rules.past_horizon(stuck("patient", {"hours": hours}, span=2 * HOUR))
    assert verdict == (Verdict() if is_left else again(timedelta(minutes=3)))


@pytest.mark.parametrize(("late", "is_left"), [(UNWINDING, True), (UNWINDING + timedelta(seconds=1), False)])
def test_a_job_whose_long_timeout_is_just_over_may_end_by_itself(
    rules: StuckJobRules, late: timedelta, is_left: bool
) -> None:
    """It began later than it was claimed, was told to end just now, and its outcome is on its way."""
    verdict = rules.past_horizon(stuck("patient", {"hours": 2}, span=2 * HOUR + late))
    assert verdict == (Verdict() if is_left else again(timedelta(minutes=3)))


def test_the_workers_policy_is_asked_first_and_told_why(
    rules: StuckJobRules, patient: PatientWorker, policy: Fixed
) -> None:
    assert rules.past_horizon(stuck("patient", {"hours": 1})) == again(timedelta(minutes=3))
    [error] = patient.errors
    assert isinstance(error, StuckJobError)
    assert str(error) == "Stuck job rescued by JobRescuer"
    patient.retry = None
    assert rules.past_horizon(stuck("patient", {"hours": 1})) == again(timedelta(minutes=7))
    assert len(policy.asked) == 1


def test_a_policy_may_answer_with_a_moment(
    rules: StuckJobRules, patient: PatientWorker, held_ctx: ServiceContext
) -> None:
    at = held_ctx.clock.now() + timedelta(days=2)
    patient.retry = at
    verdict = rules.past_horizon(stuck("patient", {"hours": 1}))
    assert verdict.rescue == Rescue(RUN, JobState.RETRYABLE, scheduled_at=at)


def test_the_policy_of_the_registration_comes_before_the_clients(held_ctx: ServiceContext, policy: Fixed) -> None:
    own, known = Fixed(timedelta(minutes=1)), Workers()

    @known.work(retry_policy=own)
    def mail(job: Job[Mail]) -> None:
        pass

    rules = make_rules(held_ctx, known, policy=policy)
    assert (rules.past_horizon(stuck()), policy.asked) == (again(timedelta(minutes=1)), [])
    undecodable = stuck(args={"to": 1}, was_rescued=True)
    assert rules.past_horizon(undecodable) == again(timedelta(minutes=7), unless_living=True)
    assert rules.orphaned(undecodable) == again(timedelta(minutes=7))
    assert policy.asked == [undecodable.job] * 2


@pytest.mark.parametrize(
    "answer",
    [
        RuntimeError("broken"),
        timedelta(seconds=-1),
        datetime(2020, 1, 1, tzinfo=UTC),
        datetime(2100, 1, 1, tzinfo=UTC).replace(tzinfo=None),
        "soon",
        None,
    ],
)
def test_a_policy_that_answers_with_nonsense_is_replaced_by_the_default(
    held_ctx: ServiceContext, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    verdict = make_rules(held_ctx, policy=Fixed(answer)).past_horizon(stuck(attempt=2))
    assert verdict.rescue is not None
    assert verdict.rescue.scheduled_in is not None
    assert timedelta(seconds=14) < verdict.rescue.scheduled_in < timedelta(seconds=18)
    assert "job 1: Asked the default retry policy" in caplog.text


def test_args_that_cannot_be_decoded_are_a_failed_attempt_by_the_clients_policy(
    rules: StuckJobRules, patient: PatientWorker, policy: Fixed, caplog: pytest.LogCaptureFixture
) -> None:
    row = stuck("patient", {"hours": "many"}, span=timedelta(seconds=1))
    assert rules.past_horizon(row) == again(timedelta(minutes=7), unless_living=True)
    assert patient.errors == []
    assert "job 1: Judged without its args" in caplog.text
    assert rules.past_horizon(stuck("patient", "text", attempt=3)).rescue == Rescue(RUN, JobState.DISCARDED)


class Moody(Worker[Mail]):
    """Its own code cannot be relied on."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def work(self, job: Any) -> None:
        pass

    def timeout(self, job: Any) -> Any:
        return self._answer(job)


@pytest.mark.parametrize("answer", [lambda job: 60, lambda job: 1 / 0, lambda job: job.client.job_get(1)])
def test_a_timeout_that_cannot_be_asked_is_the_clients(
    held_ctx: ServiceContext, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    known = Workers()
    known.add(Moody(answer))
    assert make_rules(held_ctx, known, job_timeout=HOUR).past_horizon(stuck()) == again(timedelta(minutes=7))
    assert make_rules(held_ctx, known, job_timeout=3 * HOUR).past_horizon(stuck()) == Verdict()
    assert "job 1: Took the client's timeout" in caplog.text


@pytest.mark.parametrize(
    ("unknown", "verdict"),
    [
        ("leave", Verdict(is_unknown=True, unless_living=True)),
        ("retry", again(timedelta(minutes=7), is_unknown=True, unless_living=True)),
        ("discard", Verdict(rescue=Rescue(RUN, JobState.DISCARDED), is_unknown=True)),
    ],
)
def test_unknown_kinds_are_as_the_setting_says(
    held_ctx: ServiceContext, unknown: Literal["leave", "retry", "discard"], verdict: Verdict
) -> None:
    rules = make_rules(held_ctx, unknown=unknown)
    assert rules.past_horizon(stuck("nobody's")) == verdict
    assert rules.orphaned(stuck("nobody's")) == Verdict(is_unknown=True)
    assert rules.leaves_unknown is (unknown == "leave")


def test_unknown_kinds_without_attempts_left_are_not_tried_again(held_ctx: ServiceContext) -> None:
    verdict = make_rules(held_ctx, unknown="retry").past_horizon(stuck("nobody's", attempt=3))
    assert verdict.rescue == Rescue(RUN, JobState.DISCARDED)


# -- orphaned


@pytest.mark.parametrize(("kind", "args"), [("mail", {}), ("endless", {}), ("patient", {"hours": 9}), ("patient", {})])
def test_an_orphan_runs_again_at_once_the_first_time(rules: StuckJobRules, policy: Fixed, kind: str, args: Any) -> None:
    verdict = rules.orphaned(stuck(kind, args, span=timedelta(seconds=1)))
    assert verdict == Verdict(rescue=Rescue(RUN, JobState.AVAILABLE, scheduled_in=timedelta(0)))
    assert policy.asked == []


def test_an_orphan_runs_again_by_the_policy_from_the_second_time_on(rules: StuckJobRules) -> None:
    assert rules.orphaned(stuck(was_rescued=True)) == again(timedelta(minutes=7))
    assert rules.orphaned(stuck("patient", {"hours": 9}, was_rescued=True)) == again(timedelta(minutes=3))
    assert rules.orphaned(stuck("patient", {}, was_rescued=True)) == again(timedelta(minutes=7))


# -- what a worker's code sees


def test_a_workers_code_sees_args_and_row_and_nothing_that_needs_a_running_job(held_ctx: ServiceContext) -> None:
    seen: list[Any] = []
    known = Workers()

    def timeout(job: Any) -> timedelta:
        seen.append(job)
        return HOUR

    known.add(Moody(timeout))
    make_rules(held_ctx, known).past_horizon(stuck(args={"to": "me"}))
    [job] = seen
    assert (job.args, job.id, job.row.kind) == (Mail("me"), 1, "mail")
    job.log.info("job %s: Looked", 1)
    uses: list[Callable[[], Any]] = [
        lambda: job.client,
        lambda: job.async_client,
        lambda: job.cancelled,
        lambda: job.record_output(1),
        lambda: job.set_metadata("a", 1),
        lambda: job.complete(None),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="job 1 does not run here"):
            use()
