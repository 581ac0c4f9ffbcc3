"""The state machine's table, its drawing, and the moves that end a run."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from riverq import state
from riverq.job import FINAL_STATES, JobState
from riverq.state import ENTRIES, SHORT_WAIT, TRANSITIONS, TRIGGERS, Reason, Run, SetState, mermaid, next_snooze_count

RUN = Run(1, 2)
PAGE = Path(__file__).parents[1] / "docs" / "internals" / "state-machine.md"
S = JobState


def test_every_state_has_a_way_in_and_a_way_out() -> None:
    assert set(TRANSITIONS) == set(S)
    reached = {after for afters in TRANSITIONS.values() for after in afters} | set(ENTRIES)
    assert reached == set(S)
    assert all(TRANSITIONS[each] for each in S)
    assert {(before, after) for before, afters in TRANSITIONS.items() for after in afters} == set(TRIGGERS)


def test_only_a_claim_makes_a_job_run_and_only_a_retry_by_hand_leaves_a_final_state() -> None:
    assert [before for before in S if S.RUNNING in TRANSITIONS[before]] == [S.AVAILABLE]
    assert all(TRANSITIONS[final] == {S.AVAILABLE} for final in FINAL_STATES)
    assert [each for each in S if S.DISCARDED in TRANSITIONS[each]] == [S.RETRYABLE, S.RUNNING, S.SCHEDULED]


def test_the_drawing_in_the_docs_is_current() -> None:
    drawn = f"```mermaid\n{mermaid()}\n```"
    assert drawn in PAGE.read_text(), "run: python -c 'from riverq.state import mermaid; print(mermaid())'"


def test_the_moves_of_a_run_are_in_the_table() -> None:
    now, second = datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=1)
    moves = [
        state.completed(RUN),
        state.completed(RUN, metadata="{}"),
        state.cancelled(RUN, error="{}"),
        state.discarded(RUN, error="{}"),
        state.errored(RUN, error="{}", retry=second, short=True),
        state.errored(RUN, error="{}", retry=now, short=False),
        state.snoozed(RUN, attempt=0, wait=second, metadata="{}"),
        state.snoozed(RUN, attempt=0, wait=timedelta(hours=1), metadata="{}"),
        state.interrupted(RUN, attempt=-1),
    ]
    assert {move.state for move in moves} == TRANSITIONS[S.RUNNING]
    assert {move.reason for move in moves} == set(Reason)
    assert [move.is_plain_success for move in moves] == [True] + [False] * 8
    makers = [
        each
        for _, each in inspect.getmembers(state, inspect.isfunction)
        if inspect.signature(each).return_annotation == "SetState"
    ]
    assert len(makers) == 6, "a constructor that this test does not call"


def test_retry_times_are_relative_or_absolute() -> None:
    now, second = datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=1)
    relative = state.errored(RUN, error="{}", retry=second, short=True)
    absolute = state.errored(RUN, error="{}", retry=now, short=False)
    assert (relative.state, relative.scheduled_in, relative.scheduled_at) == (S.AVAILABLE, second, None)
    assert (absolute.state, absolute.scheduled_in, absolute.scheduled_at) == (S.RETRYABLE, None, now)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (timedelta(0), S.AVAILABLE),
        (SHORT_WAIT, S.AVAILABLE),
        (SHORT_WAIT + timedelta(microseconds=1), S.SCHEDULED),
    ],
)
def test_short_snoozes_do_not_wait_for_the_leader(wait: timedelta, expected: JobState) -> None:
    move: SetState = state.snoozed(RUN, attempt=3, wait=wait, metadata='{"snoozes":1}')
    assert (move.state, move.attempt, move.scheduled_in) == (expected, 3, wait)


def test_an_interrupted_run_gives_its_attempt_back() -> None:
    assert [state.interrupted(RUN, attempt=attempt).attempt for attempt in (-1, 0, 2)] == [0, 0, 2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, 1),
        (2, 3),
        (2.9, 3),
        (-2.5, -1),
        (1e3, 1001),
        (9007199254740993, 9007199254740994),
        ("4", 5),
        ("-7", -6),
        ("4.5", 1),
        (" 5", 1),
        ("5\n", 1),
        ("٤", 1),
        ("abc", 1),
        ("", 1),
        (True, 2),
        (False, 1),
        ([3], 1),
        ({"a": 1}, 1),
        (float("inf"), 1),
        (float("nan"), 1),
        (2**63, 1),
        (2**63 - 1, 1),
        ("99999999999999999999", 1),
        ("9999999999999999999", 1),
    ],
)
def test_snoozes_are_counted_as_leniently_as_river_counts(before: object, after: int) -> None:
    assert next_snooze_count(before) == after
