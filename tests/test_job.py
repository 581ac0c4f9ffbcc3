"""Rows decode late and leniently; a `Job` passes on what its context offers."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from riverq.job import FINAL_STATES, AttemptError, Job, JobRow, JobState

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(**columns: Any) -> JobRow:
    given: dict[str, Any] = {
        "id": 7,
        "kind": "k",
        "state": JobState.RUNNING,
        "attempt": 2,
        "max_attempts": 25,
        "priority": 1,
        "queue": "default",
        "created_at": AT,
        "scheduled_at": AT,
    }
    return JobRow(**(given | columns))


def test_states_are_the_labels_of_the_enum() -> None:
    assert sorted(JobState) == sorted(
        ["available", "cancelled", "completed", "discarded", "pending", "retryable", "running", "scheduled"]
    )
    assert {state for state in JobState if state.is_final} == FINAL_STATES


def test_json_is_decoded_once() -> None:
    found = row(encoded_args='{"a":1}', encoded_metadata='{"output":[1],"b":2}')
    assert (found.args, found.metadata["b"], found.output) == ({"a": 1}, 2, [1])
    assert found.args is found.args
    assert row().output is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "[" * 100_000])
def test_broken_metadata_reads_as_empty(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert row(encoded_metadata=text).metadata == {}
    assert "job 7: Reading metadata as empty" in caplog.text


def test_errors_are_read_as_go_writes_them() -> None:
    found = row(
        encoded_errors=(
            '{"at":"2026-01-02T03:04:05.123456789+02:00","attempt":1,"error":"e","trace":"t"}',
            '{"at":"2026-01-02T03:04:05.5Z","attempt":2,"error":"f"}',
            '{"at":"2026-01-02T03:04:05Z","attempt":3,"error":"g","trace":null,"more":1}',
            '{"at":"2026-01-02T03:04:05","attempt":4,"error":"h","trace":""}',
        )
    )
    assert [error.error for error in found.errors] == ["e", "f", "g", "h"]
    assert found.errors[0] == AttemptError(
        datetime.fromisoformat("2026-01-02T03:04:05.123456+02:00"), attempt=1, error="e", trace="t"
    )
    assert found.errors[1].at == AT + timedelta(seconds=0.5)
    assert all(error.at.tzinfo is not None for error in found.errors)


@pytest.mark.parametrize(
    "text", ["{", "null", "[]", "3", '{"attempt":1}', '{"at":5}', '{"at":"x","attempt":1,"error":""}']
)
def test_a_broken_entry_is_left_out(text: str, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"at":"2026-01-02T03:04:05Z","attempt":1,"error":"e","trace":""}'
    assert [error.attempt for error in row(encoded_errors=(text, good)).errors] == [1]
    assert "job 7: Leaving out an entry of errors" in caplog.text


class Context:
    """A context that remembers what was asked of it."""

    def __init__(self) -> None:
        self.row = row()
        self.log = logging.LoggerAdapter(logging.getLogger("test"), {})
        self.cancelled: Any = object()
        self.client: Any = object()
        self.async_client: Any = object()
        self.steps: Any = object()
        self.asked: list[Any] = []

    def record_output(self, value: object) -> None:
        self.asked.append(("record_output", value))

    def set_metadata(self, key: str, value: object) -> None:
        self.asked.append(("set_metadata", key, value))

    def complete(self, session: Any) -> Any:
        self.asked.append(("complete", session))


def test_a_job_offers_its_context() -> None:
    context = Context()
    job = Job("args", context)
    assert (job.args, job.row, job.id, job.log) == ("args", context.row, 7, context.log)
    assert (job.cancelled, job.client, job.async_client) == (context.cancelled, context.client, context.async_client)
    session: Any = object()
    job.record_output(1)
    job.set_metadata("k", 2)
    job.complete(session=session)
    assert context.asked == [("record_output", 1), ("set_metadata", "k", 2), ("complete", session)]
    assert repr(job) == "<Job 7 k attempt 2>"
