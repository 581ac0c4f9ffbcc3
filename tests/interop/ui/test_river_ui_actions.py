"""Retry, cancel and delete, for one job and for many: what the table says afterwards, and what riverq then does."""

from __future__ import annotations

from collections.abc import Callable

from tests.interop.ui.browser import Page
from tests.interop.ui.crew import Crew, EncodeVideo, Jobs
from tests.interop.ui.server import RiverUI

REMOTELY = "JobCancelError: job cancelled remotely"


def _select_all(page: Page, ui: RiverUI, state: str, kind: str) -> None:
    page.goto(f"{ui.url}/jobs?state={state}")
    page.see(kind)
    page.click("input[aria-label='Select all jobs']")
    page.see("selected")


def test_a_discarded_job_that_is_retried_runs_again_with_one_attempt_more(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    _select_all(page, ui, "discarded", "charge_card")
    shoot("selected")
    page.click("button", "Retry")
    row = crew.until(jobs.discarded, "discarded", attempt=2)
    assert row["max_attempts"] == 2
    assert [each["attempt"] for each in row["errors"]] == [1, 2]
    assert row["attempted_by"] == [crew.client.id] * 2


def test_waiting_jobs_that_are_cancelled_together_never_run(page: Page, ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    _select_all(page, ui, "available", "build_report")
    page.see("2 selected")
    page.click("button", "Cancel")
    for job_id in jobs.waiting:
        row = crew.until(job_id, "cancelled", attempt=0)
        assert row["finalized_at"] is not None
    page.see("Cancelled\n3")
    crew.client.queue_resume("reports")
    crew.until_queue("reports", paused=False)
    for job_id in jobs.waiting:
        crew.until(job_id, "cancelled", attempt=0)


def test_a_running_job_that_is_cancelled_ends_as_cancelled_each_time(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    _select_all(page, ui, "running", "encode_video")
    page.click("button", "Cancel")
    row = crew.until(jobs.running, "cancelled", attempt=1)
    assert [each["error"] for each in row["errors"]] == [REMOTELY]
    mark = row["metadata"]["cancel_attempted_at"]

    page.goto(f"{ui.url}/jobs/{jobs.running}")
    page.see(REMOTELY)
    shoot("job-cancelled-remotely")
    page.click("button", "Retry")
    row = crew.until(jobs.running, "running", attempt=2)
    assert row["metadata"]["cancel_attempted_at"] == mark
    page.see("State\nRunning\n")

    page.click("button", "Cancel")
    row = crew.until(jobs.running, "cancelled", attempt=2)
    assert [each["error"] for each in row["errors"]] == [REMOTELY, REMOTELY]
    assert row["metadata"]["cancel_attempted_at"] != mark


def test_a_job_that_was_cancelled_and_is_retried_may_fail_and_be_tried_again_like_any_other(
    page: Page, ui: RiverUI, crew: Crew
) -> None:
    """River's retry leaves the mark of the old cancellation in the metadata; it does not cancel the new run."""
    job_id = crew.insert(EncodeVideo("dogs", fragile=True))
    crew.until(job_id, "running")
    page.goto(f"{ui.url}/jobs/{job_id}")
    page.see("State\nRunning\n")
    page.click("button", "Cancel")
    crew.until(job_id, "cancelled")
    page.see("State\nCancelled\n")
    page.click("button", "Retry")
    row = crew.until(job_id, "retryable", attempt=2)
    assert [each["error"] for each in row["errors"]] == [REMOTELY, "ValueError: no such codec"]
    assert "cancel_attempted_at" in row["metadata"]
    page.see("ValueError: no such codec")


def test_a_job_that_waits_for_its_next_attempt_is_retried_at_once(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs
) -> None:
    page.goto(f"{ui.url}/jobs/{jobs.retryable}")
    page.see("Awaiting Retry")
    page.click("button", "Retry")
    row = crew.until(jobs.retryable, "retryable", attempt=3)
    assert [each["attempt"] for each in row["errors"]] == [1, 2, 3]
    page.see("(Attempt 3)")


def test_a_scheduled_job_is_cancelled_before_its_time(page: Page, ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    page.goto(f"{ui.url}/jobs/{jobs.scheduled}")
    page.see("State\nScheduled\n")
    page.click("button", "Cancel")
    assert crew.until(jobs.scheduled, "cancelled")["attempt"] == 0
    page.see("State\nCancelled\n")


def test_a_job_is_deleted_when_that_is_confirmed_and_not_before(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    _select_all(page, ui, "completed", "send_invoice")
    page.click("button", "Delete")
    page.see("This action cannot be undone")
    shoot("delete")
    page.click("[role=dialog] button", "Cancel")
    page.see_no("This action cannot be undone")
    crew.until(jobs.completed, "completed")

    page.click("button", "Delete")
    page.click("[role=dialog] button", "Delete job")
    page.see("No jobs found")
    page.see_no("Completed\n1")
    assert crew.row(jobs.completed) is None


def test_one_of_several_jobs_is_deleted_by_its_own_box(page: Page, ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    first, second = jobs.waiting
    page.goto(f"{ui.url}/jobs?state=available")
    page.see("build_report")
    page.click(f"input[aria-label='Select job {first}']")
    page.see("1 selected")
    page.click("button", "Delete")
    page.click("[role=dialog] button", "Delete job")
    page.see("Available\n1")
    assert crew.row(first) is None
    crew.client.queue_resume("reports")
    crew.until(second, "completed")
