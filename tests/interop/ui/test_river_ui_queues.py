"""The pages of queues: counts, and the two buttons, which a running riverq client obeys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.interop.ui.browser import Page
from tests.interop.ui.crew import BuildReport, Crew, Jobs, SendInvoice
from tests.interop.ui.server import RiverUI


def _row(name: str) -> str:
    """The visible cells of a queue's row, as JavaScript."""
    return (
        "riverqFind('main tbody tr', null).map((row) => [...row.cells].map((cell) => "
        "(cell.querySelector('a') || cell).innerText.trim())).find((cells) => cells[0] === " + json.dumps(name) + ")"
    )


def _until_row(page: Page, name: str, *cells: str) -> None:
    """Wait until a queue's counts of available and running jobs, and its status, are these."""
    page.until(f"JSON.stringify(({_row(name)} || []).slice(2, 5)) === JSON.stringify({json.dumps(cells)})")


def _queue(crew: Crew, name: str) -> dict[str, Any]:
    [row] = crew.select("SELECT to_jsonb(q) FROM {schema}.river_queue q WHERE name = :name", name=name)
    found: dict[str, Any] = row
    return found


def test_queues_are_listed_with_their_counts_and_whether_they_are_paused(
    page: Page, ui: RiverUI, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/queues")
    _until_row(page, "default", "0", "1", "Active")
    _until_row(page, "mail", "0", "0", "Active")
    _until_row(page, "reports", "2", "0", "Paused")
    shoot("queues")


def test_the_buttons_of_the_list_pause_and_resume_a_running_clients_queue(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs
) -> None:
    page.goto(f"{ui.url}/queues")
    metadata = _queue(crew, "mail")["metadata"]
    page.click("button", "Pause, mail")
    _until_row(page, "mail", "0", "0", "Paused")
    crew.until_queue("mail", paused=True)
    assert _queue(crew, "mail")["paused_at"] is not None
    assert crew.client.queue_get("mail").paused_at is not None

    kept = crew.insert(SendInvoice("kept back", 3), queue="mail")
    crew.until(crew.insert(SendInvoice("goes on", 4)), "completed")  # in another queue, so the client looks about
    _until_row(page, "mail", "1", "0", "Paused")
    crew.until(kept, "available", attempt=0)

    page.click("button", "Resume, mail")
    crew.until(kept, "completed")
    crew.until_queue("mail", paused=False)
    _until_row(page, "mail", "0", "0", "Active")
    row = _queue(crew, "mail")
    assert (row["paused_at"], row["metadata"]) == (None, metadata)


def test_the_button_of_a_queues_own_page_ends_a_pause_that_riverq_began(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/queues/reports")
    page.see("Available\n2\n")
    page.see("Paused")
    shoot("queue-paused")
    page.click("button", "Resume")
    for job_id in jobs.waiting:
        crew.until(job_id, "completed")
    crew.until_queue("reports", paused=False)
    page.see("Available\n0\n")
    page.see("Active")
    shoot("queue-active")
    page.click("button", "Pause")
    crew.until_queue("reports", paused=True)
    crew.until(crew.insert(BuildReport("2026-09"), queue="reports"), "available")
    page.see("Available\n1\n")
