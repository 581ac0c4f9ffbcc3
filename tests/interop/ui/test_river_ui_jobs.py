"""The pages of jobs: what riverq wrote is what they show, in words, counts and tracebacks, and never as markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.interop.ui.browser import Page
from tests.interop.ui.crew import CARD_ERROR, CLOSED, CUSTOMER, FEED_ERROR, SCRIPT, Crew, Jobs
from tests.interop.ui.server import RiverUI

LISTED = "[...document.querySelectorAll('main h2 a[href^=\"/jobs/\"]')].map((a) => Number(a.pathname.split('/')[2]))"
SUGGESTED = "[data-testid=suggestions-list] [data-testid^=suggestion-]"
KINDS = ["build_report", "charge_card", "close_account", "encode_video", "import_feed", "poll_partner", "send_invoice"]
SIDEBAR = "main nav a[href^='/jobs']"


def _until_listed(page: Page, ids: list[int]) -> None:
    """Wait until the list holds these jobs and no others."""
    page.until(f"JSON.stringify({LISTED}.sort((a, b) => a - b)) === JSON.stringify({json.dumps(sorted(ids))})")


def _until_suggested(page: Page, names: list[str]) -> None:
    """Wait until these names, and no others, are offered."""
    offered = f"riverqFind('{SUGGESTED}', null).map((each) => each.innerText.trim())"
    page.until(f"JSON.stringify({offered}) === JSON.stringify({json.dumps(names)})")


def _attempts(page: Page) -> list[str]:
    """The entries under "Attempts", newest first, spaces and line breaks made one."""
    return [" ".join(each.split()) for each in page.texts("main dd > ul > li")]


def test_the_sidebar_counts_jobs_and_leads_to_each_states_list(
    page: Page, ui: RiverUI, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(ui.url)
    page.until(f"riverqFind({json.dumps(SIDEBAR)}, null).filter((each) => /\\d/.test(each.innerText)).length === 8")
    counts = dict(text.split() for text in page.texts(SIDEBAR))
    assert counts == {state.capitalize(): str(len(ids)) for state, ids in jobs.by_state().items()}
    for state, ids in jobs.by_state().items():
        page.click(f"main nav a[href='/jobs?state={state}']" if state != "running" else "main nav a[href='/jobs']")
        _until_listed(page, ids)
        shoot(f"jobs-{state}")


def test_a_completed_job_shows_its_args_its_output_and_who_worked_it(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/jobs/{jobs.completed}")
    page.see("send_invoice")
    for name in ('"lines"', '"output"'):
        page.click("[role=button][aria-expanded=false]", number=0)
        page.see(name)
    page.see('"sent_to"')
    shoot("job-completed")
    shown = page.text()
    for text in (
        json.dumps(CUSTOMER, ensure_ascii=False),
        json.dumps(SCRIPT),
        '"<u>kept</u>"',
        '"zoë@example.com"',
        '"post <office>"',
        '"<i>acme</i>"',
        "Priority\n2\n",
        "Queue\nmail\n",
        "invoice",
        "eu-west",
    ):
        assert text in shown
    [attempt] = _attempts(page)
    assert re.fullmatch(rf"Completed ?\(Attempt 1\) .* {re.escape(crew.client.id)}", attempt)


def test_a_job_that_failed_twice_shows_both_errors_with_pythons_tracebacks(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/jobs/{jobs.retryable}")
    page.see("Awaiting Retry")
    page.see("(Attempt 2)")
    newest, oldest = _attempts(page)
    for number, attempt in ((2, newest), (1, oldest)):
        assert attempt.startswith("Failed")
        assert f"(Attempt {number})" in attempt
        assert f"{crew.client.id} ValueError: {FEED_ERROR}" in attempt
    page.click("summary", "Stack Trace", number=0)
    page.click("summary", "Stack Trace", number=1)
    page.until("riverqFind('main details pre', null).length === 2")
    traces = page.evaluate("[...document.querySelectorAll('main details pre')].map((pre) => pre.textContent)")
    row = crew.row(jobs.retryable)
    assert row is not None
    assert traces == [each["trace"] for each in reversed(row["errors"])]
    for trace in traces:
        assert trace.startswith("Traceback (most recent call last):\n")
        assert trace.endswith(f"ValueError: {FEED_ERROR}\n")
        assert "KeyError: '<unknown>'\n\nThe above exception was the direct cause" in trace
        assert "in import_feed" in trace
        assert "in read_feed" in trace
        assert "riverq/worker" not in trace
    shoot("job-retryable")


@pytest.mark.parametrize(
    ("fate", "seen"),
    [
        ("snoozed", ("State\nScheduled\n", "Snoozed", '"snoozes"', "0 / 25")),
        ("cancelled", ("State\nCancelled\n", f"JobCancelError: {CLOSED}")),
        ("discarded", ("State\nDiscarded\n", "1 / 1", f"RuntimeError: {CARD_ERROR}", "Stack Trace")),
        ("running", ("State\nRunning\n", "(Attempt 1)")),
        ("scheduled", ("State\nScheduled\n", "24 hours", "No attempt information available")),
        ("pending", ("State\nPending\n", "No attempt information available")),
    ],
)
def test_a_job_of_each_other_fate_says_what_became_of_it(
    page: Page, ui: RiverUI, jobs: Jobs, fate: str, seen: tuple[str, ...], shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/jobs/{getattr(jobs, fate)}")
    for text in seen:
        page.see(text)
    shoot(f"job-{fate}")


def test_nothing_that_a_job_holds_becomes_part_of_the_page(page: Page, ui: RiverUI, jobs: Jobs) -> None:
    """No script of a job's ran either: `page` fails the test for a dialog."""
    for address, text in (
        ("/jobs?state=completed", SCRIPT),
        ("/jobs?state=retryable", SCRIPT),
        (f"/jobs/{jobs.completed}", SCRIPT),
        (f"/jobs/{jobs.retryable}", FEED_ERROR),
        (f"/jobs/{jobs.discarded}", CARD_ERROR),
        (f"/jobs/{jobs.cancelled}", CLOSED),
    ):
        page.goto(ui.url + address)
        page.see(text)
        made = "main script, main [onerror], main img[src=x], main u, main i, main b, main em"
        assert page.evaluate(f"[...document.querySelectorAll('{made}')].map((each) => each.outerHTML)") == []
        assert "injected" not in page.texts("h1")


