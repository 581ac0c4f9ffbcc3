from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq import JobCancel, JobDiscard, JobSnooze, JobTimeoutError
from riverq.errors import JobRunLostError
from riverq.job import JobRow, JobState
from riverq.retry_policy import DefaultRetryPolicy
from riverq.state import Reason, SetState
from riverq.worker.cancellation import CancelReason
from riverq.worker.context import RunContext
from riverq.worker.outcome import (
    ERROR_LIMIT,
    TRACE_LIMIT,
    Failure,
    Policies,
    Retry,
    clean,
    describe,
    fail,
    find,
    judge,
    unstorable,
)
from tests.worker.harness import run_context

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Policy:
    """Answers what it is given, as it is."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def next_retry(self, row: JobRow, *, rng: random.Random) -> timedelta | datetime:
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: timedelta | datetime = self.answer
        return answer


def outcome(
    context: RunContext,
    error: BaseException | None,
    *,
    reason: CancelReason | None = None,
    worker: Callable[[BaseException], Retry | None] = lambda _: None,
    client: Any = None,
    cancel: bool = False,
) -> SetState:
    verdict = judged(context, error, reason)
    if isinstance(verdict, SetState):
        return verdict
    policies = Policies(worker=worker, client=client or DefaultRetryPolicy(), rng=random.Random(0), now=lambda: NOW)
    return fail(context, verdict, cancel=cancel, policies=policies)


def judged(context: RunContext, error: BaseException | None, reason: CancelReason | None = None) -> SetState | Failure:
    if reason is not None:
        context.cancelled.set(reason)
    return judge(context, error, timeout=timedelta(seconds=60))


def raised(error: BaseException) -> BaseException:
    """The error with a traceback."""
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001  # it is given any
        return caught


def text_of(state: SetState) -> str:
    assert state.error is not None
    text: str = json.loads(state.error)["error"]
    return text


def test_returning_completes() -> None:
    state = outcome(run_context(), None)
    assert (state.state, state.reason, state.is_plain_success) == (JobState.COMPLETED, Reason.COMPLETED, True)


@pytest.mark.parametrize("reason", list(CancelReason))
def test_returning_completes_even_after_being_told_to_end(reason: CancelReason) -> None:
    assert outcome(run_context(), None, reason=reason).state is JobState.COMPLETED


def test_the_stored_error_is_rivers_object() -> None:
    state = outcome(run_context(attempt=3), raised(ValueError("it broke")))
    assert state.error is not None
    entry = json.loads(state.error)
    trace = entry.pop("trace")
    assert entry == {"at": "2026-01-02T03:04:05.123400Z", "attempt": 3, "error": "ValueError: it broke"}
    assert trace.startswith("Traceback")
    assert trace.endswith("ValueError: it broke\n")


def test_a_short_wait_goes_back_to_available_and_a_long_one_to_retryable() -> None:
    error = raised(ValueError("x"))
    short = outcome(run_context(), error, client=Policy(timedelta(seconds=5)))
    long = outcome(run_context(), error, client=Policy(timedelta(seconds=5, microseconds=1)))
    assert (short.state, short.scheduled_in) == (JobState.AVAILABLE, timedelta(seconds=5))
    assert (long.state, long.scheduled_in) == (JobState.RETRYABLE, timedelta(seconds=5, microseconds=1))
    assert short.reason is long.reason is Reason.ERRORED
    assert short.attempt is None


def test_a_retry_time_that_is_a_datetime_is_written_as_it_is() -> None:
    when = NOW + timedelta(hours=1)
    state = outcome(run_context(), raised(ValueError("x")), client=Policy(when))
    assert (state.state, state.scheduled_at, state.scheduled_in) == (JobState.RETRYABLE, when, None)
    state = outcome(run_context(), raised(ValueError("x")), client=Policy(NOW + timedelta(seconds=1)))
    assert state.state is JobState.AVAILABLE


def test_the_worker_is_asked_before_the_client() -> None:
    seen: list[BaseException] = []

    def worker(error: BaseException) -> Retry | None:
        seen.append(error)
        return timedelta(minutes=3)

    error = raised(ValueError("x"))
    assert outcome(run_context(), error, worker=worker).scheduled_in == timedelta(minutes=3)
    assert seen == [error]


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("broken policy"),
        asyncio.CancelledError("the policy looked at job.cancelled"),
        SystemExit(1),
        GeneratorExit(),
        "tomorrow",
        None,
        timedelta(seconds=-1),
        timedelta.max,
        datetime(2027, 1, 1),  # noqa: DTZ001  # that it is naive is the point
        NOW - timedelta(seconds=1),
    ],
    ids=str,
)
def test_a_policy_that_answers_nonsense_is_replaced_with_a_warning(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        state = outcome(run_context(), raised(ValueError("x")), client=Policy(answer))
    assert state.scheduled_in is not None
    assert timedelta(seconds=0.9) <= state.scheduled_in <= timedelta(seconds=1.1)
    assert "Asked the default retry policy" in caplog.text


def test_without_attempts_left_the_job_is_discarded() -> None:
    state = outcome(run_context(attempt=4, max_attempts=4), raised(ValueError("x")))
    assert (state.state, state.reason) == (JobState.DISCARDED, Reason.DISCARDED)
    assert text_of(state) == "ValueError: x"
    assert outcome(run_context(attempt=3, max_attempts=4), raised(ValueError("x"))).state is JobState.AVAILABLE


def chained(inner: BaseException) -> list[BaseException]:
    """The error itself, as a cause, in a group, and in a group that is a cause."""
    caused = RuntimeError("outer")
    caused.__cause__ = inner
    group = BaseExceptionGroup("several", [ValueError("x"), inner])
    nested = RuntimeError("outermost")
    nested.__cause__ = BaseExceptionGroup("deep", [group])
    return [inner, caused, group, nested]


def test_a_snooze_is_found_in_causes_and_groups() -> None:
    for error in chained(JobSnooze(timedelta(minutes=1))):
        state = outcome(run_context(attempt=3, max_attempts=3), error)
        assert (state.state, state.attempt, state.scheduled_in) == (JobState.SCHEDULED, 2, timedelta(minutes=1))
        assert (state.error, state.metadata) == (None, '{"snoozes":1}')


def test_an_error_while_handling_a_snooze_is_an_error() -> None:
    error = ValueError("while snoozing")
    error.__context__ = JobSnooze(timedelta(minutes=1))
    assert outcome(run_context(), error).reason is Reason.ERRORED


def test_a_short_snooze_stays_available_and_counts_on() -> None:
    context = run_context(metadata='{"snoozes": 4, "mine": 1}')
    context.set_metadata("note", "hä")
    state = outcome(context, JobSnooze(timedelta(0)))
    assert (state.state, state.attempt, state.scheduled_in) == (JobState.AVAILABLE, 0, timedelta(0))
    assert state.metadata is not None
    assert json.loads(state.metadata) == {"snoozes": 5, "note": "hä"}


@pytest.mark.parametrize("metadata", ["[]", "null", "not json", '{"snoozes": "x"}'])
def test_a_snooze_counts_from_one_where_metadata_cannot_be_read(metadata: str) -> None:
    state = outcome(run_context(metadata=metadata), JobSnooze(timedelta(0)))
    assert state.metadata == '{"snoozes":1}'


def test_cancel_and_discard_are_found_in_causes_and_groups() -> None:
    for error in chained(JobCancel("enough")):
        state = outcome(run_context(), error)
        assert (state.state, text_of(state)) == (JobState.CANCELLED, "JobCancelError: enough")
    for error in chained(JobDiscard("hopeless")):
        state = outcome(run_context(), error)
        assert (state.state, text_of(state)) == (JobState.DISCARDED, "JobDiscard: hopeless")


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("x"), JobSnooze(timedelta(minutes=1))])
def test_a_remote_cancel_overrules_whatever_was_raised(error: BaseException) -> None:
    state = outcome(run_context(), raised(error), reason=CancelReason.CANCELLED)
    assert (state.state, state.reason) == (JobState.CANCELLED, Reason.CANCELLED)
    assert text_of(state) == "JobCancelError: job cancelled remotely"


def test_only_a_cancellation_caused_by_the_stop_is_an_interruption() -> None:
    for error in chained(asyncio.CancelledError()):
        state = outcome(run_context(attempt=3), error, reason=CancelReason.STOPPING)
        assert (state.state, state.reason, state.attempt, state.error) == (
            JobState.AVAILABLE,
            Reason.INTERRUPTED,
            2,
            None,
        )
    assert outcome(run_context(), ValueError("x"), reason=CancelReason.STOPPING).reason is Reason.ERRORED


def test_a_cancellation_of_ones_own_is_a_failed_attempt() -> None:
    state = outcome(run_context(), raised(asyncio.CancelledError("mine")))
    assert (state.reason, text_of(state)) == (Reason.ERRORED, "CancelledError: mine")


def test_a_timeout_is_a_failed_attempt_that_says_so() -> None:
    state = outcome(run_context(), raised(asyncio.CancelledError()), reason=CancelReason.TIMEOUT)
    assert (state.reason, text_of(state)) == (Reason.ERRORED, "job timed out after 60 s")
    assert state.error is not None
    assert "CancelledError" in json.loads(state.error)["trace"]
    assert text_of(outcome(run_context(), ValueError("x"), reason=CancelReason.TIMEOUT)) == "ValueError: x"


def test_an_uncommitted_completion_is_a_failed_attempt() -> None:
    context = run_context()
    context.completed_in_session = True
    state = outcome(context, None)
    assert (state.reason, text_of(state)) == (Reason.ERRORED, "completed in a transaction that did not commit")


def test_the_handler_may_have_a_failed_job_cancelled_even_after_its_last_attempt() -> None:
    for attempt in (1, 25):
        context = run_context(attempt=attempt)
        context.record_output([1])
        state = outcome(context, raised(ValueError("it broke")), cancel=True)
        assert (state.state, state.reason, text_of(state)) == (
            JobState.CANCELLED,
            Reason.CANCELLED,
            "ValueError: it broke",
        )
        assert state.metadata == '{"output":[1]}'
        assert (state.attempt, state.scheduled_in, state.scheduled_at) == (None, None, None)


def test_a_failure_carries_what_the_row_will_have() -> None:
    context = run_context()
    failure = judged(context, raised(ValueError("nul \0" + "x" * TRACE_LIMIT)))
    assert isinstance(failure, Failure)
    state = outcome(context, failure.error)
    assert state.error is not None
    entry = json.loads(state.error)
    assert (entry["error"], entry["trace"]) == (failure.text, failure.trace)
    assert "\\x00" in failure.trace


def test_a_timeout_counts_as_its_own_error() -> None:
    raw = raised(asyncio.CancelledError())
    failure = judged(run_context(), raw, CancelReason.TIMEOUT)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, JobTimeoutError)
    assert failure.error.__cause__ is raw


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x"), None),
        (SystemExit(1), None),
        (asyncio.CancelledError(), None),
        (asyncio.CancelledError(), CancelReason.TIMEOUT),
        (ValueError("x"), CancelReason.TIMEOUT),
        (ValueError("x"), CancelReason.STOPPING),
    ],
    ids=repr,
)
def test_failures_that_the_handler_is_told_of(error: BaseException, reason: CancelReason | None) -> None:
    failure = judged(run_context(), raised(error), reason)
    assert isinstance(failure, Failure)
    assert failure.is_told


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, None),
        (JobSnooze(timedelta(minutes=1)), None),
        (JobCancel("enough"), None),
        (JobDiscard("hopeless"), None),
        (asyncio.CancelledError(), CancelReason.STOPPING),
        (asyncio.CancelledError(), CancelReason.LOST),
        (asyncio.CancelledError(), CancelReason.CANCELLED),
        (ValueError("x"), CancelReason.CANCELLED),
        (SystemExit(1), CancelReason.CANCELLED),
    ],
    ids=repr,
)
def test_ends_that_are_no_failures(error: BaseException | None, reason: CancelReason | None) -> None:
    assert isinstance(judged(run_context(), error, reason), SetState)


def test_the_handler_is_not_told_where_nobody_knows_whether_the_attempt_failed() -> None:
    committed = run_context()
    committed.completed_in_session = True
    lost = ValueError("x")
    lost.__cause__ = JobRunLostError(7)
    failures = [
        judged(committed, None),
        judged(run_context(), raised(ValueError("x")), CancelReason.LOST),
        judged(run_context(), raised(JobRunLostError(7))),
        judged(run_context(), raised(lost)),
    ]
    assert [isinstance(failure, Failure) and failure.is_told for failure in failures] == [False] * 4
    told = judged(committed, raised(ValueError("after the completion, perhaps rolled back")))
    assert isinstance(told, Failure)
    assert told.is_told


def test_staged_metadata_goes_with_every_outcome() -> None:
    for error in (None, ValueError("x"), JobCancel("x"), JobDiscard("x"), JobSnooze(timedelta(0))):
        context = run_context()
        context.record_output([1])
        state = outcome(context, error)
        assert state.metadata is not None
        assert json.loads(state.metadata)["output"] == [1]
        assert not state.is_plain_success


def test_texts_that_postgres_cannot_store_are_cleaned() -> None:
    state = outcome(run_context(), raised(ValueError("nul \0 lone \ud800 smile \N{GRINNING FACE}")))
    assert text_of(state) == "ValueError: nul \\x00 lone \\ud800 smile \N{GRINNING FACE}"
    assert len(clean("x" * (ERROR_LIMIT * 3), ERROR_LIMIT)) < ERROR_LIMIT + 100


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_whose_text_fails_is_still_an_error() -> None:
    state = outcome(run_context(), raised(Unspeakable()))
    assert text_of(state) == "Unspeakable: (its text cannot be shown: __str__ failed)"
    assert describe(ValueError()) == "ValueError"


def test_find_survives_errors_that_cause_each_other() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert find(one, JobSnooze) is None


def test_what_stands_in_for_an_outcome_that_cannot_be_stored() -> None:
    states = unstorable(run_context(), ValueError("refused"), random.Random(0))
    assert [state.state for state in states] == [JobState.AVAILABLE, JobState.DISCARDED]
    assert text_of(states[0]) == "the outcome of this attempt could not be stored: refused"
    last = unstorable(run_context(attempt=25), ValueError("refused"), random.Random(0))
    assert [state.state for state in last] == [JobState.DISCARDED]


def test_a_broken_row_still_gets_an_outcome() -> None:
    context = run_context(errors="not json", scheduled_at_us=10**30, attempt=2)
    state = outcome(context, raised(ValueError("x")))
    assert state.reason is Reason.ERRORED
    assert state.scheduled_in is not None