def test_the_filter_completes_kinds_and_queues_and_narrows_the_list(
    page: Page, ui: RiverUI, crew: Crew, jobs: Jobs, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{ui.url}/jobs?state=scheduled")
    _until_listed(page, [jobs.snoozed, jobs.scheduled])
    page.click("[data-testid=job-search-input]")
    page.type("kind:")
    _until_suggested(page, KINDS)
    page.type("po")
    _until_suggested(page, ["build_report", "import_feed", "poll_partner"])
    shoot("filter-kinds")
    # "p" suggests the same, so the list may still be loading and move; this one is another.
    page.type("l")
    _until_suggested(page, ["poll_partner"])
    page.click("[data-testid=suggestion-poll_partner]")
    page.press("Enter", 13)
    _until_listed(page, [jobs.snoozed])
    page.goto(f"{ui.url}/jobs?state=available")
    _until_listed(page, list(jobs.waiting))
    page.click("[data-testid=job-search-input]")
    page.type("queue:")
    _until_suggested(page, ["default", "mail", "reports"])
    page.type("ma")
    _until_suggested(page, ["mail"])
    page.press("Enter", 13)
    _until_listed(page, [])


def test_lists_can_do_without_args(page: Page, ui: RiverUI, jobs: Jobs, shoot: Callable[[str], None]) -> None:
    page.goto(f"{ui.url}/settings")
    page.click("[data-testid=job-args-toggle]")
    page.see("overriding the system default (args shown)")
    shoot("settings")
    page.goto(f"{ui.url}/jobs?state=discarded")
    page.see("charge_card")
    page.see_no('"card"')
